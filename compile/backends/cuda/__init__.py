"""NVIDIA GPUs: machine code ahead of time, on machines without a GPU too."""
