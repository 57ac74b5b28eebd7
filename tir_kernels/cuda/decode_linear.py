"""Matrix products of decode with their epilogues, for CUDA: one token each of b slots. Shapes of weights are those of
the matrices; they lie in memory in the format `weights`."""

import functools
from typing import Any

from gecko_mlc.tir_kernels.cuda.activation import silu
from gecko_mlc.tir_kernels.cuda.intrinsics import RESIDENT_BLOCKS, launch_dependents
from gecko_mlc.tir_kernels.cuda.row_inputs import THREADS, Norm
from gecko_mlc.tir_kernels.cuda.row_products import row_product
from gecko_mlc.tir_kernels.machine import divide
from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.group_quantization import WeightFormat

Expr = Any

# Blocks of a multiprocessor at a time.
RESIDENT = 2


def _one(_: Expr) -> Expr:
    return tirx.const(1.0, "float32")


def _zero(_: Expr) -> Expr:
    return tirx.const(0.0, "float32")


@functools.cache
def projections(
    dim: int,
    z_dim: int,
    value_dim: int,
    norm_groups: int,
    eps: float,
    affine: bool,
    weights: WeightFormat,
    rows: int,
) -> tirx.PrimFunc:
    """Kernel (u [b, D], c [b, D], norm weight [D] if affine, wv [E, D], bias [E], wz [Z, D], bias [Z], wr [E, D],
    bias [E], wh1 [D, D], bias [D], x [b, D]) → v [b, E], z [b, Z], r [b, E], h [b, D].

    With mx the group RMS norm of c (2.4), v = silu(wv u + b), z = wz mx + b, r = silu(wr mx + b),
    h = x + wh1 mx + b (2.8). All but the weights is fp32.
    """
    total = 2 * value_dim + z_dim + dim
    plain = row_product(dim, total, weights, rows)
    normed = row_product(dim, total, weights, rows, norm=Norm(norm_groups, eps, False))
    # The first block of each weight, and the end.
    ends = [0]
    for extent in (value_dim, z_dim, value_dim, dim):
        ends.append(ends[-1] + divide(extent, plain.outputs))

    @T.inline
    def compute(u, c, gain, wv, wv_bias, wz, wz_bias, wr, wr_bias, wh1, wh1_bias, x, v, z, r, h, b):
        bx = T.launch_thread("blockIdx.x", ends[4])
        by = T.launch_thread("blockIdx.y", (b + plain.rows - 1) // plain.rows)
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((plain.shared,), weights.arithmetic, scope="shared.dyn")
        scratch = T.alloc_buffer((normed.scratch,), scope="shared")

        @T.inline
        def store_v(i, o, value, second):
            v[i, o] = silu(value + wv_bias[o])

        @T.inline
        def store_z(i, o, value, second):
            z[i, o] = value + wz_bias[o]

        @T.inline
        def store_r(i, o, value, second):
            r[i, o] = silu(value + wr_bias[o])

        @T.inline
        def store_h(i, o, value, second):
            h[i, o] = x[i, o] + (value + wh1_bias[o])

        @T.inline
        def multiply(product, incoming, weight, start, end, store):
            product.compute(
                weight, weight, incoming, b, by * plain.rows, gain, _zero,
                (bx - start) * plain.outputs, end, shared, scratch, tx, store,
            )  # fmt: skip

        T.attr(0, RESIDENT_BLOCKS, RESIDENT)
        launch_dependents()
        if bx < ends[1]:
            multiply(plain, u, wv, 0, value_dim, store_v)
        else:
            if bx < ends[2]:
                multiply(normed, c, wz, ends[1], z_dim, store_z)
            else:
                if bx < ends[3]:
                    multiply(normed, c, wr, ends[2], value_dim, store_r)
                else:
                    multiply(normed, c, wh1, ends[3], dim, store_h)

    # Parsing happens at definition: only the signature asked for is defined.
    if affine:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            c_handle: T.handle,
            norm_weight: T.Buffer((dim,), "float32"),
            wv: T.Buffer(weights.shape(value_dim, dim), weights.dtype),
            wv_bias: T.Buffer((value_dim,), "float32"),
            wz: T.Buffer(weights.shape(z_dim, dim), weights.dtype),
            wz_bias: T.Buffer((z_dim,), "float32"),
            wr: T.Buffer(weights.shape(value_dim, dim), weights.dtype),
            wr_bias: T.Buffer((value_dim,), "float32"),
            wh1: T.Buffer(weights.shape(dim, dim), weights.dtype),
            wh1_bias: T.Buffer((dim,), "float32"),
            x_handle: T.handle,
            v_handle: T.handle,
            z_handle: T.handle,
            r_handle: T.handle,
            h_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            u = T.match_buffer(u_handle, (b, dim), "float32")
            c = T.match_buffer(c_handle, (b, dim), "float32")
            x = T.match_buffer(x_handle, (b, dim), "float32")
            v = T.match_buffer(v_handle, (b, value_dim), "float32")
            z = T.match_buffer(z_handle, (b, z_dim), "float32")
            r = T.match_buffer(r_handle, (b, value_dim), "float32")
            h = T.match_buffer(h_handle, (b, dim), "float32")
            compute(
                u, c, lambda k: T.float32(1) + norm_weight[k], wv, wv_bias, wz, wz_bias, wr, wr_bias, wh1, wh1_bias,
                x, v, z, r, h, b,
            )  # fmt: skip

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            u_handle: T.handle,
            c_handle: T.handle,
            wv: T.Buffer(weights.shape(value_dim, dim), weights.dtype),
            wv_bias: T.Buffer((value_dim,), "float32"),
            wz: T.Buffer(weights.shape(z_dim, dim), weights.dtype),
            wz_bias: T.Buffer((z_dim,), "float32"),
            wr: T.Buffer(weights.shape(value_dim, dim), weights.dtype),
            wr_bias: T.Buffer((value_dim,), "float32"),
            wh1: T.Buffer(weights.shape(dim, dim), weights.dtype),
            wh1_bias: T.Buffer((dim,), "float32"),
            x_handle: T.handle,
            v_handle: T.handle,
            z_handle: T.handle,
            r_handle: T.handle,
            h_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            u = T.match_buffer(u_handle, (b, dim), "float32")
            c = T.match_buffer(c_handle, (b, dim), "float32")
            x = T.match_buffer(x_handle, (b, dim), "float32")
            v = T.match_buffer(v_handle, (b, value_dim), "float32")
            z = T.match_buffer(z_handle, (b, z_dim), "float32")
            r = T.match_buffer(r_handle, (b, value_dim), "float32")
            h = T.match_buffer(h_handle, (b, dim), "float32")
            compute(
                u, c, _one, wv, wv_bias, wz, wz_bias, wr, wr_bias, wh1, wh1_bias,
                x, v, z, r, h, b,
            )  # fmt: skip

    return kernel


@functools.cache
def linear_residual(
    in_features: int, out_features: int, weights: WeightFormat, scaled: bool, rows: int
) -> tirx.PrimFunc:
    """Kernel (y [b, K], weight [O, K], alpha [O] if scaled, residual [b, O]) → residual + alpha ⊙ product, [b, O]; all
    but the weight fp32."""
    product = row_product(in_features, out_features, weights, rows)

    @T.inline
    def compute(x, weight, scale, residual, y, b):
        bx = T.launch_thread("blockIdx.x", divide(out_features, product.outputs))
        by = T.launch_thread("blockIdx.y", (b + product.rows - 1) // product.rows)
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((product.shared,), weights.arithmetic, scope="shared.dyn")
        scratch = T.alloc_buffer((product.scratch,), scope="shared")

        @T.inline
        def store(i, o, value, second):
            y[i, o] = residual[i, o] + scale(o) * value

        T.attr(0, RESIDENT_BLOCKS, RESIDENT)
        launch_dependents()
        product.compute(
            weight, weight, x, b, by * product.rows, _one, _zero,
            bx * product.outputs, out_features, shared, scratch, tx, store,
        )  # fmt: skip

    # Parsing happens at definition: only the signature asked for is defined.
    if scaled:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
            scale: T.Buffer((out_features,), "float32"),
            residual_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            x = T.match_buffer(x_handle, (b, in_features), "float32")
            residual = T.match_buffer(residual_handle, (b, out_features), "float32")
            y = T.match_buffer(y_handle, (b, out_features), "float32")
            compute(x, weight, lambda o: scale[o], residual, y, b)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
            residual_handle: T.handle,
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            x = T.match_buffer(x_handle, (b, in_features), "float32")
            residual = T.match_buffer(residual_handle, (b, out_features), "float32")
            y = T.match_buffer(y_handle, (b, out_features), "float32")
            compute(x, weight, _one, residual, y, b)

    return kernel


@functools.cache
def gate(
    dim: int, hidden: int, norm_groups: int, eps: float, affine: bool, swiglu: bool, weights: WeightFormat, rows: int
) -> tirx.PrimFunc:
    """Kernel (y [b, D], norm weight [D] and bias [D] if affine, fc1 [F, D], fc3 [F, D] if swiglu) → [b, F].

    With n the group layer norm of y, silu(fc1 n) ⊙ fc3 n, or silu(fc1 n) (2.8); all but the weights is fp32.
    """
    product = row_product(dim, (1 + swiglu) * hidden, weights, rows, 1 + swiglu, Norm(norm_groups, eps, True))

    @T.inline
    def compute(x, gain, shift, fc1, fc3, y, b):
        bx = T.launch_thread("blockIdx.x", divide(hidden, product.outputs))
        by = T.launch_thread("blockIdx.y", (b + product.rows - 1) // product.rows)
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((product.shared,), weights.arithmetic, scope="shared.dyn")
        scratch = T.alloc_buffer((product.scratch,), scope="shared")

        @T.inline
        def store(i, o, value, second):
            if swiglu:
                y[i, o] = silu(value) * second
            else:
                y[i, o] = silu(value)

        T.attr(0, RESIDENT_BLOCKS, RESIDENT)
        launch_dependents()
        product.compute(
            fc1, fc3, x, b, by * product.rows, gain, shift,
            bx * product.outputs, hidden, shared, scratch, tx, store,
        )  # fmt: skip

    # Parsing happens at definition: only the signature asked for is defined.
    if affine and swiglu:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            norm_weight: T.Buffer((dim,), "float32"),
            norm_bias: T.Buffer((dim,), "float32"),
            fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            fc3: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            x = T.match_buffer(x_handle, (b, dim), "float32")
            y = T.match_buffer(y_handle, (b, hidden), "float32")
            compute(x, lambda k: T.float32(1) + norm_weight[k], lambda k: norm_bias[k], fc1, fc3, y, b)

    elif affine:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            norm_weight: T.Buffer((dim,), "float32"),
            norm_bias: T.Buffer((dim,), "float32"),
            fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            x = T.match_buffer(x_handle, (b, dim), "float32")
            y = T.match_buffer(y_handle, (b, hidden), "float32")
            compute(x, lambda k: T.float32(1) + norm_weight[k], lambda k: norm_bias[k], fc1, fc1, y, b)

    elif swiglu:

        @T.prim_func(s_tir=True, private=True)
        def kernel(
            x_handle: T.handle,
            fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            fc3: T.Buffer(weights.shape(hidden, dim), weights.dtype),
            y_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            x = T.match_buffer(x_handle, (b, dim), "float32")
            y = T.match_buffer(y_handle, (b, hidden), "float32")
            compute(x, _one, _zero, fc1, fc3, y, b)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(x_handle: T.handle, fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype), y_handle: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            x = T.match_buffer(x_handle, (b, dim), "float32")
            y = T.match_buffer(y_handle, (b, hidden), "float32")
            compute(x, _one, _zero, fc1, fc1, y, b)

    return kernel


@functools.cache
def head(dim: int, outputs: int, slots: int, weights: WeightFormat, rows: int) -> tirx.PrimFunc:
    """Kernel (x [b, D], weight [O, D], slots [b], logits [S, O]): the product, into the slots' logits."""
    product = row_product(dim, outputs, weights, rows)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        x_handle: T.handle,
        weight: T.Buffer(weights.shape(outputs, dim), weights.dtype),
        slots_handle: T.handle,
        logits: T.Buffer((slots, outputs), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        b = T.int32()
        x = T.match_buffer(x_handle, (b, dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")
        bx = T.launch_thread("blockIdx.x", divide(outputs, product.outputs))
        by = T.launch_thread("blockIdx.y", (b + product.rows - 1) // product.rows)
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((product.shared,), weights.arithmetic, scope="shared.dyn")
        scratch = T.alloc_buffer((product.scratch,), scope="shared")

        @T.inline
        def store(i, o, value, second):
            logits[slot_ids[i], o] = value

        T.attr(0, RESIDENT_BLOCKS, RESIDENT)
        launch_dependents()
        product.compute(
            weight, weight, x, b, by * product.rows, _one, _zero,
            bx * product.outputs, outputs, shared, scratch, tx, store,
        )  # fmt: skip

    return kernel
