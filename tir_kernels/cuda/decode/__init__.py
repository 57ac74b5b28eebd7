"""Decode: one token of each sequence."""
