"""Who gets which arm: sticky by hash, in proportion, and never two experiments of a layer on one unit."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cp_core.learning.experiments.allotment import BUCKETS, Running, arm_of, bucket, buckets_of, room_for
from cp_core.learning.experiments.definition import ExperimentDefinition

START = datetime(2026, 3, 1, tzinfo=UTC)


def definition(**changes: Any) -> ExperimentDefinition:
    return ExperimentDefinition.model_validate(
        {
            "experiment": "trial",
            "hypothesis": "more succeed",
            "arms": [{"name": "control"}, {"name": "new", "overrides": {"policies.exploration.rate": 0.02}}],
            "metrics": [{"measure": "success"}],
            "planned_units_per_arm": 1000,
            **changes,
        }
    )


# From another program: printf 'SALT\nUNIT' | sha256sum, the first 16 hex digits modulo 10,000 (by awk).
@pytest.mark.parametrize(
    ("salt", "unit", "expected"),
    [
        ("trial", "T1", 4927),
        ("trial", "task-42", 8256),
        ("layer default", "T1", 5780),
        ("s", "ünïcode", 9064),
    ],
    ids=["one", "another unit", "a layer", "beyond ASCII"],
)
def test_a_bucket_is_the_same_on_every_machine(salt: str, unit: str, expected: int) -> None:
    assert bucket(salt, unit) == expected


def test_arms_hold_buckets_in_their_order_by_weight() -> None:
    three = definition(
        arms=[{"name": "a", "weight": 1}, {"name": "b", "weight": 2}, {"name": "c", "weight": 1}]
    )
    for number in range(2_000):
        unit = f"T{number}"
        place = bucket("trial", unit)
        assert arm_of(three, unit).name == ("a" if place < 2_500 else "b" if place < 7_500 else "c")


def test_units_are_shared_out_in_proportion() -> None:
    skewed = definition(arms=[{"name": "control", "weight": 3}, {"name": "new", "weight": 1}])
    counts = Counter(arm_of(skewed, f"task-{number}").name for number in range(20_000))
    assert counts["new"] == pytest.approx(5_000, abs=5 * (20_000 * 0.25 * 0.75) ** 0.5)


def test_another_salt_shares_out_anew() -> None:
    here, there = definition(), definition(salt="again")
    same = sum(arm_of(here, f"T{n}").name == arm_of(there, f"T{n}").name for n in range(4_000))
    assert same == pytest.approx(2_000, abs=5 * 1_000**0.5)


@given(
    shares=st.lists(st.floats(min_value=0.01, max_value=0.6), min_size=2, max_size=6),
    unit=st.text(min_size=1, max_size=40),
)
def test_experiments_of_one_layer_never_share_a_unit(shares: list[float], unit: str) -> None:
    running: list[Running] = []
    for number, share in enumerate(shares):
        one = definition(experiment=f"trial-{number}", traffic=share)
        room = room_for(
            buckets_of(one), [(other.first_bucket, buckets_of(other.definition)) for other in running]
        )
        if room is not None:
            running.append(Running(one, room, START))
    taking_part = [one for one in running if one.arm_of(unit, START, START)]
    assert len(taking_part) <= 1


@given(
    st.lists(st.tuples(st.integers(0, BUCKETS - 1), st.integers(1, 3_000)), max_size=5),
    st.integers(1, BUCKETS),
)
def test_a_range_is_found_exactly_where_there_is_room(taken: list[tuple[int, int]], wanted: int) -> None:
    free = [True] * BUCKETS
    for first, count in taken:
        free[first : first + count] = [False] * len(free[first : first + count])
    longest = max(map(len, "".join("x" if one else " " for one in free).split()), default=0)
    room = room_for(wanted, taken)
    assert (room is not None) == (longest >= wanted)
    if room is not None:
        assert all(free[room : room + wanted])
        assert room + wanted <= BUCKETS


def test_a_task_from_before_the_start_takes_no_part() -> None:
    running = Running(definition(), 0, START)
    assert running.arm_of("T1", START - timedelta(seconds=1), START) is None
    assert running.arm_of("T1", START, START + timedelta(days=9)) is not None


def test_a_block_has_one_arm_for_every_task_and_the_next_block_is_drawn_anew() -> None:
    blocks = definition(unit="switchback", block_hours=6, metrics=[{"measure": "value"}])
    running = Running(blocks, 0, START)
    assert running.block_of(START + timedelta(hours=13, minutes=5)) == START + timedelta(hours=12)
    of_block = [running.arm_of("T1", START, START + timedelta(hours=6 * n, minutes=1)) for n in range(400)]
    again = [running.arm_of("T2", START, START + timedelta(hours=6 * n + 5)) for n in range(400)]
    assert of_block == again
    assert Counter(arm.name for arm in of_block if arm)["new"] == pytest.approx(200, abs=50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "two arms have one name"),
        ({"arms": [{"name": "a"}]}, "at least 2"),
        (
            {"arms": [{"name": "a"}, {"name": "b", "overrides": {"policies.execution.max": 1}}]},
            "cannot override",
        ),
        ({"arms": [{"name": "a"}, {"name": "b", "overrides": {"models.x": 1}}]}, "cannot override models.x"),
        (
            {
                "arms": [
                    {"name": "a"},
                    {"name": "b", "overrides": {"policies.assignment.reservation_seconds": 1}},
                ]
            },
            "cannot override",
        ),
        (
            {"arms": [{"name": "a"}, {"name": "b", "overrides": {"policies.fairness.overdue_hours": 1}}]},
            "override",
        ),
        ({"unit": "switchback"}, "block_hours"),
        ({"block_hours": 3}, "block_hours"),
        ({"unit": "switchback", "block_hours": 3, "traffic": 0.5}, "all of the traffic"),
        ({"metrics": [{"measure": "success", "role": "guardrail"}]}, "role goal"),
        ({"least_units_per_arm": 2000}, "more than planned"),
        ({"least_days": 31}, "more than most_days"),
        ({"weights": 1}, "Extra inputs"),
    ],
    ids=[
        "names",
        "one arm",
        "workers",
        "models",
        "read by workers",
        "holds for all",
        "no block",
        "block of tasks",
        "part of blocks",
        "no goal",
        "least units",
        "least days",
        "unknown key",
    ],
)
def test_an_unsound_definition_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        definition(**changes)


def test_only_experiments_of_several_layers_that_change_the_same_conflict() -> None:
    def changing(key: str, layer: str) -> ExperimentDefinition:
        return definition(layer=layer, arms=[{"name": "control"}, {"name": "new", "overrides": {key: 1}}])

    rate = changing("policies.exploration.rate", "one")
    assert not rate.conflicts_with(changing("policies.exploration.rate", "one"))
    assert rate.conflicts_with(changing("policies.exploration.rate", "two"))
    assert not rate.conflicts_with(changing("policies.exploration.below", "two"))
    bands = changing("policies.assignment.bands", "one")
    assert bands.conflicts_with(changing("policies.assignment.bands.first", "two"))
