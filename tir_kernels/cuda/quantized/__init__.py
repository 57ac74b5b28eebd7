"""Weights in a few bits: codes, scales, and activations rounded for them."""
