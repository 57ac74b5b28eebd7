"""`logits`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gecko_mlc.cli.loading import load
from gecko_mlc.cli.options import ModelArgument, RunOptions, whole_number
from gecko_mlc.cli.terminal import console, show_arguments
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.files import parse_json_value, read_text


def logits(
    model: ModelArgument,
    tokens: Annotated[Path, typer.Option("--tokens", help="A JSON file with a list of token ids.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    split: Annotated[
        str | None, typer.Option("--split", help="Lengths of the calls, like 5,80,2; by default one.")
    ] = None,
    running: RunOptions = RunOptions(),
) -> None:
    """Write the fp32 logits of every position, to compare implementations.

    The tensor is `logits` [n, outputs]; the file's metadata lists the calls made. A piece of one token
    goes through `decode`, a longer one through prefill; pieces that cross a chunk boundary are cut there.

    Example: gecko-mlc logits my-model --tokens ids.json --split 5,80,2 -o out.safetensors
    """
    import numpy as np
    from safetensors.numpy import save

    from gecko_mlc.formats.files import atomic_write, check_writable
    from gecko_mlc.runtime.measure.scoring import check_logits

    ids = read_ids(tokens)
    lengths = parse_split(split, len(ids))
    check_writable(output)
    show_arguments(model=model, **running._asdict(), tokens=tokens, split=split, output=output)
    loaded = load(model, running)
    loaded.engine.reset(0)
    calls: list[str] = []
    parts, start = [], 0
    for length in lengths:
        part = loaded.engine.extend_logits(
            0, ids[start : start + length], lambda function, count: calls.append(f"{function} {count}")
        )
        parts.append(part)
        start += length
    result = np.concatenate(parts)
    check_logits(result, 1)
    metadata = {"calls": json.dumps(calls), "split": json.dumps(lengths)}
    with atomic_write(output, "wb") as file:
        file.write(save({"logits": result}, metadata))
    console.print(f"logits {list(result.shape)} in {output}, from {len(calls)} calls")


def read_ids(path: Path) -> list[int]:
    """A list of token ids from a JSON file. Raises `GeckoError` when it is anything else."""
    ids = parse_json_value(read_text(path), path)
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise GeckoError(f"{path}: expected a JSON list of integers")
    if not ids:
        raise GeckoError(f"{path}: the list is empty, expected at least one token")
    return ids


def parse_split(split: str | None, count: int) -> list[int]:
    """Lengths that add up to `count`. Raises `GeckoError` with the numbers when they do not."""
    if split is None:
        return [count]
    lengths = [whole_number(part) for part in split.split(",")]
    if not all(lengths):
        raise GeckoError(f"--split {split!r}: expected positive numbers separated by commas")
    if sum(lengths) != count:
        raise GeckoError(f"--split {split!r} adds up to {sum(lengths)}, but there are {count} tokens")
    return lengths
