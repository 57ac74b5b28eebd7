"""The launch plan that the compiler makes, and what the lint finds in plans that can be played."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gecko_mlc.cli.plan import plan_lines
from gecko_mlc.compile.lint import check_plan
from gecko_mlc.formats.plan import dump_plan, parse_plan

FOLDER = Path(__file__).parents[1] / "plans"
MINIMAL = json.loads((FOLDER / "minimal.json").read_text())
DECLARED = {"step": {"sum"}, "reset": {"sum"}}


def test_the_fixture_is_what_the_compiler_makes() -> None:
    """`python tests/plans/make.py` writes it, and the launches that `tests/formats/test_plan.py` holds it to."""
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    made = json.loads(dump_plan(make.one_layer()))
    assert made == json.loads((FOLDER / "one_layer.json").read_text())


def test_a_plan_for_people() -> None:
    lines = list(plan_lines(parse_plan((FOLDER / "minimal.json").read_text(), "minimal")))
    assert "step(x float32[n, 32], slots int32[1], y float32[n, 64]), n up to 1000: 3 launches, 1 storage" in lines[3]
    launch = " ".join(lines[4].split())
    assert launch == "0 multiply ((n + 3) / 4) × 1 × 1 64 × 1 × 1 x weight → storage.0+256 if (n < 16)"
    assert lines[6].endswith("storage.0+256 slots sum → sum y")


def test_a_plan_without_faults() -> None:
    assert faults_of(lambda plan: None) == []


def faults_of(change: Callable[[dict[str, Any]], None], declared: dict[str, set[str]] = DECLARED) -> list[str]:
    plan = copy.deepcopy(MINIMAL)
    change(plan)
    return check_plan(parse_plan(json.dumps(plan), "changed"), declared)


def nothing_written(plan: dict[str, Any]) -> None:
    """Few rows have no launch that writes the storage."""
    del plan["functions"]["step"]["launches"][0]
    del plan["kernels"]["multiply"]


def overwritten(plan: dict[str, Any]) -> None:
    """Another tensor is put where the product is, before that is read."""
    step = plan["functions"]["step"]
    step["buffers"].append({"role": "storage", "index": 0, "dtype": "float32", "shape": [65]})
    step["launches"].insert(2, {"kernel": "fill", "buffers": [3, 6], "scalars": [], "grid": [1, 1, 1]})


def result_not_written(plan: dict[str, Any]) -> None:
    plan["kernels"]["accumulate"]["buffers"][3] = "read"


def not_launched(plan: dict[str, Any]) -> None:
    plan["kernels"]["other"] = plan["kernels"]["fill"]


def wide_grid(plan: dict[str, Any]) -> None:
    plan["functions"]["step"]["launches"][2]["grid"][1] = ["*", "n", 66]


def deep_block(plan: dict[str, Any]) -> None:
    plan["requires"]["workgroup_threads"] = 128
    plan["kernels"]["fill"]["block"] = [1, 1, 128]


def much_shared_memory(plan: dict[str, Any]) -> None:
    plan["requires"] |= {"compute_capability": 80, "workgroup_bytes": 163 * 1024 + 1}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (nothing_written, "step: launch 0, accumulate, reads storage 0 from byte 256, which nothing has written"),
        (overwritten, "step: launch 2, accumulate, reads storage 0 from byte 256, which launch 1 has overwritten"),
        (result_not_written, "step: nothing writes y"),
        (not_launched, "nothing launches other"),
        (wide_grid, "step: launch 1, accumulate, has a grid of (8, 66000, 1)"),
        (deep_block, "fill: a block of (1, 1, 128)"),
        (much_shared_memory, "166913 bytes of shared memory of 166912"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_lint_finds(change: Callable[[dict[str, Any]], None], fault: str) -> None:
    assert fault in faults_of(change)


def test_state_that_is_written_is_declared() -> None:
    declared = {"step": {"x"}, "reset": {"sum"}}
    assert faults_of(lambda plan: None, declared) == ["step: it writes and does not declare sum"]


def test_state_that_is_declared_is_written() -> None:
    def read_only(plan: dict[str, Any]) -> None:
        plan["kernels"]["accumulate"]["buffers"][2] = "read"

    assert faults_of(read_only) == ["step: it declares and does not write sum"]
