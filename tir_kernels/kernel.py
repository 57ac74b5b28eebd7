"""The decorator of every kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tvm import ir, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.parser.core import doc
from tvm.script.parser.core.diagnostics import Source
from tvm.script.parser.core.error import ParserError
from tvm.script.parser.core.parser import Parser, ScriptMacro
from tvm.script.parser.core.utils import inspect_function_capture

# Arguments do not overlap; operators are not fused into it (8 is opaque), and no pass schedules it again.
_ATTRIBUTES = {"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True}
_PRIM_FUNC = doc.parse("@T.prim_func(s_tir=True, private=True)\ndef _(): pass").body[0].decorator_list


def _parser_of_callers(macro: ScriptMacro) -> Any:
    """The parser that a macro is called from, a global of one of its callers."""
    frame = sys._getframe(1)
    while frame.f_globals.get(macro.parser_object_name) is None:
        if frame.f_back is None:
            raise RuntimeError("a macro is called outside of a kernel")
        frame = frame.f_back
    return frame.f_globals[macro.parser_object_name]


# TVM's own way reads the source of all callers, which is a third of the time that kernels take to be parsed.
ScriptMacro._find_parser_def = _parser_of_callers


class _Source(Source):
    """A function's source with the decorator that TVMScript's parser looks for."""

    def as_ast(self) -> doc.AST:
        tree = super().as_ast()
        tree.body[0].decorator_list = _PRIM_FUNC
        return tree


def kernel(function: Callable[..., None] | None = None, /, **takes: bool) -> Any:
    """The TensorIR of a function in TVMScript: `@kernel`, or `@kernel(bias=affine)`.

    The signature lists the parameters of all variants of a kernel. `takes` says of those that some variants leave out
    whether this one takes them, by the names of their buffers. Raises `TypeError` if there is no such parameter; TVM
    raises `InternalError` where one that is left out is used, and `DiagnosticError` with the line of what it rejects.
    """
    if function is None:
        return lambda function: _parse(function, takes)
    return _parse(function, takes)


def _parse(function: Callable[..., None], takes: dict[str, bool]) -> tirx.PrimFunc:
    parser = Parser(_Source(function), {function.__name__: function.__annotations__})
    with IRBuilder() as builder:
        try:
            parser.parse(inspect_function_capture(function))
        except ParserError as error:
            parser.report_error(error.node, error.args[0])
    parsed = builder.get()
    if unknown := takes.keys() - {parameter.name for parameter in parsed.params}:
        raise TypeError(f"{function.__qualname__} has no parameter {', '.join(sorted(unknown))}")
    parameters = [parameter for parameter in parsed.params if takes.get(parameter.name, True)]
    made = tirx.PrimFunc(parameters, parsed.body, parsed.ret_type, parsed.attrs).with_attrs(_ATTRIBUTES)
    s_tir.analysis.verify_well_formed(ir.IRModule.from_expr(made))
    return made
