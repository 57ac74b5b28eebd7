"""Launch plans, read as what may be hostile: what tests/plans says that they give, and how they are refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from gecko_mlc.formats import plan as plans
from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.expression import evaluate, parse_expression
from gecko_mlc.formats.plan import Plan, dump_plan, parse_plan, plan_schema, read_plan

FOLDER = Path(__file__).parents[1] / "plans"
MINIMAL = json.loads((FOLDER / "minimal.json").read_text())
SIZES = {"n": 5, "b": 2}


def plan_of(name: str) -> Plan:
    return parse_plan((FOLDER / f"{name}.json").read_text(), name)


def changed(at: list[Any], value: Any) -> str:
    """The minimal plan with a value in place of what is there, or of nothing."""
    result = copy.deepcopy(MINIMAL)
    place = result
    for key in at[:-1]:
        place = place[key]
    if isinstance(place, list) and at[-1] == len(place):
        place.append(value)
    else:
        place[at[-1]] = value
    return json.dumps(result)


@pytest.mark.parametrize("case", json.loads((FOLDER / "expressions.json").read_text()), ids=lambda c: str(c)[:60])
def test_an_expression(case: dict[str, Any]) -> None:
    if "value" in case:
        assert evaluate(parse_expression(case["expression"]), SIZES) == case["value"]
    else:
        with pytest.raises(ValueError) as error:
            evaluate(parse_expression(case["expression"]), SIZES)
        assert str(error.value) == case["error"]


@pytest.mark.parametrize("name", ["minimal", "one_layer"])
def test_a_plan_gives_its_launches(name: str) -> None:
    plan = plan_of(name)
    cases = json.loads((FOLDER / f"{name}.launches.json").read_text())
    assert {case["function"] for case in cases} == set(plan.functions)
    for case in cases:
        made = [launch._asdict() for launch in plan.launches(case["function"], **case["sizes"])]
        assert json.loads(json.dumps(made)) == case["launches"], (case["function"], case["sizes"])


@pytest.mark.parametrize("name", ["minimal", "one_layer"])
def test_a_plan_is_written_as_it_is_read(name: str) -> None:
    plan = plan_of(name)
    assert parse_plan(dump_plan(plan), name) == plan
    assert json.loads(dump_plan(plan)) == json.loads((FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("sizes", [{}, {"n": 0}, {"n": 1001}, {"n": 1, "b": 1}, {"b": 1}])
def test_a_call_of_other_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(GeckoError, match=r"functions.step: called with the sizes .*, expected 1 ≤ n ≤ 1000"):
        plan_of("minimal").launches("step", **sizes)


@pytest.mark.parametrize(
    "case", json.loads((FOLDER / "hostile.json").read_text()), ids=lambda c: f"{c.get('at', c.get('text'))}"
)
def test_a_hostile_plan_is_refused(case: dict[str, Any]) -> None:
    """With one line that begins with the plan's name and the place."""
    text = case["text"] if "text" in case else changed(case["at"], case["value"])
    with pytest.raises(GeckoError) as error:
        parse_plan(text, "some.plan")
    assert str(error.value).startswith(f"some.plan: {case['error']}")
    assert "\n" not in str(error.value)


def test_too_much_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nesting that no reader bears, and more text than a plan has."""
    with pytest.raises(GeckoError, match="nested"):
        parse_plan('{"plan_version": 1, "target": ' + "[" * 200_000 + "]" * 200_000 + "}", "x")
    monkeypatch.setattr(plans, "MAX_PLAN_BYTES", 1000)
    with pytest.raises(GeckoError, match=r"x: a launch plan of [\d,]+ bytes, expected at most 1,000"):
        parse_plan(json.dumps(MINIMAL), "x")


def test_a_plan_lies_in_the_library_beside_the_metadata(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"code" + plans.PLAN_MARKER + json.dumps(MINIMAL).encode() + b"\0code")
    assert read_plan(library) == plan_of("minimal")
    library.write_bytes(b"code")
    with pytest.raises(GeckoError, match=r"lib.so: no launch plan in it; libraries for GPUs have one"):
        read_plan(library)
    library.write_bytes(plans.PLAN_MARKER + b"{\xff}\0")
    with pytest.raises(GeckoError, match=r"lib.so: not JSON"):
        read_plan(library)
    with pytest.raises(GeckoError, match="no such library"):
        read_plan(tmp_path / "other.so")


def test_the_schema_is_the_models() -> None:
    """`python tests/plans/make.py` writes it."""
    schema = Path(__file__).parents[2] / "docs" / "plan.schema.json"
    assert json.loads(schema.read_text()) == plan_schema()
