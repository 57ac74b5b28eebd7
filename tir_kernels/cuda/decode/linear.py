"""Matrix products of decode with their epilogues, for CUDA: one token each of b slots. Shapes of weights are those of
the matrices; they lie in memory in the format of `Matrices`."""

import functools
import itertools

from tvm import tirx
from tvm.script import tirx as T

from gecko_mlc.tir_kernels.cuda.gemv.gemv import gemv
from gecko_mlc.tir_kernels.cuda.gemv.prologue import NormPrologue
from gecko_mlc.tir_kernels.cuda.gemv.schedule import THREADS, Block, Epilogue, Matrices, Operands, Schedule, launch
from gecko_mlc.tir_kernels.cuda.ptx.activation import silu
from gecko_mlc.tir_kernels.cuda.quantized.activations import QuantizedRow, row_shape
from gecko_mlc.tir_kernels.cuda.quantized.quantize import quantize_vectors
from gecko_mlc.tir_kernels.expressions import f32
from gecko_mlc.tir_kernels.kernel import kernel
from gecko_mlc.tir_kernels.shapes import GroupNorm


@functools.cache
def projections(
    norm: GroupNorm, z_dim: int, value_dim: int, matrices: Matrices, incoming: QuantizedRow | None = None
) -> tirx.PrimFunc:
    """Kernel (u [b, D], c [b, D], norm weight [D] if affine, wv [E, D], bias [E], wz [Z, D], bias [Z], wr [E, D],
    bias [E], wh1 [D, D], bias [D], x [b, D]) → v [b, E], z [b, Z], r [b, E], h [b, D].

    With mx the group RMS norm of c (2.4), v = silu(wv u + b), z = wz mx + b, r = silu(wr mx + b),
    h = x + wh1 mx + b (2.8). All but the weights is fp32. Rows u and c may be quantized (`incoming`), c then with the
    gain and the squares of its norm, which has one group and, for this kernel, no weight.
    """
    dim, weights = norm.dim, matrices.weights
    affine = norm.affine and incoming is None
    extents = value_dim, z_dim, value_dim, dim
    prologue = NormPrologue(norm.groups, norm.eps, centred=False)
    plain = gemv(dim, extents, matrices, incoming=incoming)
    normed = gemv(dim, extents, matrices, norm=prologue, incoming=incoming)
    width, dtype = row_shape(dim, incoming)
    # The first block of each weight, and the end.
    ends = [0, *itertools.accumulate(plain.blocks)]
    schedule = Schedule(ends[4], plain.rows, max(plain.shared, normed.shared), weights.arithmetic, normed.scratch)

    @kernel(norm_weight=affine)
    def project(
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
        b = T.int32()
        u = T.match_buffer(u_handle, (b, width), dtype)
        c = T.match_buffer(c_handle, (b, width), dtype)
        x = T.match_buffer(x_handle, (b, dim), "float32")
        v = T.match_buffer(v_handle, (b, value_dim), "float32")
        z = T.match_buffer(z_handle, (b, z_dim), "float32")
        r = T.match_buffer(r_handle, (b, value_dim), "float32")
        h = T.match_buffer(h_handle, (b, dim), "float32")

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
        def multiply(product, rows, weight, block, matrix, store, addend):
            product.compute(
                Operands((weight,), rows, b, lambda k: f32(1) + norm_weight[k] if affine else f32(1)),
                Block(block.index - ends[matrix], matrix, block.row, block.tx, block.shared, block.scratch),
                Epilogue(store, addend),
            )

        @T.inline
        def body(block):
            if block.index < ends[1]:
                multiply(plain, u, wv, block, 0, store_v, lambda i, o: wv_bias[o])
            else:
                if block.index < ends[2]:
                    multiply(normed, c, wz, block, 1, store_z, lambda i, o: wz_bias[o])
                else:
                    if block.index < ends[3]:
                        multiply(normed, c, wr, block, 2, store_r, lambda i, o: wr_bias[o])
                    else:
                        multiply(normed, c, wh1, block, 3, store_h, lambda i, o: x[i, o] + wh1_bias[o])

        launch(schedule, b, body)

    return project


@functools.cache
def linear_residual(
    in_features: int,
    out_features: int,
    matrices: Matrices,
    scaled: bool = False,
    incoming: QuantizedRow | None = None,
) -> tirx.PrimFunc:
    """Kernel (y [b, K], weight [O, K], alpha [O] if scaled, residual [b, O]) → residual + alpha ⊙ product, [b, O]; all
    but the weight fp32, or y quantized (`incoming`)."""
    weights = matrices.weights
    product = gemv(in_features, (out_features,), matrices, incoming=incoming)
    width, dtype = row_shape(in_features, incoming)

    @kernel(scale=scaled)
    def multiply(
        x_handle: T.handle,
        weight: T.Buffer(weights.shape(out_features, in_features), weights.dtype),
        scale: T.Buffer((out_features,), "float32"),
        residual_handle: T.handle,
        y_handle: T.handle,
    ):
        b = T.int32()
        x = T.match_buffer(x_handle, (b, width), dtype)
        residual = T.match_buffer(residual_handle, (b, out_features), "float32")
        y = T.match_buffer(y_handle, (b, out_features), "float32")

        @T.inline
        def store(i, o, value, second, addend):
            y[i, o] = addend + (scale[o] if scaled else f32(1)) * value

        @T.inline
        def body(block):
            product.compute(Operands((weight,), x, b), block, Epilogue(store, lambda i, o: residual[i, o]))

        launch(product.schedule(weights.arithmetic), b, body)

    return multiply


@functools.cache
def gate(
    norm: GroupNorm, hidden: int, swiglu: bool, matrices: Matrices, outgoing: QuantizedRow | None = None
) -> tirx.PrimFunc:
    """Kernel (y [b, D], norm weight [D] and bias [D] if affine, fc1 [F, D], fc3 [F, D] if swiglu) → [b, F].

    With n the group layer norm of y, silu(fc1 n) ⊙ fc3 n, or silu(fc1 n) (2.8); all but the weights is fp32, or the
    result quantized (`outgoing`).
    """
    dim, affine, weights = norm.dim, norm.affine, matrices.weights
    prologue = NormPrologue(norm.groups, norm.eps, centred=True)
    product = gemv(dim, (hidden,), matrices, 1 + swiglu, prologue, outgoing=outgoing)
    width, dtype = row_shape(hidden, outgoing)
    # Outputs of a block that are kept to be quantized.
    kept = product.max_outputs if outgoing is not None else 0

    @kernel(norm_weight=affine, norm_bias=affine, fc3=swiglu)
    def multiply(
        x_handle: T.handle,
        norm_weight: T.Buffer((dim,), "float32"),
        norm_bias: T.Buffer((dim,), "float32"),
        fc1: T.Buffer(weights.shape(hidden, dim), weights.dtype),
        fc3: T.Buffer(weights.shape(hidden, dim), weights.dtype),
        y_handle: T.handle,
    ):
        b = T.int32()
        x = T.match_buffer(x_handle, (b, dim), "float32")
        y = T.match_buffer(y_handle, (b, width), dtype)

        @T.inline
        def body(block):
            @T.inline
            def store(i, o, value, second, addend):
                if outgoing is not None:
                    block.scratch[product.scratch + o - product.first_output(block.index, 0)] = (
                        silu(value) * second if swiglu else silu(value)
                    )
                else:
                    y[i, o] = silu(value) * second if swiglu else silu(value)

            product.compute(
                Operands(
                    (fc1, fc3) if swiglu else (fc1,),
                    x,
                    b,
                    lambda k: f32(1) + norm_weight[k] if affine else f32(1),
                    lambda k: norm_bias[k] if affine else f32(0),
                ),
                block,
                Epilogue(store),
            )
            if outgoing is not None:
                first: T.let = product.first_output(block.index, 0) // outgoing.codes
                stop: T.let = T.min(product.first_output(block.index + 1, 0), hidden) // outgoing.codes
                T.tvm_storage_sync("shared")
                quantize_vectors(outgoing, kept // outgoing.codes, THREADS)(
                    block.scratch, product.scratch, first, stop - first, y, block.row, block.tx
                )

        launch(product.schedule(weights.arithmetic, kept), b, body)

    return multiply


@functools.cache
def head(dim: int, outputs: int, slots: int, matrices: Matrices) -> tirx.PrimFunc:
    """Kernel (x [b, D], weight [O, D], slots [b], logits [S, O]): the product, into the slots' logits."""
    weights = matrices.weights
    product = gemv(dim, (outputs,), matrices)

    @kernel
    def multiply(
        x_handle: T.handle,
        weight: T.Buffer(weights.shape(outputs, dim), weights.dtype),
        slots_handle: T.handle,
        logits: T.Buffer((slots, outputs), "float32"),
    ):
        b = T.int32()
        x = T.match_buffer(x_handle, (b, dim), "float32")
        slot_ids = T.match_buffer(slots_handle, (b,), "int32")

        @T.inline
        def store(i, o, value, second, addend):
            logits[slot_ids[i], o] = value

        @T.inline
        def body(block):
            product.compute(Operands((weight,), x, b), block, Epilogue(store))

        launch(product.schedule(weights.arithmetic), b, body)

    return multiply
