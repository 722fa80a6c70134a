"""Who gets which arm: salted hashes, the same in every process and on every machine, with no table to look in.

A layer is 10,000 buckets of units. Every running experiment of the layer has a range of them for itself; which of its
arms a unit of the range gets, a second hash says. Tang, Agarwal, O'Brien and Meyer (2010), Overlapping Experiment
Infrastructure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cp_core.learning.experiments.definition import Arm, ExperimentDefinition, Unit

BUCKETS = 10_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Running:
    """An experiment under way.

    Attributes:
        first_bucket: where its range in the layer begins.
    """

    definition: ExperimentDefinition
    first_bucket: int
    started_at: datetime

    def arm_of(self, task_id: str, submitted_at: datetime, now: datetime) -> Arm | None:
        """The arm of a task that is looked at `now`; None for one that does not take part.

        A task that was submitted before the start takes no part: some of it was settled by then.
        """
        if self.definition.unit is Unit.BLOCK:
            return arm_of(self.definition, self.block_of(now).isoformat())
        if submitted_at < self.started_at:
            return None
        place = bucket(f"layer {self.definition.layer}", task_id)
        if not self.first_bucket <= place < self.first_bucket + buckets_of(self.definition):
            return None
        return arm_of(self.definition, task_id)

    def block_of(self, now: datetime) -> datetime:
        """Start of the switchback block that holds at `now`: blocks are counted from 1970 (UTC)."""
        length = timedelta(hours=self.definition.block_hours or 1)
        return _EPOCH + (now - _EPOCH) // length * length


def bucket(salt: str, unit: str) -> int:
    """A number from 0 to 9,999: the first 8 bytes (big-endian) of SHA-256(salt, line feed, unit), modulo 10,000."""
    digest = hashlib.sha256(f"{salt}\n{unit}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def arm_of(definition: ExperimentDefinition, unit: str) -> Arm:
    """The arm of a unit that takes part: arms hold buckets in their order, by weight."""
    place = bucket(definition.salt_in_force, unit)
    total = sum(arm.weight for arm in definition.arms)
    reached = 0
    for arm in definition.arms:
        reached += arm.weight
        if place * total < reached * BUCKETS:
            return arm
    raise AssertionError("the last arm's buckets end where all end")


def buckets_of(definition: ExperimentDefinition) -> int:
    """Buckets of its layer that an experiment takes."""
    return max(1, round(definition.traffic * BUCKETS))


def room_for(wanted: int, taken: Iterable[tuple[int, int]]) -> int | None:
    """Where `wanted` buckets in a row are free beside ranges (first, count) that are taken; None: nowhere."""
    first = 0
    for begin, count in sorted(taken):
        if begin - first >= wanted:
            return first
        first = max(first, begin + count)
    return first if BUCKETS - first >= wanted else None
