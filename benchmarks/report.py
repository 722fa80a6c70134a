"""How a benchmark says what it measured: one JSON object a line on standard output."""

from __future__ import annotations

import json
import operator
import sys

_GOALS = {">=": operator.ge, "<=": operator.le, "==": operator.eq}


def report(
    benchmark: str,
    case: str,
    metric: str,
    value: float,
    unit: str,
    goal: str | None = None,
    met: bool | None = None,
) -> None:
    """Print one measurement with exactly the keys benchmark, case, metric, value, unit, goal, met.

    Args:
        benchmark: the module's name.
        case: what was measured, in words.
        metric: such as throughput or seconds.
        value: the number.
        unit: of the value.
        goal: such as ">= 100000"; None where the number only informs.
        met: whether the goal is met. Left out, it follows from a goal that is a comparison with a number.
    """
    if met is None and goal is not None:
        met = _meets(value, goal)
    row = {
        "benchmark": benchmark,
        "case": case,
        "metric": metric,
        "value": round(value, 6),
        "unit": unit,
        "goal": goal,
        "met": met,
    }
    print(json.dumps(row, ensure_ascii=False), flush=True)


def note(text: str) -> None:
    """Say something beside the measurements, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _meets(value: float, goal: str) -> bool:
    comparison, _, bound = goal.partition(" ")
    if comparison not in _GOALS:
        raise ValueError(
            f"goal {goal!r} is no comparison with a number; allowed are {', '.join(_GOALS)} NUMBER"
        )
    return bool(_GOALS[comparison](value, float(bound)))
