"""GEMV: products of a few rows of activations, bound by the memory."""
