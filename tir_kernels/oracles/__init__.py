"""What every operation computes, in NumPy alone: the kernels of all hardware are tested against it."""
