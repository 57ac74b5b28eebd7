"""What commands share: their options, and values of many options that commands take as one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.options import unknown_value
from gecko_mlc.formats.quantization import QUANTIZATIONS, STATE_DTYPES
from gecko_mlc.targets import names

AUTO = "auto"
# In help; a longer one would be cut within a name where a terminal has 80 columns.
LONGEST_FORM = 20


def choice(option: str, values: Sequence[str], help: str) -> Any:
    """An option that takes one of these values, in capitals or not."""

    def check(context: typer.Context, value: str | None) -> str | None:
        if value is None or context.resilient_parsing:
            return value
        for known in values:
            if value.lower() == known.lower():
                return known
        raise unknown_value(option, value, values)

    form = "|".join(values)
    fits = len(form) <= LONGEST_FORM
    help += "" if fits else f" One of {', '.join(values)}."
    form = form if fits else "<str>"
    return typer.Option(f"--{option}", metavar=form, help=help, callback=check, autocompletion=lambda: list(values))


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, or gecko-demo, the model that comes along.")
]
ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A model folder, a config.json, or a preset like gecko-120m."),
]
StateDtypeOption = Annotated[
    str | None,
    choice(
        "state-dtype",
        STATE_DTYPES,
        "What a library that is compiled keeps keys and values as (int8: values alone); by default what the"
        " quantization does.",
    ),
]
QuantizationOption = Annotated[str, choice("quantization", list(QUANTIZATIONS), "What weights are stored as.")]
LibraryQuantizationOption = Annotated[
    str | None, choice("quantization", list(QUANTIZATIONS), "By default the model folder's, or q0f32.")
]
ArchOption = Annotated[
    str | None,
    typer.Option("--arch", help="NVIDIA GPUs, like sm_80,sm_90; by default auto, this machine's."),
]
OverridesOption = Annotated[
    str,
    typer.Option("--overrides", help='Slots and tokens a piece, like "max_batch_size=4; prefill_chunk_size=512".'),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", help="The same seed gives the same text; by default a random one, which is shown."),
]


class RunOptions(NamedTuple):
    """What a model is run by."""

    model_lib: Annotated[
        Path | None,
        typer.Option("--model-lib", help="A compiled library; by default one is compiled for this machine."),
    ] = None
    device: Annotated[
        str,
        choice(
            "device",
            (AUTO, *names()),
            "Without --model-lib: what to run on; auto is this machine's GPU if it has one.",
        ),
    ] = AUTO
    state_dtype: StateDtypeOption = None
    threads: Annotated[
        int | None,
        typer.Option("--threads", "-t", help="On a CPU: how many work at a time, at most; by default one for a core."),
    ] = None


class SamplingOptions(NamedTuple):
    """How tokens are drawn, where that is not as the model says."""

    temperature: Annotated[float | None, typer.Option(help="0 is greedy; by default the model's.")] = None
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens; 0 is off.")] = None
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest tokens with this probability in all.")] = None
    min_p: Annotated[float | None, typer.Option(help="Only tokens this likely, relative to the likeliest.")] = None
    repetition_penalty: Annotated[float | None, typer.Option(help="Divides the scores of tokens drawn before.")] = None
    presence_penalty: Annotated[
        float | None, typer.Option(help="Subtracted from the scores of tokens drawn before.")
    ] = None
    frequency_penalty: Annotated[float | None, typer.Option(help="The same, times how often they were drawn.")] = None

    def given(self) -> dict[str, float]:
        """Those that were given."""
        return {name: value for name, value in self._asdict().items() if value is not None}


GROUPS = (RunOptions, SamplingOptions)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer takes it: in place of a parameter that is one of `GROUPS`, each option of the group."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if hint in GROUPS}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        fields = inspect.signature(groups[name]).parameters.values() if name in groups else [parameter]
        of = get_type_hints(groups[name], include_extras=True) if name in groups else hints
        parameters += [field.replace(annotation=of[field.name]) for field in fields]

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in group._fields})
        command(**values)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def parse_overrides(overrides: str, known: dict[str, int]) -> dict[str, int]:
    """MLC's `key=value;key=value` over the `known` keys and their defaults."""
    values = dict(known)
    for item in filter(None, overrides.split(";")):
        key, _, text = (part.strip() for part in item.partition("="))
        if key not in known or not whole_number(text):
            raise GeckoError(f"--overrides {item!r}: expected key=number with a key of {', '.join(known)}")
        values[key] = whole_number(text)
    return values


def whole_number(text: str) -> int:
    """The positive number in a text; 0 where there is none, or more digits than a count has."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 20 else 0
