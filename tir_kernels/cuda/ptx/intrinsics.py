"""Instructions of NVIDIA GPUs that TensorIR has no loop for, each a device function with its source.

A source is guarded by its own name, so that whoever compiles the kernels for something else than a GPU can
define the function first.
"""

import functools
from collections.abc import Sequence

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.expressions import Expr

# An attribute of a kernel: blocks that a multiprocessor is to have at a time, which bounds their registers.
RESIDENT_BLOCKS = "tirx.launch_bounds_min_blocks_per_sm"


class device_function:
    """A device function: called in TensorIR, it is a call. `uses` are those that its source calls."""

    def __init__(self, name: str, source: str, returns: str = "void", uses: Sequence["device_function"] = ()) -> None:
        self.name, self.returns = name, returns
        guarded = f"#ifndef {name}\n#define {name} {name}\n{source.strip()}\n#endif\n"
        self.source = "".join(function.source for function in uses) + guarded

    def __call__(self, *arguments: Expr) -> Expr:
        return T.cuda.func_call(self.name, *arguments, source_code=self.source, return_type=self.returns)


# Overlapped starts (programmatic dependent launch): a kernel that waits may be started early. Before it has waited it
# writes nothing, and reads nothing that an earlier kernel of its function writes.
wait_for_predecessor = device_function(
    "gecko_wait_for_predecessor",
    """
__device__ __forceinline__ void gecko_wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
""",
)
launch_dependents = device_function(
    "gecko_launch_dependents",
    """
__device__ __forceinline__ void gecko_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
""",
)

# (shared destination, global source, present): 16 bytes on their way; zeros where the int is 0.
copy_16_if = device_function(
    "gecko_copy_16_if",
    """
__device__ __forceinline__ void gecko_copy_16_if(void* destination, const void* source, int present) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(destination));
  int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(bytes) : "memory");
}
""",
)
# The same of 8 bytes.
copy_8_if = device_function(
    "gecko_copy_8_if",
    """
__device__ __forceinline__ void gecko_copy_8_if(void* destination, const void* source, int present) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(destination));
  int bytes = present ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(source), "r"(bytes) : "memory");
}
""",
)
commit_copies = device_function(
    "gecko_commit_copies",
    """
__device__ __forceinline__ void gecko_commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
""",
)


def wait_copies(pending: int) -> Expr:
    """Wait until at most `pending` groups of the thread's copies are on their way."""
    name = f"gecko_wait_copies_{pending}"
    source = (
        f'__device__ __forceinline__ void {name}() {{ asm volatile("cp.async.wait_group {pending};" ::: "memory"); }}'
    )
    return device_function(name, source)()


# (condition, address, address): one of two addresses.
select_address = device_function(
    "gecko_select_address",
    """
__device__ __forceinline__ const void* gecko_select_address(bool condition, const void* a, const void* b) {
  return condition ? a : b;
}
""",
    "handle",
)

# (registers[4] uint32, shared row address): four 8×8 tiles of 16-bit values; lanes 8i to 8i+7 give the
# addresses of the rows of tile i. Transposed, each tile is.
load_matrices = device_function(
    "gecko_load_matrices",
    """
__device__ __forceinline__ void gecko_load_matrices(unsigned* registers, const void* row) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address) : "memory");
}
""",
)
load_matrices_transposed = device_function(
    "gecko_load_matrices_transposed",
    """
__device__ __forceinline__ void gecko_load_matrices_transposed(unsigned* registers, const void* row) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address) : "memory");
}
""",
)


@functools.cache
def multiply_accumulate(dtype: str) -> device_function:
    """(sums[4] fp32, a[4] uint32, b[2] uint32): sums [16, 8] += a [16, 16] · b [16, 8] of float16 or
    bfloat16, in the fragments of `mma.m16n8k16` (a by rows, b by columns)."""
    name = {"float16": "gecko_mma_f16", "bfloat16": "gecko_mma_bf16"}[dtype]
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    source = f"""
__device__ __forceinline__ void {name}(float* sums, const unsigned* a, const unsigned* b) {{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
               "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}}
"""
    return device_function(name, source)


# (registers, source): 16 bytes.
load_registers = device_function(
    "gecko_load_registers",
    """
__device__ __forceinline__ void gecko_load_registers(void* registers, const void* source) {
  uint4 value = *static_cast<const uint4*>(source);
  memcpy(registers, &value, 16);
}
""",
)

# (registers, source): 8 bytes.
load_registers_8 = device_function(
    "gecko_load_registers_8",
    """
__device__ __forceinline__ void gecko_load_registers_8(void* registers, const void* source) {
  uint2 value = *static_cast<const uint2*>(source);
  memcpy(registers, &value, 8);
}
""",
)

# (destination, registers): 16 bytes.
store_registers = device_function(
    "gecko_store_registers",
    """
__device__ __forceinline__ void gecko_store_registers(void* destination, const void* registers) {
  uint4 value;
  memcpy(&value, registers, 16);
  *static_cast<uint4*>(destination) = value;
}
""",
)


@functools.cache
def widen_vector(dtype: str) -> device_function:
    """(values[4] fp32, registers): the values in the bytes of four of `dtype`."""
    # Two bfloat16 are the upper halves of two fp32, a byte is put at the end of the mantissa of 2²³: conversions of
    # integers are slow. Packed until they are widened, values take half the registers, or a quarter.
    body = {
        "int8": """unsigned bytes = registers[0] ^ 0x80808080u;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned word = __byte_perm(bytes, 0x4b000000u, 0x7440 + i);
    memcpy(&values[i], &word, 4);
    values[i] -= 8388736.0f;
  }""",
        "float32": "memcpy(values, registers, 16);",
        "bfloat16": """unsigned words[4] = {registers[0] << 16, registers[0] & 0xffff0000u,
                       registers[1] << 16, registers[1] & 0xffff0000u};
  memcpy(values, words, 16);""",
        "float16": """half halves[4];
  memcpy(halves, registers, 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = static_cast<float>(halves[i]);""",
    }[dtype]
    name = f"gecko_widen_{dtype}"
    source = f"""
__device__ __forceinline__ void {name}(float* values, const unsigned* registers) {{
  {body}
}}
"""
    return device_function(name, source)


def _lanes(operation: str, combined: str, lanes: int, stride: int, dtype: str) -> device_function:
    name = f"gecko_lane_{operation}_{lanes}_{stride}" + f"_{dtype}" * (dtype != "float32")
    kind = {"float32": "float", "int32": "int"}[dtype]
    source = f"""
__device__ __forceinline__ {kind} {name}({kind} value) {{
#pragma unroll
  for (int lane = {lanes // 2}; lane > 0; lane /= 2) {{
    {kind} other = __shfl_xor_sync(0xffffffffu, value, lane * {stride});
    value = {combined};
  }}
  return value;
}}
"""
    return device_function(name, source, dtype)


@functools.cache
def lane_sum(lanes: int, stride: int = 1, dtype: str = "float32") -> device_function:
    """(value): its sum over `lanes` lanes that are `stride` apart, both powers of two, in each of them."""
    return _lanes("sum", "value + other", lanes, stride, dtype)


@functools.cache
def lane_maximum(lanes: int, stride: int = 1) -> device_function:
    """(value): its maximum over `lanes` lanes that are `stride` apart, both powers of two, in each of them."""
    return _lanes("maximum", "fmaxf(value, other)", lanes, stride, "float32")


warp_sum, warp_maximum = lane_sum(32), lane_maximum(32)
