"""Weights in a few bits: codes and scales dequantized or multiplied, and activations quantized for them."""
