"""Too little memory is said with what is needed and what is free: ahead where that is clear, else when it turns out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gecko_mlc.formats.library import Metadata, TensorSpec
from gecko_mlc.formats.memory import MemoryShortage, is_shortage
from gecko_mlc.formats.weights import NUMPY_DTYPES

# What is free is an estimate: what it is only a little short of is tried.
_CLEARLY = 1.05


@contextmanager
def told_of_shortage(needs: Mapping[str, int], free: int | None) -> Iterator[None]:
    """Run a block that takes the bytes of `needs`, by what takes them, where there are `free`.

    Raises `MemoryShortage` before it when that is clearly not enough, and in place of the errors of too little memory
    that it raises.
    """
    if free is not None and sum(needs.values()) > _CLEARLY * free:
        raise MemoryShortage(needs, free)
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryShortage) or not is_shortage(error):
            raise
        raise MemoryShortage(needs, free) from None


def model_needs(metadata: Metadata) -> dict[str, int]:
    """The bytes that running a library takes."""
    return {
        "the weights": sum(map(nbytes, metadata.parameters)),
        "the state": metadata.max_batch_size * sum(map(nbytes, metadata.state)),
        "the workspace": workspace_bytes(metadata),
    }


def workspace_bytes(metadata: Metadata) -> int:
    """The most that a function takes while it runs."""
    return max(metadata.workspace_bytes.values(), default=0)


def nbytes(tensor: TensorSpec) -> int:
    """Bytes of a tensor."""
    return math.prod(tensor.shape) * int(NUMPY_DTYPES[tensor.dtype].itemsize)
