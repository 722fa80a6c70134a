"""Which days get a run now: the decision of new_tasks_sensor, as a function of plain values.

A day has at most one run at a time. What a run is launched for is its batch: the day's open work as it stood,
known by a hash. The cursor keeps, for each day that still has work, the batch whose run last succeeded; it
moves only when a run record says so. A day with work after a success gets another run: at once when the run
changed something, after a pause when it left exactly what it was given. After failures a day waits longer
each time, `LONGEST_BACKOFF` at most; from `MANY_FAILURES` for the same batch on, the tick asks for a person.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

MANY_FAILURES = 3
FIRST_BACKOFF = timedelta(seconds=30)
LONGEST_BACKOFF = timedelta(minutes=15)
PAUSE_WITHOUT_PROGRESS = timedelta(minutes=1)
MAX_LAUNCHES = 25
"""Most runs requested at one tick; the other days follow at the next."""

Cursor = Mapping[date, str]
"""By day, the batch whose run last succeeded."""


@dataclass(frozen=True)
class DayWork:
    """What a run of a day would find to do.

    Attributes:
        tasks: how many tasks.
        mark: text that changes when any of those tasks changes, or another one joins them.
    """

    day: date
    tasks: int
    mark: str

    @property
    def batch(self) -> str:
        """Id of this work: the same for the same tasks in the same condition."""
        return hashlib.sha256(f"{self.day} {self.tasks} {self.mark}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EndedRun:
    """A run of a day that is over: the `attempt`-th for its batch, which is None when a person launched it."""

    batch: str | None
    succeeded: bool
    ended_at: datetime
    attempt: int = 1


@dataclass(frozen=True)
class Launch:
    """A run to request: the `attempt`-th one for this batch."""

    day: date
    batch: str
    attempt: int

    @property
    def run_key(self) -> str:
        """Makes a request that is repeated, by a tick that was cut off, launch nothing twice."""
        return f"{self.day}:{self.batch}:{self.attempt}"


@dataclass(frozen=True)
class Decision:
    """What a tick does: which runs it requests, why other days get none, and where the cursor stands."""

    launches: Sequence[Launch]
    waiting: Sequence[str]
    cursor: Cursor


def decide(
    work: Sequence[DayWork],
    *,
    under_way: Collection[date],
    ended: Mapping[date, Sequence[EndedRun]],
    cursor: Cursor,
    now: datetime,
) -> Decision:
    """Decide which days get a run.

    Args:
        work: the days that have something to do now, most urgent first.
        under_way: days with a run that is not over.
        ended: the runs of each day that are over, newest first.
        cursor: as the last decision left it.
        now: aware of its time zone, as is every `ended_at`.
    """
    launches: list[Launch] = []
    waiting: list[str] = []
    moved: dict[date, str] = {}
    for day_work in work:
        runs = ended.get(day_work.day, ())
        succeeded = _last_success(runs) or cursor.get(day_work.day)
        if succeeded:
            moved[day_work.day] = succeeded
        if day_work.day in under_way:
            waiting.append(f"{day_work.day}: a run is under way")
        elif why := _why_not_yet(day_work, runs, succeeded, now):
            waiting.append(f"{day_work.day}: {why}")
        elif len(launches) == MAX_LAUNCHES:
            waiting.append(f"{day_work.day}: follows at the next tick")
        else:
            # the history is cut, the numbers go on: a run key that was used launches nothing
            attempts = [run.attempt for run in runs if run.batch == day_work.batch]
            launches.append(Launch(day_work.day, day_work.batch, max([len(attempts), *attempts]) + 1))
    return Decision(launches, waiting, moved)


def write_cursor(cursor: Cursor) -> str:
    """The cursor as text."""
    return json.dumps({day.isoformat(): batch for day, batch in sorted(cursor.items())})


def read_cursor(text: str | None) -> Cursor:
    """The cursor from text, empty at the first tick."""
    return {date.fromisoformat(day): batch for day, batch in json.loads(text or "{}").items()}


def _last_success(runs: Iterable[EndedRun]) -> str | None:
    return next((run.batch for run in runs if run.succeeded and run.batch), None)


def _why_not_yet(work: DayWork, runs: Sequence[EndedRun], succeeded: str | None, now: datetime) -> str | None:
    """Why a day whose last run is over gets no run now; None when it does."""
    if not runs:
        return None
    if runs[0].succeeded:
        again_at = runs[0].ended_at + PAUSE_WITHOUT_PROGRESS
        if succeeded == work.batch and now < again_at:
            return f"the last run left its {work.tasks} tasks as they were; again at {again_at:%H:%M:%S} UTC"
        return None
    failures = _failures(runs)
    again_at = runs[0].ended_at + backoff(len(failures))
    if now >= again_at:
        return None
    if len(failures) >= MANY_FAILURES and all(run.batch == work.batch for run in failures[:MANY_FAILURES]):
        return (
            f"{len(failures)} runs or more for the same {work.tasks} tasks failed in a row, and a person should see "
            f"the last one's error; again at {again_at:%H:%M:%S} UTC"
        )
    return f"the last run failed; again at {again_at:%H:%M:%S} UTC"


def _failures(runs: Sequence[EndedRun]) -> list[EndedRun]:
    """The failures since the last success, newest first."""
    until = next((index for index, run in enumerate(runs) if run.succeeded), len(runs))
    return list(runs[:until])


def backoff(failures: int) -> timedelta:
    """30 s after the first failure, doubling with each further one, 15 minutes at most."""
    doublings = min(failures - 1, 16)
    return min(FIRST_BACKOFF * (1 << doublings), LONGEST_BACKOFF)
