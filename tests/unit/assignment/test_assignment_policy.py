"""The policy section of policies.yaml: its defaults are the written policy, and nonsense is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cp_core.assignment.policy import AssignmentPolicy, Band
from cp_core.models.registry import Tier
from cp_core.quota.account import AccountState
from cp_core.tasks.reasons import Reason


def test_the_defaults_are_the_written_policy():
    policy = AssignmentPolicy()
    assert [(band.at_least, [str(tier) for tier in band.tiers]) for band in policy.bands] == [
        (90, ["premium"]),
        (75, ["premium", "mid-premium"]),
        (60, ["mid-premium", "mid-range"]),
        (40, ["mid-range", "budget"]),
        (0, ["budget"]),
    ]
    assert [band.at_least for band in policy.bands if band.subscription_first] == [75]
    assert policy.family_preference is not None
    assert policy.family_preference.model_dump() == {
        "domain": "infrastructure",
        "at_least": 60,
        "family": "claude",
    }
    assert (policy.kept_quota.at_least, set(policy.kept_quota.states)) == (
        90,
        {AccountState.LOW, AccountState.CRITICAL},
    )


@pytest.mark.parametrize("thresholds", [[90, 40], [40, 90, 0], [40, 40, 0], []])
def test_bands_that_leave_a_score_without_a_band_are_refused(thresholds):
    bands = [{"at_least": at_least, "tiers": ["budget"]} for at_least in thresholds]
    with pytest.raises(ValidationError, match="bands must fall from the highest to 0"):
        AssignmentPolicy.model_validate({"bands": bands})


def test_a_band_that_names_a_tier_twice_is_refused():
    with pytest.raises(ValidationError, match="name one twice: budget, budget"):
        Band(at_least=0, tiers=(Tier.BUDGET, Tier.BUDGET))


def test_a_misspelt_key_is_refused():
    with pytest.raises(ValidationError, match="stratgy"):
        AssignmentPolicy.model_validate({"stratgy": "tiered"})


@pytest.mark.parametrize(("waited", "expected"), [(0, 2), (1, 2), (40, 40), (4_000, 300)])
def test_a_task_that_waits_for_another_is_looked_at_less_and_less_often(waited, expected):
    assert AssignmentPolicy().wait_seconds(Reason.DEPENDENCY_PENDING, waited) == expected


def test_any_other_deferral_waits_the_same_time():
    assert AssignmentPolicy().wait_seconds(Reason.INSUFFICIENT_TIER_CAPACITY, 7) == 300
