"""TensorIR kernels of Gecko.

One file a kernel: the naive NumPy oracle (what), the TensorIR (how) and the CPU's schedule, written into
its loops (how fast). A kernel knows shapes, dtypes and a `Machine`, and nothing of models or targets.
"""
