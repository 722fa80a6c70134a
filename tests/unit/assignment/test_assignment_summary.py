"""What decisions come to, counted by hand."""

from __future__ import annotations

from decimal import Decimal

from hand_made import NOW, accounts, frame, registry, task

from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.summary import AssignmentSummary
from cp_core.assignment.tiered import assign_tiered


def summary_of(*tasks: dict) -> AssignmentSummary:
    models = registry()
    summary = AssignmentSummary()
    for decision in assign_tiered(frame(*tasks), models, accounts(models), AssignmentPolicy(), now=NOW):
        summary.count([decision], models)
    return summary


def test_a_summary_counts_outcomes_and_sums_what_was_reserved():
    summary = summary_of(task(1, 95), task(2, 50), task(3, 96, domain="astrology"), task(4, 97, deadline=NOW))
    assert summary.decided == 4
    assert summary.outcomes == {"assigned": 2, "rejected": 2}
    assert summary.reasons == {"NO_ELIGIBLE_PLAN": 1, "DEADLINE_PASSED": 1}
    assert summary.models == {"opus": 1, "terra": 1}
    assert summary.tiers == {"premium": 1, "mid-range": 1}
    assert summary.fundings == {"subscription:claude-max": 1, "budget:api": 1}
    assert summary.reserved == {
        "claude-max/5-hour": 22_000,
        "claude-max/weekly": 22_000,
        "budget/api": Decimal("0.03"),
    }
    assert summary.expected_cost_usd == Decimal("0.18")  # $0.15 of opus, $0.03 of terra
    assert summary.value_assigned == 145


def test_summaries_add_up():
    whole, part = summary_of(task(1, 95), task(2, 50)), summary_of(task(1, 95))
    part.add(summary_of(task(2, 50)))
    assert part == whole


def test_a_summary_reads_as_one_line():
    assert str(AssignmentSummary()) == "0 decided"
    assert str(summary_of(task(1, 95), task(2, 97, deadline=NOW), task(3, 96))) == (
        "3 decided: 2 assigned, 1 rejected (DEADLINE_PASSED 1)"
    )
