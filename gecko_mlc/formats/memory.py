"""Too little memory: how errors of many kinds say it, and how this package does."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from gecko_mlc.formats.errors import GeckoError

# In errors of NumPy, TVM, the dynamic linker, Python's threads and CUDA.
_WORDS = (
    "unable to allocate",
    "cannot allocate memory",
    "failed to map segment",
    "out of memory",
    "bad_alloc",
    "can't start new thread",
)


class MemoryShortage(GeckoError):
    """There is less memory than is needed: `needs` are bytes by what takes them, `free` what is free, if known."""

    def __init__(self, needs: Mapping[str, int], free: int | None) -> None:
        parts = [f"{count:,} bytes for {name}" for name, count in needs.items()]
        # Where it would do, it is the program itself that takes the rest.
        beside = " beside the program itself" if free is not None and sum(needs.values()) <= free else ""
        facts = [f"needed are {', '.join(parts)}{beside}"] if parts else []
        if free is not None:
            facts.append(f"{free:,} bytes are free")
        facts.append("a smaller quantization or state dtype, fewer slots or shorter texts take less")
        super().__init__(f"not enough memory: {'; '.join(facts)}")


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that there is too little memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return any(word in str(error).lower() for word in _WORDS)
