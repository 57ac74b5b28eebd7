"""The recurrent state of Gecko (specification 3): its one description.

Function signatures, the runtime's arena, saved states and the metadata are all made from `state_tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator

from gecko_mlc.config import GeckoConfig
from gecko_mlc.formats.library import RECENT_TOKENS, SAMPLING_PARAMETERS, StateTensor
from gecko_mlc.formats.quantization import Quantization
from gecko_mlc.tir_kernels.hardware import Hardware

_PREFILLS = ("prefill", "prefill_logits", "score")
# The functions that take what a token before theirs left in a tensor, and leave something else.
_TOKEN, _CHUNK, _SAMPLE = (*_PREFILLS, "decode"), ("end_chunk",), ("sample",)
_CHANGED_BY = {
    "position": (*_TOKEN, "end_chunk"),
    **dict.fromkeys(("logits", "norm_mean", "norm_var", "final_norm_mean", "final_norm_var", "ema"), _TOKEN),
    **dict.fromkeys(("token", "random", "counts", "recent"), _SAMPLE),
    "sampling": (),
    # Written behind the chunk's tokens so far, until the next chunk takes their place.
    **dict.fromkeys(("keys", "values", "value_scales", "memory_keys"), _CHUNK),
    **dict.fromkeys(("memory", "log_norm", "log_mass", "log_sum", "memory_read"), _CHUNK),
    "memory_sum": (*_PREFILLS, "absorb", "end_chunk"),
}


def state_tensors(config: GeckoConfig, quantization: Quantization, hardware: Hardware) -> Iterator[StateTensor]:
    """The tensors of one slot.

    `position` is (chunk index, offset in the chunk); `random` is (seed low, seed high, tokens drawn);
    `recent` a ring of the last tokens drawn; `counts` how often each was. Keys, values and memory keys
    are two chunk buffers taken in turn by the chunk's parity; keys are rotated by their offset only. Values of int8
    are codes, which `value_scales`, one for each token and head, multiply.

    Machines with an `absorb_tile` write the memory spread over a chunk's tokens (8c): `memory_sum` collects what the
    memory takes in at the chunk's end, `log_mass` and `log_sum` normalize the keys of the previous chunk over positions
    and over features. They read the memory as `memory_read`, rounded to the keys' dtype, where that has 16 bits.
    """
    groups, chunk = config.timenorm_num_groups, config.chunk_size
    heads, cache = config.num_heads, quantization.key_dtype

    def tensor(name: str, *shape: int, dtype: str = "float32") -> StateTensor:
        return StateTensor(name=name, shape=shape, dtype=dtype, changed_by=_CHANGED_BY[name.rpartition(".")[2]])

    yield tensor("position", 2, dtype="int32")
    yield tensor("token", dtype="int32")
    yield tensor("logits", config.num_outputs)
    yield tensor("sampling", len(SAMPLING_PARAMETERS))
    yield tensor("random", 3, dtype="int32")
    yield tensor("counts", config.num_outputs, dtype="int32")
    yield tensor("recent", RECENT_TOKENS, dtype="int32")
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}"
        yield tensor(f"{prefix}.norm_mean", groups)
        yield tensor(f"{prefix}.norm_var", groups)
        yield tensor(f"{prefix}.ema", 2, config.cema_ndim, config.model_dim)
        yield tensor(f"{prefix}.keys", 2, chunk, config.z_dim, dtype=cache)
        yield tensor(f"{prefix}.values", 2, chunk, config.value_dim, dtype=quantization.state_dtype)
        if quantization.state_dtype == "int8":
            yield tensor(f"{prefix}.value_scales", 2, chunk, heads)
        yield tensor(f"{prefix}.memory_keys", 2, chunk, config.z_dim, dtype=cache)
        yield tensor(f"{prefix}.memory", heads, config.head_dim, config.value_head_dim)
        log_norm = tensor(f"{prefix}.log_norm", heads, config.head_dim)
        yield log_norm.model_copy(update={"initial": "minus_infinity"})
        if hardware.absorb_tile is not None:
            yield tensor(f"{prefix}.memory_sum", heads, config.head_dim, config.value_head_dim + config.head_dim)
            yield tensor(f"{prefix}.log_mass", heads, config.head_dim)
            yield tensor(f"{prefix}.log_sum", heads, chunk)
            if cache != "float32":
                yield tensor(f"{prefix}.memory_read", heads, config.head_dim, config.value_head_dim, dtype=cache)
    yield tensor("final_norm_mean", groups)
    yield tensor("final_norm_var", groups)
