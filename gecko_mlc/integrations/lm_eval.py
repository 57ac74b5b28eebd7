"""Gecko in lm-evaluation-harness (`pip install 'gecko-mlc[lm-eval]'`).

python -m gecko_mlc.integrations.lm_eval run --model gecko-mlc --model_args model=gecko-demo --tasks lambada_openai

is the harness's own command, with this model in it; in Python, `import gecko_mlc.integrations.lm_eval` puts it there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rich.progress import track

from gecko_mlc.api import GenerationOptions, Model, load_model
from gecko_mlc.cli.terminal import console, say
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.runtime.measure.scoring import batches, call_size, score_continuations
from gecko_mlc.runtime.text.long_text import encode_blocks

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    missing = f"there is no {error.name} here: pip install 'gecko-mlc[lm-eval]'"
    if __name__ == "__main__":
        sys.exit(f"error: {missing}")
    raise GeckoError(missing) from None

T = TypeVar("T")

# The harness's names for the same thing, and options that change nothing here.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_LENGTH = 256
# Of the harness's devices those that are wishes: cuda is what it says when nobody did.
WISHES: dict[str | None, str] = {"cpu": "cpu"}
WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1}


@register_model("gecko-mlc")
class GeckoLM(TemplateLM):
    """A model folder, or the demo by its name. `model_args`: model, model_lib, state_dtype.

    Requests run one after the other, so the harness's batch sizes have no effect. Contexts and documents may be of
    any length: nothing is cut, and no window slides. Raises `GeckoError` for what cannot be loaded, and for
    generation options that are unknown.
    """

    def __init__(
        self,
        model: str,
        model_lib: str | None = None,
        state_dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # A second slot continues a context that the first one keeps.
        self._model = load_model(model, model_lib, WISHES.get(device, "auto"), say, slots=2, state_dtype=state_dtype)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        eos = self._model.chat_config.eos_token_id
        ids = eos if isinstance(eos, list) else [eos]
        if not ids or ids[0] is None:
            raise GeckoError(f"{self._model.folder}: eos_token_id is missing in its config, what begins a text?")
        return int(ids[0])

    @property
    def prefix_token_id(self) -> int:
        """What precedes a text that nothing precedes: the model's first token, or the last one of another text."""
        beginning = self._model.beginning()
        return beginning[-1] if beginning else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """What cached requests are told apart by."""
        return str(self._model.folder.resolve())

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of `string`, after those that every stream begins with unless `add_special_tokens` is false."""
        beginning = [] if add_special_tokens is False else self._model.beginning()
        return [*beginning, *self._model.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        places: dict[tuple[int, ...], list[int]] = {}
        for place, (_, ids, _) in enumerate(requests):
            places.setdefault(tuple(ids or [self.prefix_token_id]), []).append(place)
        results: dict[int, tuple[float, bool]] = {}
        for context, those in shown(list(places.items()), "contexts", disable_tqdm):
            continuations = [requests[place][2] for place in those]
            scores = score_continuations(self._model.engine, list(context), continuations)
            for place, result in zip(those, scores, strict=True):
                self.cache_hook.add_partial("loglikelihood", requests[place][0], result)
                results[place] = result
        return [results[place] for place in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole documents, each one stream through the state."""
        results = []
        for request in shown(requests, "documents", disable_tqdm):
            results.append(self._log_likelihood(request.args[0]))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def _log_likelihood(self, text: str) -> float:
        model = self._model
        model.engine.reset(0)
        pieces = encode_blocks(model.tokenizer, [text])
        calls = batches(pieces, [self.prefix_token_id], call_size(model.engine, logits=False))
        return float(sum(model.engine.score(0, call.tokens, call.targets)[0].sum(dtype=float) for call in calls))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations of contexts, up to a stop string, the end of the text or the most tokens asked for."""
        model, results = self._model, []
        for number, request in enumerate(shown(requests, "continuations", disable_tqdm)):
            context, wishes = request.args
            options = generation_options(model, wishes, number)
            ids = self.tok_encode(context) or [self.prefix_token_id]
            results.append("".join(model.generate_ids(ids, options)))
            self.cache_hook.add_partial("generate_until", request.args, results[-1])
        return results


def generation_options(model: Model, wishes: dict[str, Any], seed: int) -> GenerationOptions:
    """The harness's `gen_kwargs`: greedy unless told otherwise. Raises `GeckoError` for unknown or bad ones."""
    left = {key: value for key, value in wishes.items() if WITHOUT_EFFECT.get(key) != value}
    until = left.pop("until", None) or []
    lengths = [left.pop(key) for key in LENGTHS if key in left]
    sample = left.pop("do_sample", None)
    if sample is False:
        left["temperature"] = 0.0
    defaults = {"temperature": 1.0 if sample else 0.0, "top_p": 1.0, "seed": seed, "stop": until}
    return model.options(**{**defaults, **left, "max_tokens": lengths[0] if lengths else DEFAULT_LENGTH})


def shown(items: Sequence[T], title: str, silent: bool) -> Iterable[T]:
    """The items, with a progress bar over them."""
    return track(items, title, console=console, disable=silent or not console.is_terminal, transient=True)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except GeckoError as error:
        sys.exit(f"error: {error}")
