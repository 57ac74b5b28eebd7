"""Gecko in PyTorch: what the compiled model is compared with, initial weights, the demo's training."""
