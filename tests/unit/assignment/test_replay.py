"""Decisions made again from what is stored with them come out the same, after a trip through JSON."""

from __future__ import annotations

import json

import pytest
from market_tasks import CATALOGUE, decide, market_task

from cp_core.assignment.exploration import ExplorationPolicy
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.replay import StoredDecision, StoredRound, replay_plan, replay_round
from cp_core.assignment.strategies import OBJECTIVES

HELD = {"five_hour": 800_000, "api": 2}
EXPLORING = ExplorationPolicy(rate=0.1)
TASKS = [
    market_task(
        n,
        20 + (37 * n) % 80,
        input_mean=4_000.0 + (7_919 * n) % 30_000,
        complexity=("simple", "complex")[n % 2],
        waiting_hours=float((13 * n) % 74),
        deadline=None,
        failed_models=["terra"] if n % 7 == 0 else None,
        dependencies_pending=["A"] if n % 31 == 0 else None,
    )
    for n in range(200)
]


def stored(found, strategy, start=None):
    figures = {
        "prices": found.prices,
        "start": start or {},
        "available": found.available,
        "lapsing": found.lapsing,
    }
    return StoredRound(strategy, 5, **json.loads(json.dumps(figures)))


@pytest.mark.parametrize("strategy", OBJECTIVES)
def test_what_prices_settled_follows_from_the_facts_and_the_prices(strategy):
    found = decide(*TASKS, strategy=strategy, held=HELD, models=CATALOGUE, exploration=EXPLORING, seed=5)
    settled = [one for one in found.decisions if one.explanation.get("decided_by") == "prices"]
    assert len(settled) > 20
    for one in settled:
        facts = json.loads(json.dumps(dict(one.explanation)))
        assert replay_plan(facts, CATALOGUE, stored(found, strategy)) == facts["plan"]["plan"]


@pytest.mark.parametrize("strategy", OBJECTIVES)
def test_a_whole_round_follows_from_the_facts_of_its_tasks(strategy):
    start = {"claude-max/5-hour": 0.001}
    found = decide(
        *TASKS, strategy=strategy, held=HELD, models=CATALOGUE, exploration=EXPLORING, seed=5, start=start
    )
    made = {one.task: one.explanation["plan"]["plan"] if one.plan else None for one in found.decisions}
    decisions = [
        StoredDecision(
            one.task,
            TASKS[one.task]["decision_id"],
            one.reason,
            None,
            json.loads(json.dumps(dict(one.explanation))),
        )
        for one in found.decisions
    ]
    again = replay_round(
        decisions[::-1], CATALOGUE, stored(found, strategy, start), FairnessPolicy(), EXPLORING
    )
    assert again == made
    assert {one.explanation["decided_by"] for one in found.decisions if one.plan} >= {"prices", "overdue"}
