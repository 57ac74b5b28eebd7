"""Matrix products of decode with their epilogues, for CUDA: one token each of b slots. Shapes of weights are those of
the matrices; they lie in memory in the format `weights`."""

import functools
import itertools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import WeightFormat
from gecko_mlc.tir_kernels.cuda.gemv.gemv import gemv
from gecko_mlc.tir_kernels.cuda.gemv.prologue import RESIDENT, THREADS, Norm
from gecko_mlc.tir_kernels.cuda.ptx.activation import silu
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import RESIDENT_BLOCKS, launch_dependents
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow, row_shape
from gecko_mlc.tir_kernels.cuda.quantized.quantize import quantize_vectors
from gecko_mlc.tir_kernels.hardware import CUDA

Expr = Any


def _one(_: Expr) -> Expr:
    return tirx.const(1.0, "float32")


def _zero(_: Expr) -> Expr:
    return tirx.const(0.0, "float32")


def _nothing(_i: Expr, _o: Expr) -> Expr:
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
    machine: CUDA,
    incoming: QuantizedRow | None = None,
) -> tirx.PrimFunc:
    """Kernel (u [b, D], c [b, D], norm weight [D] if affine, wv [E, D], bias [E], wz [Z, D], bias [Z], wr [E, D],
    bias [E], wh1 [D, D], bias [D], x [b, D]) → v [b, E], z [b, Z], r [b, E], h [b, D].

    With mx the group RMS norm of c (2.4), v = silu(wv u + b), z = wz mx + b, r = silu(wr mx + b),
    h = x + wh1 mx + b (2.8). All but the weights is fp32. Rows u and c may be `incoming` rounded, c then with its
    norm's gain and squares: a norm of one group, here without a weight.
    """
    extents = value_dim, z_dim, value_dim, dim
    norm = Norm(norm_groups, eps, False)
    plain = gemv(dim, extents, weights, rows, machine, incoming=incoming)
    normed = gemv(dim, extents, weights, rows, machine, norm=norm, incoming=incoming)
    width, dtype = row_shape(dim, incoming)
    # The first block of each weight, and the end.
    ends = [0, *itertools.accumulate(plain.blocks)]

    @T.inline
    def compute(u, c, gain, wv, wv_bias, wz, wz_bias, wr, wr_bias, wh1, wh1_bias, x, v, z, r, h, b):
        bx = T.launch_thread("blockIdx.x", ends[4])
        by = T.launch_thread("blockIdx.y", (b + plain.rows - 1) // plain.rows)
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((max(plain.shared, normed.shared),), weights.arithmetic, scope="shared.dyn")
        scratch = T.alloc_buffer((normed.scratch,), scope="shared")

        @T.inline
        def store_v(i, o, value, second, bias):
            v[i, o] = silu(value + bias)

        @T.inline
        def store_z(i, o, value, second, bias):
            z[i, o] = value + bias

        @T.inline
        def store_r(i, o, value, second, bias):
            r[i, o] = silu(value + bias)

        @T.inline
        def store_h(i, o, value, second, residual):
            h[i, o] = value + residual

        @T.inline
        def multiply(product, incoming, weight, matrix, addend, store):
            product.compute(
                weight, weight, incoming, b, by * plain.rows, gain, _zero,
                bx - ends[matrix], matrix, shared, scratch, tx, addend, store,
            )  # fmt: skip

        T.attr(0, RESIDENT_BLOCKS, RESIDENT)
        launch_dependents()
        if bx < ends[1]:
            multiply(plain, u, wv, 0, lambda i, o: wv_bias[o], store_v)
        else:
            if bx < ends[2]:
                multiply(normed, c, wz, 1, lambda i, o: wz_bias[o], store_z)
            else:
                if bx < ends[3]:
                    multiply(normed, c, wr, 2, lambda i, o: wr_bias[o], store_r)
                else:
                    multiply(normed, c, wh1, 3, lambda i, o: x[i, o] + wh1_bias[o], store_h)

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
            u = T.match_buffer(u_handle, (b, width), dtype)
            c = T.match_buffer(c_handle, (b, width), dtype)
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
            u = T.match_buffer(u_handle, (b, width), dtype)
            c = T.match_buffer(c_handle, (b, width), dtype)
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
    in_features: int,
    out_features: int,
    weights: WeightFormat,
    scaled: bool,
    rows: int,
    machine: CUDA,
    incoming: QuantizedRow | None = None,
) -> tirx.PrimFunc:
    """Kernel (y [b, K], weight [O, K], alpha [O] if scaled, residual [b, O]) → residual + alpha ⊙ product, [b, O]; all
    but the weight fp32, or y `incoming` rounded."""
    product = gemv(in_features, (out_features,), weights, rows, machine, incoming=incoming)
    width, dtype = row_shape(in_features, incoming)

    @T.inline
    def compute(x, weight, scale, residual, y, b):
        bx = T.launch_thread("blockIdx.x", product.blocks[0])
        by = T.launch_thread("blockIdx.y", (b + product.rows - 1) // product.rows)
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((product.shared,), weights.arithmetic, scope="shared.dyn")
        scratch = T.alloc_buffer((product.scratch,), scope="shared")

        @T.inline
        def store(i, o, value, second, addend):
            y[i, o] = addend + scale(o) * value

        T.attr(0, RESIDENT_BLOCKS, RESIDENT)
        launch_dependents()
        product.compute(
            weight, weight, x, b, by * product.rows, _one, _zero,
            bx, 0, shared, scratch, tx, lambda i, o: residual[i, o], store,
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
            x = T.match_buffer(x_handle, (b, width), dtype)
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
            x = T.match_buffer(x_handle, (b, width), dtype)
            residual = T.match_buffer(residual_handle, (b, out_features), "float32")
            y = T.match_buffer(y_handle, (b, out_features), "float32")
            compute(x, weight, _one, residual, y, b)

    return kernel


@functools.cache
def gate(
    dim: int,
    hidden: int,
    norm_groups: int,
    eps: float,
    affine: bool,
    swiglu: bool,
    weights: WeightFormat,
    rows: int,
    machine: CUDA,
    outgoing: QuantizedRow | None = None,
) -> tirx.PrimFunc:
    """Kernel (y [b, D], norm weight [D] and bias [D] if affine, fc1 [F, D], fc3 [F, D] if swiglu) → [b, F].

    With n the group layer norm of y, silu(fc1 n) ⊙ fc3 n, or silu(fc1 n) (2.8); all but the weights is fp32, or the
    result `outgoing` rounded.
    """
    norm = Norm(norm_groups, eps, True)
    product = gemv(dim, (hidden,), weights, rows, machine, 1 + swiglu, norm, outgoing=outgoing)
    width, dtype = row_shape(hidden, outgoing)
    outputs = product.most if outgoing is not None else 0

    def activated(value: Expr, second: Expr) -> Expr:
        return silu(value) * second if swiglu else silu(value)

    @T.inline
    def compute(x, gain, shift, fc1, fc3, y, b):
        bx = T.launch_thread("blockIdx.x", product.blocks[0])
        by = T.launch_thread("blockIdx.y", (b + product.rows - 1) // product.rows)
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((product.shared,), weights.arithmetic, scope="shared.dyn")
        scratch = T.alloc_buffer((outputs + product.scratch,), scope="shared")

        @T.inline
        def store(i, o, value, second, addend):
            if outgoing is not None:
                scratch[product.scratch + o - product.first_output(bx, 0)] = activated(value, second)
            else:
                y[i, o] = activated(value, second)

        T.attr(0, RESIDENT_BLOCKS, RESIDENT)
        launch_dependents()
        product.compute(
            fc1, fc3, x, b, by * product.rows, gain, shift,
            bx, 0, shared, scratch, tx, _nothing, store,
        )  # fmt: skip
        if outgoing is not None:
            first: T.let = product.first_output(bx, 0) // outgoing.codes
            stop: T.let = T.min(product.first_output(bx + 1, 0), hidden) // outgoing.codes
            T.tvm_storage_sync("shared")
            quantize_vectors(outgoing, outputs // outgoing.codes, THREADS)(
                scratch, product.scratch, first, stop - first, y, by, tx
            )

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
            y = T.match_buffer(y_handle, (b, width), dtype)
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
            y = T.match_buffer(y_handle, (b, width), dtype)
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
            y = T.match_buffer(y_handle, (b, width), dtype)
            compute(x, _one, _zero, fc1, fc3, y, b)

    else:

        @T.prim_func(s_tir=True, private=True)
        def kernel(x_handle: T.handle, fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype), y_handle: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            b = T.int32()
            x = T.match_buffer(x_handle, (b, dim), "float32")
            y = T.match_buffer(y_handle, (b, width), dtype)
            compute(x, _one, _zero, fc1, fc1, y, b)

    return kernel


@functools.cache
def head(dim: int, outputs: int, slots: int, weights: WeightFormat, rows: int, machine: CUDA) -> tirx.PrimFunc:
    """Kernel (x [b, D], weight [O, D], slots [b], logits [S, O]): the product, into the slots' logits."""
    product = gemv(dim, (outputs,), weights, rows, machine)

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
        bx = T.launch_thread("blockIdx.x", product.blocks[0])
        by = T.launch_thread("blockIdx.y", (b + product.rows - 1) // product.rows)
        tx = T.launch_thread("threadIdx.x", THREADS)
        shared = T.alloc_buffer((product.shared,), weights.arithmetic, scope="shared.dyn")
        scratch = T.alloc_buffer((product.scratch,), scope="shared")

        @T.inline
        def store(i, o, value, second, addend):
            logits[slot_ids[i], o] = value

        T.attr(0, RESIDENT_BLOCKS, RESIDENT)
        launch_dependents()
        product.compute(
            weight, weight, x, b, by * product.rows, _one, _zero,
            bx, 0, shared, scratch, tx, _nothing, store,
        )  # fmt: skip

    return kernel
