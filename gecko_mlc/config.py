"""The configuration of a Gecko model (specification section 0) and the presets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# Fields of the reference's ModelConf, and of common config.json files, that do not change inference.
IGNORED_FIELDS = frozenset(
    {
        "attention_dropout",
        "dropout",
        "hidden_dropout",
        "efficient_attn",
        "init_mode",
        "memory_efficient_norm",
        "query_activation",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "model_type",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
    }
)

_Size = Annotated[int, Field(strict=True, ge=1, le=2**24)]
_Decay = Annotated[float, Field(gt=0.0, lt=1.0)]


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
    norm_eps: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    rope_base: Annotated[float, Field(gt=1.0)] = 500000.0
    num_rope_heads: Annotated[int, Field(strict=True, ge=0)] | None = None
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=2**24)]
    output_size: Annotated[int, Field(strict=True, ge=-1, le=2**24)] = -1
    swiglu: bool = True
    norm_affine: bool = True
    two_hop_residual: bool = False
    rescale_nffn: bool = False
    scale_emb: bool = False
    share_emb: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {k: v for k, v in data.items() if k not in IGNORED_FIELDS}
        return data

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


def validate_config(fields: dict[str, Any], source: str) -> GeckoConfig:
    """Build a `GeckoConfig` from `fields`; `ValueError` names `source` and every field at fault."""
    try:
        return GeckoConfig.model_validate(fields)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            field = ".".join(str(part) for part in fault["loc"])
            message = fault["msg"].removeprefix("Value error, ")
            faults.append(f"{field}: {message}, got {fault['input']!r}" if field else message)
        raise ValueError(f"{source}: " + "; ".join(faults)) from None


def load_config(path: Path, vocab_size: int | None = None) -> GeckoConfig:
    """Read a `config.json` with the reference's field names.

    `vocab_size` (of the tokenizer) is used when the file leaves it out or says -1.
    """
    from gecko_mlc.formats.files import read_json

    fields = read_json(path)
    if fields.get("vocab_size", -1) == -1:
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
