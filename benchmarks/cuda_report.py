"""A GPU run's results as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
PEERS = {"eager": "PyTorch, eager, bf16", "compiled": "PyTorch, torch.compile, CUDA graph, bf16"}


def to_markdown(result: Result) -> str:
    """All parts that the result has, in their order; what failed says so."""
    succeeded = _succeeded(result)
    lines = [f"# {result['preset']} on {result['gpu']}", ""]
    if limits := succeeded.get("ceilings"):
        lines += [
            f"Limits measured in the same run: a copy moves {limits['copy_gb_per_second']:,.0f} GB/s, read and written;"
            f" a bf16 product of 8192³ through cuBLAS {limits['bf16_tflop_per_second']:.0f} TFLOP/s. One stream, random"
            " weights; bytes and operations are counted for the positions that were run.",
            "",
        ]
    for section in (_decoding, _generating, _batches, _between, _prefill, _correctness, _kernels, _profiles, _load):
        lines += section(succeeded)
    for label in [label for label in result if label not in succeeded]:
        lines += [f"## {label} failed", "", "```", result[label]["error"].strip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _succeeded(result: Result) -> Result:
    return {label: value for label, value in result.items() if not (isinstance(value, dict) and "error" in value)}


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """First column left, others right; numbers with four digits or so."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return [*lines, *("| " + " | ".join(map(_text, row)) + " |" for row in rows), ""]


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2}f}"


def _of(result: Result, part: str) -> list[tuple[str, Any]]:
    """(scheme, value) of a part that is there once for each scheme."""
    return [(label.removeprefix(part + " "), value) for label, value in result.items() if label.startswith(part + " ")]


def _speeds(result: Result) -> list[tuple[str, dict[str, float]]]:
    """Decoding, ours and the peers': (who, row)."""
    rows = [(f"gecko-mlc {scheme}", row) for scheme, value in _of(result, "decode") for row in value["chunks"]]
    return rows + [(name, result[part]) for part, name in PEERS.items() if part in result]


def _decoding(result: Result) -> list[str]:
    rows = [
        (who, int(r["position"]), r["tokens_per_second"], r["gb_per_second"], r["percent_of_copy"])
        for who, r in _speeds(result)
    ]
    if not rows:
        return []
    header = ("Decoding, mean over a chunk", "from position", "tokens/s", "GB/s", "% of a copy")
    notes = [
        f"{scheme}: the far chunk's speed is {value['far_over_near']:.4f} of the near one's,"
        f" and the memory in use grew by {value['bytes_grown']:,} bytes."
        for scheme, value in _of(result, "decode")
    ]
    return [*_table(header, rows), *notes, *([""] if notes else [])]


def _generating(result: Result) -> list[str]:
    columns = ("prompt_tokens_per_second", "tokens_per_second", "steps_alone_per_second", "of_steps_alone")
    rows = [(scheme, *(value[column] for column in columns)) for scheme, value in _of(result, "generate")]
    header = ("Text, as a user gets it", "prompt, tokens/s", "answer, tokens/s", "its steps alone", "of those")
    return _table(header, rows) if rows else []


def _batches(result: Result) -> list[str]:
    columns = ("tokens_per_second", "gb_per_second", "percent_of_copy", "percent_of_cublas", "percent_of_bytes_weights")
    rows = [
        (scheme, r["sequences"], *(float(r[column]) for column in columns))
        for scheme, value in _of(result, "batches")
        for r in value
    ]
    header = (
        *("Decoding many sequences, mid-chunk", "sequences", "tokens/s in all", "GB/s", "% of a copy"),
        *("% of cuBLAS", "weights, % of the bytes"),
    )
    return _table(header, rows) if rows else []


def _between(result: Result) -> list[str]:
    rows = [
        (scheme, value["median"], value["p99"], value["largest"], value["p99_over_median"])
        for scheme, value in _of(result, "between")
    ]
    header = ("Milliseconds between tokens, across 3 chunk boundaries", "median", "p99", "largest", "p99 / median")
    return _table(header, rows) if rows else []


def _prefill(result: Result) -> list[str]:
    rows = [
        (scheme, int(r["tokens"]), r["tokens_per_second"], r["tflop_per_second"], r["percent_of_cublas"])
        for scheme, value in _of(result, "prefill")
        for r in value
    ]
    header = ("Prefill from an empty state", "tokens", "tokens/s", "TFLOP/s", "% of cuBLAS")
    return _table(header, rows) if rows else []


def _correctness(result: Result) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    for name, error in result.get("golden", {}).items():
        rows.append((f"{name}, fp32: largest difference from float64 logits, over splits", error))
    for name, error in result.get("conversations", {}).items():
        rows.append((f"{name}: largest difference of two slots in turn, and after loading again", error))
    for scheme, value in _of(result, "parity"):
        rows += [
            (f"{scheme}: relative error of prefill's logits, the worst row", value["prefill_relative_error"]),
            (f"{scheme}: the same of decoded tokens", value["decode_relative_error"]),
            (
                f"{scheme}: greedy tokens that differ, of those beyond doubt",
                f"{value['greedy_differing']} of {value['greedy_compared']}",
            ),
        ]
    return _table(("Correctness", ""), rows) if rows else []


def _kernels(result: Result) -> list[str]:
    if not (value := result.get("kernels")):
        return []
    rows = [(f"`{test}`", worst) for test, worst in value["error_of_tolerance"].items()]
    header = (f"Kernels' tests, {value['launches']:,} launches", "largest error / tolerance")
    return [*_table(header, rows), *(f"- failed: {text}" for text in value["failures"][:20]), ""]


def _profiles(result: Result) -> list[str]:
    lines = []
    for scheme, value in _of(result, "profile"):
        for function, rows in value.items():
            header = (f"{scheme} {function}", "launches", "µs", "GB/s", "TFLOP/s", "% of the nearer limit")
            columns = ("launches", "microseconds", "gb_per_second", "tflop_per_second", "percent_of_limit")
            lines += _table(header, [(r["kernel"], *(r.get(c, "") for c in columns)) for r in rows])
    return lines


def _load(result: Result) -> list[str]:
    if not (value := result.get("load")):
        return []
    cold, cached = map(_load_seconds, (value["seconds"], value["seconds_from_cache"]))
    reads = " and ".join(f"{rate:.2f} GB/s with {n}" for n, rate in value["read_gb_per_second"].items())
    return [
        f"From {value['gb']:.1f} GB on a local disk ({value['disk']}, {value['percent_cached']:.0f} % of it in the"
        f" system's cache) to the first token: {cold}. Again, from the cache: {cached}. A plain read of the files"
        f" gives {reads} readers; a copy to the GPU from ordinary memory {value['copy_gb_per_second']:.1f} GB/s.",
        "",
    ]


def _load_seconds(seconds: dict[str, float]) -> str:
    stages = {name.replace("_", " "): spent for name, spent in seconds.items() if name != "total"}
    parts = ", ".join(f"{name} {spent:.1f}" for name, spent in stages.items())
    return f"{sum(stages.values()):.1f} s ({parts}), {seconds['total']:.1f} s with the interpreter's start and end"


def plot(result: Result, path: Path) -> None:
    """Bars of decoding's GB/s, ours and the peers', below the copy's."""
    import matplotlib

    matplotlib.use("svg")
    # The same result gives the same bytes.
    matplotlib.rcParams.update({"svg.hashsalt": "gecko", "font.size": 9})
    from matplotlib import pyplot

    rows = _speeds(_succeeded(result))[::-1]
    figure, axes = pyplot.subplots(figsize=(7, 0.7 + 0.5 * len(rows)), layout="constrained")
    colors = ["#2a6f4e" if who.startswith("gecko") else "#9aa5a0" for who, _ in rows]
    labels = [f"{who}\n{r['tokens_per_second']:.0f} tokens/s at {int(r['position']):,}" for who, r in rows]
    axes.barh(labels, [r["gb_per_second"] for _, r in rows], color=colors)
    limit = result["ceilings"]["copy_gb_per_second"]
    axes.axvline(limit, color="#444", linestyle="--")
    axes.set(xlim=(0, 1.05 * limit), xlabel=f"GB/s; dashed: a copy, {limit:,.0f}", title=f"Decoding {result['preset']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
