"""Which simulated calls fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_resources.simulator.weather import Failure, Storm, StormError, failure_of, is_refused

KEYS = [("gpt-5.4", f"task {i}", "1") for i in range(2000)]


def _share(share: float, storms: tuple[Storm, ...] = (), elapsed: float = 0.0) -> float:
    return sum(failure_of(7, key, share, storms, elapsed) is not None for key in KEYS) / len(KEYS)


def test_the_share_of_failures_is_as_asked() -> None:
    assert _share(0.0) == 0.0
    assert _share(1.0) == 1.0
    assert _share(0.2) == pytest.approx(0.2, abs=0.04)


def test_the_same_call_fails_the_same_way_and_its_next_attempt_may_not() -> None:
    failing = [key for key in KEYS if failure_of(7, key, 0.2, (), 0)]
    assert failing == [key for key in KEYS if failure_of(7, key, 0.2, (), 0)]
    again = [failure_of(7, (model, task, "2"), 0.2, (), 0) for model, task, _ in failing]
    assert 0 < sum(failure is not None for failure in again) < len(failing) / 2


def test_steady_failures_pass_by_themselves() -> None:
    kinds = {failure_of(7, key, 1.0, (), 0) for key in KEYS}
    assert kinds == set(Failure) - {Failure.HANG, Failure.TRICKLE, Failure.OUT_OF_CREDIT}


def test_a_storm_lasts_from_its_start_for_its_seconds() -> None:
    storms = (Storm(start=10, seconds=5, share=1.0),)
    assert [_share(0.0, storms, at) for at in (9.9, 10.0, 14.9, 15.0)] == [0.0, 1.0, 1.0, 0.0]


def test_a_storm_may_be_of_one_kind() -> None:
    storms = (Storm(0, 1, 1.0, Failure.OVERLOADED),)
    assert {failure_of(7, key, 0.0, storms, 0.5) for key in KEYS} == {Failure.OVERLOADED}


@given(st.floats(0, 1), st.floats(0, 1), st.text(max_size=20))
def test_a_storm_adds_failures_and_removes_none(share: float, storm_share: float, task: str) -> None:
    key = ("gpt-5.4", task, "1")
    calm = failure_of(7, key, share, (), 0)
    stormy = failure_of(7, key, share, (Storm(0, 1, storm_share),), 0)
    assert calm is None or stormy == calm


def test_a_refusal_lasts_and_depends_on_the_model() -> None:
    refused = {
        model: {task for _, task, _ in KEYS if is_refused(7, model, task, 0.1)} for model in ("a", "b")
    }
    assert refused["a"] != refused["b"]
    assert all(100 < len(tasks) < 300 for tasks in refused.values())


@pytest.mark.parametrize(
    ("text", "storm"),
    [
        ("10:30:0.7", Storm(10, 30, 0.7)),
        ("0:1.5:1:overloaded", Storm(0, 1.5, 1.0, Failure.OVERLOADED)),
    ],
)
def test_a_storm_is_read_from_its_text(text: str, storm: Storm) -> None:
    assert Storm.parse(text) == storm


@pytest.mark.parametrize(
    "text", ["", "1:2", "1:2:3:4:5", "a:b:c", "1:2:1.1", "-1:2:0.5", "1:0:0.5", "1:nan:0.5", "1:2:0.5:sleet"]
)
def test_a_storm_that_cannot_be_read_says_what_is_allowed(text: str) -> None:
    with pytest.raises(StormError, match=r"START:SECONDS:SHARE\[:KIND\].*overloaded.*10:30:0.7"):
        Storm.parse(text)
