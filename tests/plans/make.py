"""Write what is made of the fixtures here: `python tests/plans/make.py`, with the environment of the tests.

The launches of each plan, the plan of a model of one layer as the compiler makes it today, and docs/plan.schema.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gecko_mlc.formats.plan import Plan, dump_plan, parse_plan, plan_schema

FOLDER = Path(__file__).parent
# Sizes on both sides of what the number of rows chooses.
SIZES = {
    "minimal": {"step": [{"n": 1}, {"n": 15}, {"n": 16}, {"n": 1000}], "reset": [{"b": 1}, {"b": 2}]},
    "one_layer": {
        "prefill": [{"n": 1}, {"n": 767}, {"n": 1024}],
        "decode": [{"b": 1}, {"b": 3}],
        "copy_slot": [{}],
    },
}


def one_layer() -> Plan:
    """The plan of a model of one layer, of three functions."""
    from support.emulated import EmulatedLibrary
    from support.models import small_config

    wide = {"model_dim": 128, "value_dim": 128, "ffn_hidden_dim": 128, "timenorm_num_groups": 4}
    plan = EmulatedLibrary(small_config(num_layers=1, chunk_size=1024, **wide), "q4f16_1", 3).plan
    functions = {name: plan.functions[name] for name in SIZES["one_layer"]}
    launched = {launch.kernel for function in functions.values() for launch in function.launches}
    kernels = {name: kernel for name, kernel in plan.kernels.items() if name in launched}
    return plan.model_copy(update={"functions": functions, "kernels": kernels})


def launches(name: str, plan: Plan) -> list[dict[str, Any]]:
    """What calls of a plan launch."""
    return [
        {"function": f, "sizes": sizes, "launches": [launch._asdict() for launch in plan.launches(f, **sizes)]}
        for f, cases in SIZES[name].items()
        for sizes in cases
    ]


def _write(path: Path, value: Any) -> None:
    """JSON, what is short on one line."""

    def text(value: Any, indent: str) -> str:
        line = json.dumps(value)
        if len(line) <= 118 - len(indent) or not isinstance(value, dict | list):
            return line
        inner = indent + "  "
        if isinstance(value, dict):
            parts = [f"{json.dumps(key)}: {text(v, inner)}" for key, v in value.items()]
        else:
            parts = [text(v, inner) for v in value]
        first, last = "{}" if isinstance(value, dict) else "[]"
        return f"{first}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{last}"

    path.write_text(text(json.loads(json.dumps(value)), "") + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent))
    _write(FOLDER / "one_layer.json", json.loads(dump_plan(one_layer())))
    for name in SIZES:
        plan = parse_plan((FOLDER / f"{name}.json").read_text(), name)
        _write(FOLDER / f"{name}.launches.json", launches(name, plan))
    _write(FOLDER.parents[1] / "docs" / "plan.schema.json", plan_schema())
