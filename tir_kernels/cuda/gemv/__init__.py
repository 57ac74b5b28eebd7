"""Products of a few rows, bound by the memory."""
