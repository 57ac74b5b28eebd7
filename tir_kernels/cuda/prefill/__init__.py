"""Prefill: a piece of one sequence's tokens."""
