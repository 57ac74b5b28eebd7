"""Matrix products y = epilogue(x Wᵀ) for weights [out, in] as they are stored, with fp32 accumulation.

A few rows (decode, short pieces) are dot products along the weight's rows, bound by the memory's
bandwidth: every weight is read once. Many rows go through register tiles over operands packed for them.
"""

import functools
from typing import Any

import numpy as np
from gecko_mlc.tir_kernels.machine import Machine, divide
from gecko_mlc.tir_kernels.math import silu
from gecko_mlc.tir_kernels.reduction import clear, sum_lanes
from gecko_mlc.tir_kernels.weights import weight_loader
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.group_quantization import WeightFormat

Expr = Any

# Up to this many rows, packing the weights would cost more than it saves.
FEW_ROWS = 8
# Rows of the weight that one task of the few-row form reads side by side.
DOT_ROWS = 4


def oracle(
    x: np.ndarray,
    weight: np.ndarray,
    *operands: np.ndarray,
    epilogue: str = "plain",
    activation: str | None = None,
) -> np.ndarray:
    """x [n, K], weight [N, K] → y [n, N], with the epilogues of `linear`."""
    y = x @ weight.astype(x.dtype).T
    if epilogue == "bias":
        y = y + operands[0]
    if activation == "silu":
        y = y / (1 + np.exp(-y))
    if epilogue == "gate":
        y = y * operands[0]
    if epilogue == "scale_residual":
        y = y * operands[0]
    if epilogue in ("residual", "scale_residual"):
        y = y + operands[-1]
    if epilogue == "residual2":
        y = y + operands[0] + operands[1]
    return y


def packed_shape(n: Expr, features: int, weights: WeightFormat, machine: Machine) -> tuple[Expr, ...]:
    """The shape of what `pack_rows` makes."""
    return divide(n, machine.tile_rows), features, machine.tile_rows


@functools.cache
def pack_rows(features: int, weights: WeightFormat, machine: Machine) -> tirx.PrimFunc:
    """Kernel (x [n, K]) → packed [⌈n/tile⌉, K, tile]: rows of a register tile side by side, ragged ones 0.

    Writes nothing for at most `FEW_ROWS` rows, which `linear` reads from x itself.
    """
    tile = machine.tile_rows

    @T.prim_func(s_tir=True, private=True)
    def kernel(x_handle: T.handle, packed_handle: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        n = T.int32()
        x = T.match_buffer(x_handle, (n, features), "float32")
        packed = T.match_buffer(packed_handle, (divide(n, tile), features, tile), "float32")
        if n > FEW_ROWS:
            for block in T.parallel(divide(n, tile)):
                if (block + 1) * tile <= n:
                    for k in T.serial(features):
                        for i in T.unroll(tile):
                            packed[block, k, i] = x[block * tile + i, k]
                else:
                    for k in T.serial(features):
                        for i in T.serial(tile):
                            if block * tile + i < n:
                                packed[block, k, i] = x[block * tile + i, k]
                            else:
                                packed[block, k, i] = T.float32(0)

    return kernel


@functools.cache
def linear(
    in_features: int,
    out_features: int,
    weights: WeightFormat,
    machine: Machine,
    epilogue: str = "plain",
    activation: str | None = None,
) -> tirx.PrimFunc:
    """Kernel (x [n, K], packed, weight [N, K] in the format `weights`, operands of the epilogue) → y [n, N].

    Everything but the weight is fp32; `packed` is what `pack_rows` makes of x. With a the activation, None
    or "silu", the epilogues are `plain` a(p), `bias` a(p + bias [N]), `gate` a(p) ⊙ gate [n, N],
    `residual` a(p) + addend [n, N], `residual2` with two addends, and `scale_residual`
    a(p) ⊙ scale [N] + addend [n, N].
    """
    tile, lanes = machine.tile_rows, machine.lanes
    columns = 2 * lanes
    width = machine.width(in_features)
    # Vectors of a weight's row, and independent sums that hide the latency of adding them up.
    steps = in_features // width
    chains = min(steps, 4)

    load = weight_loader(weights, in_features)
    shape, dtype = weights.shape(out_features, in_features), weights.dtype

    def activate(value: Expr) -> Expr:
        return silu(value) if activation == "silu" else value

    @T.inline
    def dot(x, weight, depth, i, first, rows, finish, y):
        """Outputs first … first + rows of row i; the weights' rows one after the other, so that memory is
        read in order."""
        sums = T.alloc_buffer((rows, width))
        total = T.alloc_buffer((rows,))
        for r in T.unroll(rows):
            partial = T.alloc_buffer((chains, width))
            clear(partial, chains, width)
            # LLVM does not know `depth`. If it did it would unroll the loop and reorder the reads over whole
            # rows, and the memory would deliver half as fast.
            for k in T.serial(depth // (chains * width)):
                for c in T.unroll(chains):
                    for lane in T.vectorized(width):
                        partial[c, lane] = (
                            partial[c, lane]
                            + load(weight, first + r, (k * chains + c) * width + lane)
                            * x[i, (k * chains + c) * width + lane]
                        )
            for c in T.unroll(steps % chains):
                for lane in T.vectorized(width):
                    partial[c, lane] = (
                        partial[c, lane]
                        + load(weight, first + r, (steps // chains * chains + c) * width + lane)
                        * x[i, (steps // chains * chains + c) * width + lane]
                    )
            for lane in T.vectorized(width):
                sums[r, lane] = partial[0, lane]
            for c in T.unroll(chains - 1):
                for lane in T.vectorized(width):
                    sums[r, lane] = sums[r, lane] + partial[c + 1, lane]
        sum_lanes(total, sums, rows, width)
        for r in T.unroll(rows):
            y[i, first + r] = finish(total[r], i, first + r)

    @T.inline
    def few_rows(x, weight, n, depth, finish, y):
        """Tiles of the weight's rows, each against all rows of x while it is in the cache."""
        for block in T.parallel(out_features // DOT_ROWS):
            for i in T.serial(n):
                dot(x, weight, depth, i, block * DOT_ROWS, DOT_ROWS, finish, y)
        if out_features % DOT_ROWS > 0:
            for i in T.serial(n):
                dot(
                    x,
                    weight,
                    depth,
                    i,
                    out_features // DOT_ROWS * DOT_ROWS,
                    out_features % DOT_ROWS,
                    finish,
                    y,
                )

    @T.inline
    def store(y, row, column, sums, i, finish):
        """A vector of outputs; the last block's may be cut short."""
        if out_features % columns > 0:
            for j in T.serial(T.max(T.min(lanes, out_features - column), 0)):
                y[row, column + j] = finish(sums[i, j], row, column + j)
        else:
            for j in T.vectorized(lanes):
                y[row, column + j] = finish(sums[i, j], row, column + j)

    @T.inline
    def many_rows(packed, weight, n, finish, y):
        for block in T.parallel(divide(out_features, columns)):
            panel = T.alloc_buffer((in_features, columns), "float32")
            # Small enough each to become registers.
            left = T.alloc_buffer((tile, lanes))
            right = T.alloc_buffer((tile, lanes))
            for j in T.serial(columns):
                for k in T.serial(in_features):
                    if out_features % columns > 0:
                        panel[k, j] = load(weight, T.min(block * columns + j, out_features - 1), k)
                    else:
                        panel[k, j] = load(weight, block * columns + j, k)
            for rows in T.serial(divide(n, tile)):
                clear(left, tile, lanes)
                clear(right, tile, lanes)
                for k in T.serial(in_features):
                    for i in T.unroll(tile):
                        for lane in T.vectorized(lanes):
                            left[i, lane] = left[i, lane] + packed[rows, k, i] * panel[k, lane]
                        for lane in T.vectorized(lanes):
                            right[i, lane] = right[i, lane] + packed[rows, k, i] * panel[k, lanes + lane]
                for i in T.unroll(tile):
                    if rows * tile + i < n:
                        store(y, rows * tile + i, block * columns, left, i, finish)
                        store(y, rows * tile + i, block * columns + lanes, right, i, finish)

    @T.inline
    def product(x, packed, weight, n, depth, finish, y):
        if n <= FEW_ROWS:
            few_rows(x, weight, n, depth, finish, y)
        else:
            many_rows(packed, weight, n, finish, y)

    # Parsing happens at definition: only the signature asked for is defined.
    if epilogue == "plain":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, (divide(n, tile), in_features, tile), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value), y)

    elif epilogue == "bias":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            bias: T.Buffer((out_features,), "float32"),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, (divide(n, tile), in_features, tile), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value + bias[j]), y)

    elif epilogue == "gate":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            gate_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, (divide(n, tile), in_features, tile), "float32")
            gate = T.match_buffer(gate_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value) * gate[i, j], y)

    elif epilogue == "residual":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            addend_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, (divide(n, tile), in_features, tile), "float32")
            addend = T.match_buffer(addend_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value) + addend[i, j], y)

    elif epilogue == "residual2":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            addend_handle: T.handle,
            second_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, (divide(n, tile), in_features, tile), "float32")
            addend = T.match_buffer(addend_handle, (n, out_features), "float32")
            second = T.match_buffer(second_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(
                x,
                packed,
                weight,
                n,
                depth,
                lambda value, i, j: activate(value) + addend[i, j] + second[i, j],
                y,
            )

    elif epilogue == "scale_residual":

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            packed_handle: T.handle,
            weight: T.Buffer(shape, dtype),
            scale: T.Buffer((out_features,), "float32"),
            addend_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            n, depth = T.int32(), T.int32()
            x = T.match_buffer(x_handle, (n, depth), "float32")
            packed = T.match_buffer(packed_handle, (divide(n, tile), in_features, tile), "float32")
            addend = T.match_buffer(addend_handle, (n, out_features), "float32")
            y = T.match_buffer(y_handle, (n, out_features), "float32")
            product(x, packed, weight, n, depth, lambda value, i, j: activate(value) * scale[j] + addend[i, j], y)

    else:
        raise ValueError(f"unknown epilogue {epilogue!r}")
    return kernel
