"""One event for every path, counted and timed by hand."""

from __future__ import annotations

import json
from collections import Counter
from itertools import count

import pytest
from hand_made import NOW, accounts, frame, registry, task

from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.telemetry import AssignmentTelemetry
from cp_core.assignment.tiered import assign_tiered

KEYS = {
    *(
        "path",
        "strategy",
        "config_hash",
        "tasks",
        "decided",
        "outcomes",
        "reasons",
        "models",
        "tiers",
        "fundings",
    ),
    *("reserved", "expected_cost_usd", "value_assigned", "races_lost", "considered", "pruned", "queries"),
    *("cache_hits", "cache_misses", "seconds", "objective", "bound", "gap", "inline"),
}


def telemetry(path: str = "batch", **other: object) -> AssignmentTelemetry:
    return AssignmentTelemetry(path=path, strategy="tiered", config_hash="abc", **other)


@pytest.mark.parametrize("path", ["batch", "inline", "stress"])
def test_every_path_emits_the_same_keys(path: str):
    assert set(telemetry(path).to_event()) == KEYS


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match="'web'; allowed are batch, inline, stress"):
        telemetry("web")


def test_decisions_are_counted_by_outcome_reason_and_model():
    models, seen = registry(), telemetry()
    tasks = frame(task(1, 95), task(2, 50), task(3, 96, domain="astrology"))
    for decision in assign_tiered(tasks, models, accounts(models), AssignmentPolicy(), now=NOW):
        seen.count([decision], models)
    assert seen.outcomes == {"assigned": 2, "rejected": 1}
    assert seen.reasons == {"NO_ELIGIBLE_PLAN": 1}
    assert seen.models == {"opus": 1, "terra": 1}
    assert seen.to_event()["decided"] == 3


def test_a_step_adds_up_over_its_calls_even_when_one_raises():
    ticks = count()
    seen = telemetry()
    with seen.step("solve", lambda: float(next(ticks))):
        next(ticks)  # a second passes
    with pytest.raises(KeyError), seen.step("solve", lambda: float(next(ticks))):
        raise KeyError
    with seen.step("store", lambda: float(next(ticks))):
        pass
    assert seen.seconds == {"solve": 3.0, "store": 1.0}
    assert seen.to_event()["seconds"] == {"solve": 3.0, "store": 1.0, "total": 4.0}


def test_the_gap_is_the_fraction_of_the_bound_that_was_not_reached():
    assert telemetry().gap is None
    assert telemetry(objective=99.0, bound=100.0).gap == pytest.approx(0.01)
    assert telemetry(objective=0.0, bound=0.0).gap == 0.0


def test_the_hit_rate_is_known_once_the_cache_was_asked():
    assert telemetry().cache_hit_rate is None
    assert telemetry(cache_hits=3, cache_misses=1).cache_hit_rate == 0.75


def test_debug_counters_are_kept_only_when_they_are_wanted():
    quiet, wanted = telemetry(), telemetry(debug=Counter())
    for seen in (quiet, wanted):
        seen.profile(evaluations=3)
        seen.profile(evaluations=2, core=400)
    assert "debug" not in quiet.to_event()
    assert wanted.to_event()["debug"] == {"evaluations": 5, "core": 400}


def test_merging_adds_counts_times_and_proofs():
    whole = telemetry(
        tasks=2,
        considered=20,
        pruned=Counter(FAILED_BEFORE=1),
        queries=3,
        cache_hits=1,
        seconds={"solve": 1.0},
        objective=90.0,
        bound=100.0,
    )
    whole.merge(
        telemetry(
            tasks=3,
            considered=30,
            pruned=Counter(FAILED_BEFORE=2, BREAKER_OPEN=4),
            queries=4,
            cache_misses=2,
            seconds={"solve": 0.5, "store": 2.0},
            objective=100.0,
            bound=100.0,
            inline={"timeouts": 1},
            debug=Counter(core=1),
        )
    )
    event = whole.to_event()
    assert (event["tasks"], event["considered"], event["queries"]) == (5, 50, 7)
    assert (event["cache_hits"], event["cache_misses"]) == (1, 2)
    assert event["pruned"] == {"FAILED_BEFORE": 3, "BREAKER_OPEN": 4}
    assert event["seconds"] == {"solve": 1.5, "store": 2.0, "total": 3.5}
    assert event["gap"] == pytest.approx(0.05)
    assert event["inline"] == {"timeouts": 1}
    assert event["debug"] == {"core": 1}


def test_merging_what_solved_nothing_keeps_the_proof():
    seen = telemetry(objective=99.0, bound=100.0)
    seen.merge(telemetry())
    assert (seen.objective, seen.bound) == (99.0, 100.0)


def test_an_event_is_plain_json():
    seen = telemetry(pruned=Counter(BREAKER_OPEN=1), inline={"attempts": 2}, debug=Counter(core=1))
    assert json.loads(json.dumps(seen.to_event(), allow_nan=False)) == seen.to_event()
