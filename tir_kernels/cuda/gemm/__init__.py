"""Products of many rows, on the tensor cores."""
