"""The kernels for CPUs: the schedule is written into the loops."""
