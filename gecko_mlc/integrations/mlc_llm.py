"""Gecko in an installed mlc_llm.

`python -m gecko_mlc.integrations.mlc_llm gen_config my-gecko --quantization q4f16_1 …` is mlc_llm's own command, with
Gecko in its registries; in Python, `register()` puts it there.

mlc_llm then knows Gecko's folders, writes their config, and has gecko-mlc's schemes and conversation templates for its
other models too. Weights and libraries stay gecko-mlc's, and every way to them says so: mlc_llm stores fp32 as bf16,
which Gecko's EMA does not survive, and its engine has no functions for Gecko's state.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

from gecko_mlc.config import GeckoConfig, validate_config
from gecko_mlc.convert.chat_config import read_model_config
from gecko_mlc.convert.generation import read_generation
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.quantization import QUANTIZATIONS
from gecko_mlc.formats.templates import TEMPLATES

MODEL_TYPE = "gecko"
# mlc_llm's templates of the same names have token ids of Llama's in them.
TEMPLATE_PREFIX = "gecko_"


class ModelConfig:
    """What mlc_llm asks of a model's config, over a `GeckoConfig`."""

    prefill_chunk_size = -1
    tensor_parallel_shards = 1

    def __init__(self, config: GeckoConfig) -> None:
        self._config = config

    @property
    def vocab_size(self) -> int:
        """Tokens of the embedding."""
        return self._config.vocab_size

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """The config in a `config.json`.

        Raises `GeckoError` when it is invalid, or says not which tokens are special: mlc_llm would write Llama's.
        """
        config = read_model_config(path)
        fields = read_generation(path, config.vocab_size)
        missing = [key for key in ("bos_token_id", "eos_token_id") if key not in fields]
        if missing:
            raise GeckoError(
                f"{path}: {' and '.join(missing)} missing, where mlc_llm would write Llama's; say what they are, or"
                " `gecko-mlc gen_config`, which needs none"
            )
        return cls(config)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """The config in `fields`. Raises `GeckoError` for those of a model folder, which are there to be compiled."""
        if "conv_template" in fields:
            raise GeckoError("mlc_llm can neither compile nor run Gecko: `gecko-mlc compile`, `gecko-mlc chat`")
        try:
            return cls(validate_config(fields, "the model's config"))
        except ValueError as error:
            raise GeckoError(str(error)) from None

    def asdict(self) -> dict[str, Any]:
        """The fields of `config.json`."""
        return self._config.model_dump()


def refuse_weights(*_: Any) -> NoReturn:
    """In place of a model of mlc_llm's."""
    raise GeckoError("mlc_llm would store Gecko's fp32 constants as bf16: `gecko-mlc convert_weight`")


def register() -> None:
    """Put Gecko into the registries of mlc_llm. Raises `GeckoError` where that is not installed.

    What is there already stays; a second call changes nothing.
    """
    try:
        from mlc_llm.conversation_template import ConvTemplateRegistry
        from mlc_llm.interface import gen_config
        from mlc_llm.model import MODELS, Model
        from mlc_llm.protocol.conversation_protocol import Conversation
        from mlc_llm.quantization import QUANTIZATION, GroupQuantize
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mlc_llm":
            raise
        raise GeckoError("there is no mlc_llm here: https://llm.mlc.ai/docs/install/mlc_llm.html") from None
    MODELS.setdefault(
        MODEL_TYPE,
        Model(
            name=MODEL_TYPE,
            config=ModelConfig,
            model=refuse_weights,
            source=dict.fromkeys(("huggingface-torch", "huggingface-safetensor"), refuse_weights),
            quantize=dict.fromkeys({scheme.kind for scheme in QUANTIZATION.values()}, refuse_weights),
        ),
    )
    for scheme in QUANTIZATIONS.values():
        if scheme.group is not None and scheme.name not in QUANTIZATION:
            QUANTIZATION[scheme.name] = GroupQuantize(
                name=scheme.name,
                kind="group-quant",
                group_size=scheme.group.group_size,
                quantize_dtype=f"int{scheme.group.bits}",
                storage_dtype="uint32",
                model_dtype=scheme.model_dtype,
                linear_weight_layout="NK",
            )
    for template in TEMPLATES.values():
        named = template.model_copy(update={"name": TEMPLATE_PREFIX + template.name})
        ConvTemplateRegistry.register_conv_template(Conversation(**named.model_dump()), override=True)
        gen_config.CONV_TEMPLATES.add(named.name)


if __name__ == "__main__":
    try:
        register()
        from mlc_llm.__main__ import main

        main()
    except GeckoError as error:
        sys.exit(f"error: {error}")
