"""Section `execution` of policies.yaml."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cp_core.execution.policy import ExecutionPolicy


def test_the_defaults_are_valid_and_say_that_6_is_good_enough() -> None:
    assert ExecutionPolicy().success_quality == 6.0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lease_second": 60}, "lease_second"),
        ({"success_quality": 11}, "less than or equal to 10"),
        ({"timeout_seconds": float("inf")}, "finite"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"lease_seconds": 20, "heartbeat_seconds": 15}, "at most half of lease_seconds"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ExecutionPolicy(**settings)
