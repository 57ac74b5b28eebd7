"""TensorIR kernels of Gecko.

`oracles` say what an operation computes, `cpu` and `cuda` how, one file an operation or a step of it. A kernel knows
shapes, dtypes and its hardware, and nothing of models or targets; `kernel`, `shapes`, `phase`, `hardware` and
`expressions` are what all of them are made with.
"""
