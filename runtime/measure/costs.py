"""What tokens cost: bytes that decoding has to move, operations that prefill has to do (specification 6)."""

from __future__ import annotations

import math

from gecko_mlc.formats.library import Metadata
from gecko_mlc.formats.weights import NUMPY_DTYPES


def decode_bytes(metadata: Metadata, position: int, sequences: int = 1) -> int:
    """Bytes that decoding a token of each of some sequences at `position` has to move (specification 6).

    Weights are read once for all. For each, the keys and values it sees and, from the third chunk on, the memory are
    read once, the EMA's state is read and written. What a row takes of the embedding, the rotary tables and
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
    window = keys_seen(metadata, position) * (key_bytes + value_bytes + scale_bytes)
    # A GPU's build reads a copy in the caches' dtype.
    memory_size = sizes.get("layers.0.memory_read", sizes["layers.0.memory"])
    memory = _memory_elements(metadata) * memory_size if position >= 2 * c["chunk_size"] else 0
    ema = 2 * 8 * c["model_dim"] * c["cema_ndim"]
    return int(weights + sequences * c["num_layers"] * (window + memory + ema))


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
    total = 2 * matrices * count + 2 * c["model_dim"] * outputs
    product = 2 * layers * _memory_elements(metadata)
    for position in range(start, start + count):
        total += 2 * layers * keys_seen(metadata, position) * (c["z_dim"] + c["value_dim"])
        taken_in = _positions_taken_in(metadata, position)
        total += taken_in * product + (1 + taken_in) * product * (position >= 2 * size)
    return int(total)


def keys_seen(metadata: Metadata, position: int) -> int:
    """Positions that the attention of the token at `position` sees: its own, those before in its chunk, one chunk."""
    chunk, offset = divmod(position, metadata.config["chunk_size"])
    return int(offset + 1 + (metadata.config["chunk_size"] if chunk else 0))


def _memory_elements(metadata: Metadata) -> int:
    c = metadata.config
    return int(c["z_dim"] * (c["value_dim"] // c["num_heads"]))


def _positions_taken_in(metadata: Metadata, position: int) -> int:
    """Positions of the chunk before that the memory takes in with this token: one on a GPU, else all with the last."""
    chunk, offset = divmod(position, metadata.config["chunk_size"])
    size = int(metadata.config["chunk_size"])
    if chunk == 0:
        return 0
    return size * (offset == size - 1) if metadata.absorb_tile is None else 1
