"""What tokens cost: bytes that decoding has to move, operations that prefill has to do (specification 6)."""

from __future__ import annotations

import math

from gecko_mlc.formats.library import Metadata
from gecko_mlc.formats.weights import NUMPY_DTYPES


def decode_bytes(metadata: Metadata, position: int, sequences: int = 1, tokens: int = 1) -> int:
    """Bytes that decoding so many tokens of each of some sequences has to move, the first at `position` (specification
    6).

    Weights are read once for all sequences. For each, the keys and values it sees and, from the third chunk on, the
    memory are read once, the EMA's state is read and written. What a row takes of the embedding, the rotary tables and
    activations is left out.
    """
    c = metadata.config
    untied = not c["share_emb"]
    weights = sum(
        math.prod(p.shape) * NUMPY_DTYPES[p.dtype].itemsize
        for p in metadata.parameters
        if not p.name.startswith("rope.") and not (untied and p.name == "embed.weight")
    )
    sizes = {s.name: NUMPY_DTYPES[s.dtype].itemsize for s in metadata.state}
    key_bytes, value_bytes = c["z_dim"] * sizes["layers.0.keys"], c["value_dim"] * sizes["layers.0.values"]
    scale_bytes = c["num_heads"] * sizes.get("layers.0.value_scales", 0)
    window = keys_seen(metadata, position, tokens) * (key_bytes + value_bytes + scale_bytes)
    # A GPU's build reads a copy in the caches' dtype.
    memory_size = sizes.get("layers.0.memory_read", sizes["layers.0.memory"])
    memory = _memory_elements(metadata) * memory_size * _from(2 * c["chunk_size"], position, tokens)
    ema = 2 * 8 * c["model_dim"] * c["cema_ndim"]
    return int(tokens * weights + sequences * c["num_layers"] * (window + memory + tokens * ema))


def prefill_flop(metadata: Metadata, start: int, count: int) -> int:
    """Operations of the products, attention and memory of `count` tokens from `start` on (specification 6).

    The head is counted once. Positions of the first chunk take nothing into the memory and those of the second
    find it empty, as it is when they are taken in.
    """
    c = metadata.config
    layers, size = c["num_layers"], c["chunk_size"]
    matrices = sum(
        p.elements
        for p in metadata.parameters
        if p.name.endswith(".weight") and p.name.startswith("layers.") and len(p.shape) == 2
    )
    outputs = next(s.shape[0] for s in metadata.state if s.name == "logits")
    attended = keys_seen(metadata, start, count) * (c["z_dim"] + c["value_dim"])
    reads = _from(2 * size, start, count)
    writes = sum(_taken_in(metadata, least, start, count) for least in (size, 2 * size))
    of_layers = attended + (reads + writes) * _memory_elements(metadata)
    return int(2 * matrices * count + 2 * c["model_dim"] * outputs + 2 * layers * of_layers)


def keys_seen(metadata: Metadata, position: int, tokens: int = 1) -> int:
    """Positions that the attention of so many tokens sees, the first at `position`: each its own, those before in its
    chunk, one chunk."""
    size = int(metadata.config["chunk_size"])

    def before(end: int) -> int:
        chunks, rest = divmod(end, size)
        triangles = chunks * size * (size + 1) // 2 + rest * (rest + 1) // 2
        return triangles + size * max(end - size, 0)

    return before(position + tokens) - before(position)


def _memory_elements(metadata: Metadata) -> int:
    c = metadata.config
    return int(c["z_dim"] * (c["value_dim"] // c["num_heads"]))


def _from(least: int, position: int, tokens: int) -> int:
    """How many of these tokens are at `least` or later."""
    return max(position + tokens - max(position, least), 0)


def _taken_in(metadata: Metadata, least: int, position: int, tokens: int) -> int:
    """Positions of chunks before that the memory takes in with those of these tokens that are at `least`, a chunk's
    beginning, or later: with each one on a GPU, else all of a chunk with the last of the next."""
    if metadata.absorb_tile is not None:
        return _from(least, position, tokens)
    size = int(metadata.config["chunk_size"])
    return size * max((position + tokens) // size - max(position, least) // size, 0)
