"""Gecko in programs of others."""
