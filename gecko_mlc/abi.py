"""What a compiled library says of itself: the contract between the compiler and every runtime.

Pure data, no TVM. `ABI_VERSION` changes whenever a function's arguments, the state's meaning or the
metadata's layout do.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ABI_VERSION = 1

# (arguments before state and parameters), by function. b ≤ max_batch_size, n ≤ prefill_chunk_size.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "prefill": ("tokens[n]", "slots[1]"),
    "prefill_logits": ("tokens[n]", "slots[1]"),
    "score": ("tokens[n]", "targets[n]", "slots[1]"),
    "decode": ("slots[b]",),
    "end_chunk": ("slots[b]",),
    "sample": ("slots[b]",),
    "reset_slot": ("slots[b]",),
    "copy_slot": ("slots[2]",),
}
# The functions that take the parameters, after the state.
PARAMETRIC_FUNCTIONS = frozenset({"prefill", "prefill_logits", "score", "decode"})


class TensorSpec(BaseModel):
    """Name, shape and dtype of a parameter."""

    model_config = ConfigDict(frozen=True)

    name: str
    shape: tuple[int, ...]
    dtype: str


class StateTensor(TensorSpec):
    """A tensor of the recurrent state. `shape` leaves out the leading axis of slots.

    `initial` is the value of every element in a slot that was reset.
    """

    initial: Literal["zero", "minus_infinity"] = "zero"


class TargetSpec(BaseModel):
    """The machine a library was compiled for; `features` are the CPU's that its kernels use."""

    model_config = ConfigDict(frozen=True)

    kind: str
    triple: str
    mcpu: str
    features: tuple[str, ...]


class Metadata(BaseModel):
    """The JSON that a library's `_metadata` returns."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, protected_namespaces=())

    abi_version: int
    model_type: Literal["gecko"]
    config: dict[str, Any] = Field(alias="model_config")
    quantization: str
    target: TargetSpec
    max_batch_size: int
    prefill_chunk_size: int
    parameters: tuple[TensorSpec, ...]
    state: tuple[StateTensor, ...]
    # Bytes of planned storage of each function.
    workspace_bytes: dict[str, int]
    tvm_version: str
