"""The configuration of a Gecko model (specification section 0) and the presets."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

# Fields that do not change inference: of the reference's ModelConf, and of what Hugging Face's tools write, those of
# its PretrainedConfig and of the generation that older ones keep there.
_IGNORED = """
    attention_dropout dropout efficient_attn hidden_dropout init_mode memory_efficient_norm query_activation

    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _experts_implementation_internal _name_or_path architectures attention_probs_dropout_prob
    attn_implementation auto_map bos_token_id chunk_size_feed_forward classifier_dropout cross_attention_hidden_size
    custom_pipelines decoder_start_token_id dtype eos_token_id finetuning_task gradient_checkpointing
    hidden_dropout_prob id2label initializer_range is_decoder label2id max_position_embeddings model_max_length
    model_type name_or_path num_labels output_attentions output_hidden_states pad_token_id prefix problem_type
    quantization_config return_dict sep_token_id task_specific_params tf_legacy_loss tokenizer_class torch_dtype
    torchscript transformers_version unk_token_id use_bfloat16 use_cache use_return_dict

    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id frequency_penalty length_penalty
    max_length max_new_tokens min_length min_new_tokens min_p no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_logits output_scores presence_penalty remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
"""
IGNORED_FIELDS = frozenset(_IGNORED.split())
# Those that change nothing as long as they are this.
NEUTRAL_FIELDS: dict[str, Any] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}
# What Hugging Face calls a field.
OTHER_NAMES = {"tie_word_embeddings": "share_emb"}

# More than any machine has: a slip, or meant to do harm.
MAX_BYTES = 2**45

_Size = Annotated[int, Field(strict=True, ge=1, le=2**24)]
_Decay = Annotated[float, Field(strict=True, gt=0.0, lt=1.0)]


class ParameterSpec(NamedTuple):
    """One tensor of the reference's state_dict: `name`, `shape`, and whether it is a weight matrix.

    Matrices take the dtype of the quantization; everything else is kept in fp32.
    """

    name: str
    shape: tuple[int, ...]
    matrix: bool


class GeckoConfig(BaseModel):
    """Hyper-parameters of a Gecko model, with the reference's field names.

    Raises `ValueError` (pydantic's `ValidationError`) with the numbers when a constraint of
    specification section 0 is broken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_layers: Annotated[int, Field(strict=True, ge=1, le=4096)] = 32
    model_dim: _Size = 4096
    z_dim: _Size = 1024
    value_dim: _Size = 8192
    num_heads: _Size = 4
    ffn_hidden_dim: _Size = 8192
    cema_ndim: Annotated[int, Field(strict=True, ge=1, le=1024)] = 16
    chunk_size: Annotated[int, Field(strict=True, ge=1, le=2**20)] = 2048
    timenorm_num_groups: _Size = 64
    timenorm_beta1: _Decay = 0.999
    timenorm_beta2: _Decay = 0.9999
    layernorm_num_groups: _Size = 1
    norm_eps: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 1e-5
    rope_base: Annotated[float, Field(strict=True, gt=1.0)] = 500000.0
    num_rope_heads: Annotated[int, Field(strict=True, ge=0)] | None = None
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=2**24)]
    output_size: Annotated[int, Field(strict=True, ge=-1, le=2**24)] = -1
    swiglu: StrictBool = True
    norm_affine: StrictBool = True
    two_hop_residual: StrictBool = False
    rescale_nffn: StrictBool = False
    scale_emb: StrictBool = False
    share_emb: StrictBool = False

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, data: Any) -> Any:
        """The fields that are the model's, by their own names; a number without a fraction is an integer."""
        if not isinstance(data, dict):
            return data
        ignored = ignored_fields(data)
        fields = {OTHER_NAMES.get(k, k): v for k, v in data.items() if k not in ignored}
        for other, own in OTHER_NAMES.items():
            if data.get(other) is not None and own in data and data[other] != data[own]:
                raise ValueError(f"{own}={data[own]} and {other}={data[other]} are the same field")
        return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in fields.items()}

    @model_validator(mode="after")
    def _check_constraints(self) -> GeckoConfig:
        for field in ("z_dim", "value_dim"):
            if getattr(self, field) % self.num_heads:
                raise ValueError(f"{field}={getattr(self, field)} must be a multiple of num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(
                f"z_dim/num_heads = {self.z_dim}/{self.num_heads} = {self.head_dim} must be even:"
                " rotary embedding turns pairs of features"
            )
        if self.model_dim % self.timenorm_num_groups or self.timenorm_num_groups >= self.model_dim:
            raise ValueError(
                f"timenorm_num_groups={self.timenorm_num_groups} must divide model_dim={self.model_dim}"
                " and be smaller than it"
            )
        if self.model_dim % self.layernorm_num_groups:
            raise ValueError(f"layernorm_num_groups={self.layernorm_num_groups} must divide model_dim={self.model_dim}")
        if self.num_rope_heads is not None and self.num_rope_heads > self.num_heads:
            raise ValueError(f"num_rope_heads={self.num_rope_heads} must be at most num_heads={self.num_heads}")
        if self.output_size == 0:
            raise ValueError("output_size=0: expected -1 (the vocabulary) or a positive number")
        if self.share_emb and self.output_size not in (-1, self.vocab_size):
            raise ValueError(
                f"share_emb=true ties the head to the embedding of vocab_size={self.vocab_size} rows,"
                f" but output_size={self.output_size}: expected -1"
            )
        if (parameters := 4 * self.num_parameters()) > MAX_BYTES:
            raise ValueError(f"the parameters are {parameters:,} bytes in float32, expected at most {MAX_BYTES:,}")
        if (state := self._state_bytes()) > MAX_BYTES:
            raise ValueError(f"the state is {state:,} bytes in float32, expected at most {MAX_BYTES:,}")
        return self

    @property
    def head_dim(self) -> int:
        """dz: query and key features of one head."""
        return self.z_dim // self.num_heads

    @property
    def value_head_dim(self) -> int:
        """dv: value features of one head."""
        return self.value_dim // self.num_heads

    @property
    def rope_heads(self) -> int:
        """Hr: the number of heads that are rotated."""
        return self.num_heads if self.num_rope_heads is None else self.num_rope_heads

    @property
    def num_outputs(self) -> int:
        """O: the number of logits."""
        return self.vocab_size if self.output_size == -1 else self.output_size

    def parameters(self) -> Iterator[ParameterSpec]:
        """Yield the trained tensors of specification section 1, in the order of the state_dict.

        Buffers (`rope.freqs`, `prior_*`) are not parameters, and a tied `output.output.weight` is
        listed once, as `embed.weight`.
        """
        d, z, e, f, n = (
            self.model_dim,
            self.z_dim,
            self.value_dim,
            self.ffn_hidden_dim,
            self.cema_ndim,
        )
        yield ParameterSpec("embed.weight", (self.vocab_size, d), True)
        for i in range(self.num_layers):
            mega, nffn = f"layers.{i}.mega", f"layers.{i}.nffn"
            yield ParameterSpec(f"{mega}.timenorm.weight", (d,), False)
            yield ParameterSpec(f"{mega}.timenorm.bias", (d,), False)
            yield ParameterSpec(f"{mega}.cema.alpha", (d, n), False)
            yield ParameterSpec(f"{mega}.cema.delta", (d, n), False)
            yield ParameterSpec(f"{mega}.cema.theta", (d,), False)
            yield ParameterSpec(f"{mega}.cema.gamma", (d, n, 2), False)
            if self.norm_affine:
                yield ParameterSpec(f"{mega}.rmsnorm.weight", (d,), False)
            for linear, rows in (("wv", e), ("wz", z), ("wr", e), ("wh1", d)):
                yield ParameterSpec(f"{mega}.{linear}.weight", (rows, d), True)
                yield ParameterSpec(f"{mega}.{linear}.bias", (rows,), False)
            yield ParameterSpec(f"{mega}.wh2.weight", (d, e), True)
            yield ParameterSpec(f"{mega}.gamma", (4, z), False)
            yield ParameterSpec(f"{mega}.beta", (4, z), False)
            if self.norm_affine:
                yield ParameterSpec(f"{nffn}.norm.weight", (d,), False)
                yield ParameterSpec(f"{nffn}.norm.bias", (d,), False)
            yield ParameterSpec(f"{nffn}.fc1.weight", (f, d), True)
            yield ParameterSpec(f"{nffn}.fc2.weight", (d, f), True)
            if self.swiglu:
                yield ParameterSpec(f"{nffn}.fc3.weight", (f, d), True)
            if self.rescale_nffn:
                yield ParameterSpec(f"{nffn}.alpha", (d,), False)
        yield ParameterSpec("output.final_norm.weight", (d,), False)
        yield ParameterSpec("output.final_norm.bias", (d,), False)
        if not self.share_emb:
            yield ParameterSpec("output.output.weight", (self.num_outputs, d), True)

    def num_parameters(self) -> int:
        """The number of trained values."""
        return sum(math.prod(p.shape) for p in self.parameters())

    def _state_bytes(self) -> int:
        """What one stream's keys, values and memory take in fp32, and the rotations of their positions."""
        window = 2 * self.chunk_size * (self.z_dim + self.value_dim)
        layer = window + self.z_dim * self.value_head_dim + 2 * self.cema_ndim * self.model_dim
        return 4 * (self.num_layers * layer + 2 * self.chunk_size * self.head_dim)


def ignored_fields(fields: dict[str, Any]) -> list[str]:
    """The fields of a `config.json` that do not change inference, in their order."""
    return [
        name
        for name, value in fields.items()
        if name in IGNORED_FIELDS
        or (name in NEUTRAL_FIELDS and value == NEUTRAL_FIELDS[name])
        or (value is None and name not in GeckoConfig.model_fields)
    ]


def validate_config(fields: dict[str, Any], source: str) -> GeckoConfig:
    """Build a `GeckoConfig` from `fields`; `ValueError` names `source` and every field at fault."""
    try:
        return GeckoConfig.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{source}: " + "; ".join(map(_fault, error.errors()))) from None


def _fault(fault: Any) -> str:
    """What is wrong with a field, by pydantic's account of it."""
    field = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, [*GeckoConfig.model_fields, *OTHER_NAMES], 1)
        return f"{field}: unknown field, and it may change what the model does" + "".join(f"; is it {n}?" for n in near)
    message = fault["msg"].removeprefix("Value error, ")
    return f"{field}: {message}, got {_short(fault['input'])}" if field else message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def load_config(path: Path, vocab_size: int | None = None) -> GeckoConfig:
    """Read a `config.json` with the reference's field names.

    `vocab_size` (of the tokenizer) is used when the file leaves it out, or says null or -1.
    """
    from gecko_mlc.formats.files import read_json

    fields = read_json(path)
    if fields.get("vocab_size") in (None, -1):
        if vocab_size is None:
            raise ValueError(f"{path}: vocab_size is missing and there is no tokenizer.json to tell it")
        fields["vocab_size"] = vocab_size
    return validate_config(fields, str(path))


PRESETS: dict[str, dict[str, Any]] = {
    "gecko-7b": {"vocab_size": 32000},
    "gecko-1b": {
        "num_layers": 16,
        "model_dim": 2048,
        "z_dim": 512,
        "value_dim": 4096,
        "ffn_hidden_dim": 4096,
        "chunk_size": 1024,
        "vocab_size": 32000,
    },
    "gecko-120m": {
        "num_layers": 8,
        "model_dim": 768,
        "z_dim": 256,
        "value_dim": 1536,
        "ffn_hidden_dim": 2048,
        "chunk_size": 512,
        "timenorm_num_groups": 32,
        "vocab_size": 32000,
    },
    "gecko-demo": {
        "num_layers": 6,
        "model_dim": 256,
        "z_dim": 128,
        "value_dim": 512,
        "num_heads": 2,
        "ffn_hidden_dim": 768,
        "chunk_size": 128,
        "timenorm_num_groups": 16,
        "vocab_size": 4096,
        "share_emb": True,
    },
}


def preset(name: str) -> GeckoConfig:
    """The configuration of a preset; `ValueError` lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
    return GeckoConfig(**PRESETS[name])


def dump_config(config: GeckoConfig) -> str:
    """The `config.json` text of `config`."""
    return json.dumps(config.model_dump(), indent=2) + "\n"
