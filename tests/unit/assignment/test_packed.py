"""Explanations kept as figures: what is read back is what the numbers and the legend say."""

from __future__ import annotations

import json

from market_tasks import decide, market_task

from cp_core.assignment.packed import DRAWN, FACTS, FIGURES, SHOWN, TURNED_AWAY, WEIGHED, Legend, Packed

LEGEND = Legend(
    strategy="maximize_value",
    plans=["opus (subscription:claude-max)", "haiku (budget:api)"],
    names={"risk": ["staging"], "domain": ["ml", "backend"], "complexity": ["simple"]},
    excluded=[{}, {"MODEL_DISABLED": ["sonnet (budget:api)"]}],
)
NO_PLAN = [-1.0] + [0.0] * len(WEIGHED)
FACTS_OF_TASK = [float(number) for number in range(10, 10 + len(FACTS))]
CODES = [0.0, 1.0, 0.0, 1.0]
HAIKU = [1.0, 0.75, 0.5, 0.25, 30.0, 20.0, 12.5]


def test_a_chosen_plan_its_alternatives_and_its_draw_are_spelled_out() -> None:
    opus = [0.0, 0.5, 1.0, 0.0, 60.0, 15.0, 10.0]
    drawn = [1.0, 0.93, 0.0, 0.07, -1.0, 0.0]
    settled_by_prices = 0.0
    packed = Packed(
        [*FACTS_OF_TASK, *CODES, settled_by_prices, *HAIKU, *opus, *NO_PLAN, *NO_PLAN, *drawn], LEGEND
    )
    assert len(packed.figures) == FIGURES == len(FACTS) + 5 + 7 * SHOWN + 2 * DRAWN
    assert dict(packed) == {
        "strategy": "maximize_value",
        **dict(zip(FACTS, FACTS_OF_TASK, strict=True)),
        "risk": "staging",
        "domain": "backend",
        "complexity": "simple",
        "excluded": {"MODEL_DISABLED": ["sonnet (budget:api)"]},
        "plan": {
            "plan": "haiku (budget:api)",
            "success": 0.75,
            "list_usd": 0.5,
            "billed_usd": 0.25,
            "seconds": 30.0,
            "worth": 20.0,
            "net": 12.5,
        },
        "alternatives": [
            {
                "plan": "opus (subscription:claude-max)",
                "success": 0.5,
                "list_usd": 1.0,
                "billed_usd": 0.0,
                "seconds": 60.0,
                "worth": 15.0,
                "net": 10.0,
            }
        ],
        "decided_by": "prices",
        "probabilities": {"haiku (budget:api)": 0.93, "opus (subscription:claude-max)": 0.07},
    }


def test_a_task_that_was_turned_away_shows_no_plans_but_what_it_waits_for() -> None:
    nothing = [*NO_PLAN * SHOWN, *[-1.0, 0.0] * DRAWN]
    packed = Packed(
        [*FACTS_OF_TASK, *CODES, float(TURNED_AWAY), *nothing], LEGEND, {"dependencies": ["other"]}
    )
    assert packed["dependencies"] == ["other"]
    assert not {"plan", "alternatives", "decided_by", "probabilities"} & packed.keys()


def test_what_is_stored_of_a_round_reads_as_what_was_decided() -> None:
    found = decide(*(market_task(number, 10.0 + 9 * number) for number in range(8)))
    assert found.legend is not None
    legend = Legend(**json.loads(json.dumps(found.legend.as_json())))
    for decision in found.decisions:
        assert isinstance(decision.explanation, Packed)
        figures = json.loads(json.dumps(list(decision.explanation.figures)))
        assert dict(Packed(figures, legend, decision.explanation.own)) == dict(decision.explanation)
