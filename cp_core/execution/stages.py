"""The stages of a plan while it is carried out: which follows which, and what an attempt at each reserves.

The check between two stages is the verdict on the work (`outcome.judge`). Work that passes it ends the task; work
that does not, or a model that would fail the same way again, leads to the next stage; after the last one the plan
has failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from cp_core.assignment.decision import Stage, sum_of


def following_stage(plan: Sequence[Stage], stage: int) -> int | None:
    """The stage to escalate to: the next one with another model. None after the last.

    Args:
        stage: where the plan stands, from 0.
    """
    later = range(stage + 1, len(plan))
    return next((number for number in later if plan[number].model != plan[stage].model), None)


def reserved_at(plan: Sequence[Stage], stage: int) -> dict[str, Decimal]:
    """What an attempt at a stage reserves, by account: all that it takes, and of the stages after it what was
    expected of them when the plan was made."""
    return sum_of([plan[stage].in_full, *(later.amounts for later in plan[stage + 1 :])])
