"""Running compiled Gecko libraries: no compiler, no PyTorch."""
