"""What all GEMVs share, for CUDA: their launch, operands and epilogue, and how weights are read.

A kernel launches blocks of `Schedule`, in each of which `GEMV.compute` multiplies rows of activations by some outputs
of a weight matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tvm.script import tirx as T

from gecko_mlc.formats.group_quantization import WeightFormat
from gecko_mlc.tir_kernels.cuda.ptx.intrinsics import RESIDENT_BLOCKS, device_function, launch_dependents
from gecko_mlc.tir_kernels.expressions import Expr, f32
from gecko_mlc.tir_kernels.hardware import CUDA, USUAL_SHARED_BYTES

# Threads of a block, and blocks of a multiprocessor.
THREADS, BLOCKS_PER_SM = 256, 2
WARPS = THREADS // 32
# Blocks that fill a large GPU.
BLOCKS = 264


class Matrices(NamedTuple):
    """What decides how matrices are multiplied: their format, the most rows of activations, the hardware."""

    weights: WeightFormat
    rows: int
    hardware: CUDA


class Operands(NamedTuple):
    """One weight [O, K], or two; activations x [b, K]; gain(k) and shift(k) of the norm in the prologue."""

    weights: tuple[Any, ...]
    x: Any
    b: Expr
    gain: Callable[[Expr], Expr] = lambda k: f32(1)
    shift: Callable[[Expr], Expr] = lambda k: f32(0)


class Block(NamedTuple):
    """A thread's place in a launch: block `index` of the blocks of weight number `matrix`, the first of its rows of
    activations, and thread `tx` of it; with the block's buffers in shared memory."""

    index: Expr
    matrix: int
    row: Expr
    tx: Expr
    shared: Any
    scratch: Any


class Epilogue(NamedTuple):
    """An inline store(i, o, value, second, addend) takes output o of row i, of each weight; addend(i, o) is read while
    products are made."""

    store: Any
    addend: Callable[[Expr, Expr], Expr] = lambda i, o: f32(0)


class Schedule(NamedTuple):
    """Blocks of a launch along the outputs, activation rows of a block, and the elements of its buffers in shared
    memory: dynamic ones of `dtype`, and fp32 `scratch`."""

    blocks: int
    rows: int
    shared: int
    dtype: str
    scratch: int


class GEMV(NamedTuple):
    """Products of a few rows with each of some matrices.

    `blocks` are those of each matrix, `rows`, `shared` and `scratch` as in `Schedule`. `compute` is an inline
    (operands: Operands, block: Block, epilogue: Epilogue). Where `first_output` is known, a block has up to
    `max_outputs`, from first_output(index, matrix) on.
    """

    blocks: list[int]
    rows: int
    shared: int
    scratch: int
    compute: Any
    max_outputs: int = 0
    first_output: Any = None

    def schedule(self, dtype: str, scratch: int = 0) -> Schedule:
        """The launch of one product, with `scratch` more."""
        return Schedule(self.blocks[0], self.rows, self.shared, dtype, scratch + self.scratch)


@T.inline
def launch(schedule, b, body):
    """Launch body(block) for b rows of activations."""
    bx = T.launch_thread("blockIdx.x", schedule.blocks)
    by = T.launch_thread("blockIdx.y", (b + schedule.rows - 1) // schedule.rows)
    tx = T.launch_thread("threadIdx.x", THREADS)
    shared = T.alloc_buffer((schedule.shared,), schedule.dtype, scope="shared.dyn")
    scratch = T.alloc_buffer((schedule.scratch,), scope="shared")
    T.attr(0, RESIDENT_BLOCKS, BLOCKS_PER_SM)
    launch_dependents()
    body(Block(bx, 0, by * schedule.rows, tx, shared, scratch))


def shared_elements(count: int, size: int, scratch: int) -> int:
    """How many elements of `size` bytes to have in dynamic shared memory for `count` of them, beside `scratch` fp32 in
    static memory: TVM asks for more than the usual only for kernels whose dynamic part alone is more."""
    return count if count * size + 4 * scratch <= USUAL_SHARED_BYTES else max(count, USUAL_SHARED_BYTES // size)


# (registers, global source, present): 16 bytes that are read once, or nothing when the int is 0. A branch around it
# would cut the loop in pieces that are scheduled one by one. It is not `ld.global.nc`, which would not be before the
# wait for the predecessor: compilers move that past any barrier, to where its value is used.
load_stream = device_function(
    "gecko_load_stream",
    """
__device__ __forceinline__ void gecko_load_stream(unsigned* registers, const void* source, int present) {
#ifdef __CUDA_ARCH__
  asm volatile("{.reg .pred present; setp.ne.s32 present, %5, 0;"
               "@present ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
               : "+r"(registers[0]), "+r"(registers[1]), "+r"(registers[2]), "+r"(registers[3])
               : "l"(source), "r"(present) : "memory");
#else
  if (present) memcpy(registers, source, 16);
#endif
}
""",
)


# The loads before stay before the loads after it: a compiler gathers them at the end of a loop, and none is on its way
# meanwhile.
keep_order = device_function(
    "gecko_keep_order",
    """
__device__ __forceinline__ void gecko_keep_order() { __syncwarp(); }
""",
)
