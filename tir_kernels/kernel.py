"""Signatures of kernels that take an argument in some of their variants only."""

from tvm import tirx


def without_parameter(kernel: tirx.PrimFunc, name: str) -> tirx.PrimFunc:
    """The kernel without a parameter that it does not use."""
    parameters = [p for p in kernel.params if p.name != name]
    return tirx.PrimFunc(parameters, kernel.body, kernel.ret_type, kernel.attrs)
