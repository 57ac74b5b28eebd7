"""The machines that are linked for, by what users call them."""

from __future__ import annotations

_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_SYSTEMS = {("linux",): "linux-gnu", ("linux", "gnu"): "linux-gnu", ("linux", "musl"): "linux-musl"}


def host_triple(host: str) -> str:
    """The LLVM triple of `host`: linux-x86_64, linux-aarch64, or a triple like aarch64-linux-gnu.

    Raises `ValueError` with these for a machine that nothing is linked for.
    """
    first, *rest = host.lower().split("-")
    if first == "linux" and len(rest) == 1:
        first, rest = rest[0], [first]
    if rest and rest[0] != "linux":  # A vendor, which makes no difference.
        rest = rest[1:]
    architecture, system = _ARCHITECTURES.get(first), _SYSTEMS.get(tuple(rest))
    if architecture is None or system is None:
        raise ValueError(
            f"--host {host!r}: not supported; expected linux-x86_64 or linux-aarch64, or a triple of one of them, like"
            " aarch64-linux-gnu"
        )
    return f"{architecture}-{system}"
