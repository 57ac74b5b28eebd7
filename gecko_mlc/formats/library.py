"""What a compiled library says of itself: the contract between the compiler and every runtime.

Pure data, no TVM.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import MAX_JSON_BYTES, check_file, parse_json, validated
from gecko_mlc.formats.group_quantization import GroupLayout, GroupQuantization
from gecko_mlc.formats.launches import DTYPE_BYTES, MAX_BYTES
from gecko_mlc.formats.versions import ABI_VERSION
from gecko_mlc.targets import find

# What a library's file holds before the metadata's JSON, which ends in a zero byte.
METADATA_MARKER = b"\x01gecko-mlc metadata\x01"


class Input(NamedTuple):
    """An argument before the state: extents are numbers or the symbols n, b and `outputs`.

    Those a function writes are its results, in buffers of the caller's.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "int32"
    written: bool = False


_SLOT = Input("slots", (1,))
_SLOTS = Input("slots", ("b",))
_TOKENS = Input("tokens", ("n",))

# Arguments of every function before the state. b ≤ max_batch_size, n ≤ prefill_chunk_size.
FUNCTIONS: dict[str, tuple[Input, ...]] = {
    "prefill": (_TOKENS, _SLOT),
    "prefill_logits": (_TOKENS, Input("result", ("n", "outputs"), "float32", True), _SLOT),
    "score": (
        _TOKENS,
        Input("targets", ("n",)),
        Input("log_probabilities", ("n",), "float32", True),
        Input("entropies", ("n",), "float32", True),
        _SLOT,
    ),
    "decode": (_SLOTS,),
    "absorb": (_SLOTS,),
    "end_chunk": (_SLOTS,),
    "sample": (_SLOTS,),
    "reset_slot": (_SLOTS,),
    "copy_slot": (Input("slots", (2,)),),
}
# The functions that take the parameters, after the state.
PARAMETRIC_FUNCTIONS = frozenset({"prefill", "prefill_logits", "score", "decode"})

# Columns of the state tensor `sampling`.
SAMPLING_PARAMETERS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
# What `sample` draws from logits that are no numbers, of which one is NaN or infinity, or all are minus infinity;
# `decode` takes it for token 0, lest it reads out of bounds.
NO_TOKEN = -1
# How many tokens the state tensor `recent` remembers for a host that reads them late.
RECENT_TOKENS = 64


def functions_of(absorb_tile: int | None) -> dict[str, tuple[Input, ...]]:
    """Of `FUNCTIONS`, those of a library with this `Metadata.absorb_tile`."""
    return {name: inputs for name, inputs in FUNCTIONS.items() if name != "absorb" or absorb_tile is not None}


_Dtype = Annotated[str, Field(pattern=f"^({'|'.join(DTYPE_BYTES)})$")]
_Extent = Annotated[int, Field(strict=True, ge=0, le=2**40)]
_Count = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
_Bytes = Annotated[int, Field(strict=True, ge=0, le=2**53)]


class TensorSpec(BaseModel):
    """Name, shape and dtype of a parameter."""

    model_config = ConfigDict(frozen=True)

    name: str
    shape: tuple[_Extent, ...] = Field(max_length=8)
    dtype: _Dtype

    @model_validator(mode="after")
    def _has_a_size(self) -> TensorSpec:
        if math.prod(self.shape) * DTYPE_BYTES[self.dtype] > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        return self


def quantized_specs(name: str, outputs: int, inputs: int, group: GroupQuantization) -> tuple[TensorSpec, TensorSpec]:
    """`q_weight` and `q_scale` of the matrix `name` [outputs, inputs]."""
    prefix, groups = name.removesuffix("weight"), group.groups(inputs)
    return (
        TensorSpec(name=f"{prefix}q_weight", shape=(outputs, groups * group.words_per_group), dtype="uint32"),
        TensorSpec(name=f"{prefix}q_scale", shape=(outputs, groups), dtype=group.scale_dtype),
    )


class Parameter(TensorSpec):
    """A parameter as the functions take it. With a `layout` it is made when it is loaded, of a matrix [outputs, inputs]
    whose codes and scales are stored."""

    outputs: _Extent = 0
    inputs: _Extent = 0
    layout: GroupLayout | None = None

    @model_validator(mode="after")
    def _fits(self) -> Parameter:
        if self.layout is not None and not self.layout.gives(self.shape, self.dtype, self.outputs, self.inputs):
            raise ValueError("the layout gives another shape or dtype")
        return self

    @property
    def elements(self) -> int:
        """The number of values that it stands for."""
        return math.prod(self.shape) if self.layout is None else self.outputs * self.inputs

    def stored(self) -> tuple[TensorSpec, ...]:
        """What a model folder holds of it: itself, or `q_weight` and `q_scale`."""
        if self.layout is None:
            return (self,)
        return quantized_specs(self.name, self.outputs, self.inputs, self.layout.quantization)


class StateTensor(TensorSpec):
    """A tensor of the recurrent state. `shape` leaves out the leading axis of slots.

    `initial` is the value of every element in a slot that was reset. `changed_by` are the functions that take what a
    token before theirs left in it, and leave something else.
    """

    initial: Literal["zero", "minus_infinity"] = "zero"
    changed_by: tuple[str, ...] = ()


class TargetSpec(BaseModel):
    """The machine a library was compiled for, by its `kind`, a target's name; here the CPU of its code: that of the
    kernels, or the host's that launches them. `features` are the CPU's that the code uses.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    triple: str
    mcpu: str
    features: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """What `info` tells of it, names and values."""
        return [("target", f"{self.kind} {self.triple} {self.mcpu}"), ("CPU features", " ".join(self.features))]


class CUDATarget(TargetSpec):
    """NVIDIA GPUs: the compute capabilities, as 80 for 8.0, that machine code is for (`architectures`) and that PTX is
    for (`ptx`), and the CUDA version that the driver has to support (`minimum_cuda`).
    """

    architectures: tuple[int, ...]
    ptx: tuple[int, ...]
    minimum_cuda: tuple[int, int]

    def has_machine_code(self, capability: int) -> bool:
        """Whether a GPU of this compute capability runs the library's machine code.

        Code for one runs on later ones of the same major version; but code for 8.7, of Tegra, on no other,
        nor code for others there.
        """
        return any(
            a // 10 == capability // 10 and a <= capability and (a == 87) == (capability == 87)
            for a in self.architectures
        )

    def runs_on(self, capability: int) -> bool:
        """Whether a GPU of this compute capability runs the library, if need be after its driver compiled the PTX."""
        return self.has_machine_code(capability) or any(p <= capability for p in self.ptx)

    def rows(self) -> list[tuple[str, str]]:
        """See `TargetSpec`."""
        return [
            *super().rows(),
            ("machine code", " ".join(f"sm_{a}" for a in self.architectures)),
            ("PTX", " ".join(f"compute_{p}" for p in self.ptx)),
            ("CUDA", f"{'.'.join(map(str, self.minimum_cuda))} or later"),
        ]


def _of_its_kind(target: Any) -> Any:
    """A target in JSON, by the class that its kind's entry names."""
    if not isinstance(target, dict):
        return target
    if not isinstance(kind := target.get("kind"), str):
        raise ValueError("the kind of the target is missing")
    return find(kind).spec.model_validate(target)


class Metadata(BaseModel):
    """The JSON in a library's file, after `METADATA_MARKER`; its `_metadata` returns the same."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, protected_namespaces=())

    abi_version: int
    model_type: Literal["gecko"]
    config: dict[str, Any] = Field(alias="model_config")
    quantization: str
    state_dtype: str
    target: Annotated[SerializeAsAny[TargetSpec], BeforeValidator(_of_its_kind)]
    max_batch_size: _Count
    prefill_chunk_size: _Count
    # Tokens of a chunk after which `absorb` is called, before the last of them is decoded; prefill does it itself.
    absorb_tile: _Count | None = None
    parameters: tuple[Parameter, ...]
    state: tuple[StateTensor, ...]
    sampling_parameters: tuple[str, ...] = SAMPLING_PARAMETERS
    recent_tokens: _Count = RECENT_TOKENS
    # Bytes of planned storage of each function.
    workspace_bytes: dict[str, _Bytes]
    tvm_version: str


def marked_text(path: Path, marker: bytes) -> bytes:
    """What the library at `path` holds after a marker, up to a zero byte: nothing where there is none.

    Raises `GeckoError` for a file that is missing or cannot be read.
    """
    try:
        check_file(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(marker)
            end = content.find(b"\0", start)
            if end - start > MAX_JSON_BYTES:
                raise GeckoError(f"{path}: {end - start:,} bytes of metadata, expected at most {MAX_JSON_BYTES:,}")
            return content[start + len(marker) : end] if 0 <= start < end else b""
    except FileNotFoundError:
        raise GeckoError(f"{path}: no such library", "`gecko-mlc compile` makes one") from None
    except ValueError:  # An empty file.
        return b""
    except OSError as error:
        raise GeckoError(f"{path}: {error.strerror}") from None


def read_metadata(path: Path) -> Metadata:
    """The metadata of the library at `path`.

    Raises `GeckoError` for a file that is missing, is no library, or is one of another ABI or an unknown target.
    """
    text = marked_text(path, METADATA_MARKER)
    if not text:
        raise GeckoError(f"{path}: not a library of gecko-mlc, or not all of one: it holds no metadata")
    mend = "compile it again with `gecko-mlc compile`"
    try:
        value = parse_json(text.decode(), "its metadata")
        if (version := value.get("abi_version")) != ABI_VERSION:
            raise GeckoError(f"ABI version {version!r}, expected {ABI_VERSION}", mend)
        return validated(Metadata, value, "its metadata")
    except GeckoError as error:
        raise GeckoError(f"{path}: {error.message}", error.making) from None
    except UnicodeDecodeError:
        raise GeckoError(f"{path}: its metadata cannot be read, the file is damaged", mend) from None
