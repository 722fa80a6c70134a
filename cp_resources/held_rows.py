"""Rows of a submission that wait until all others are stored, because they depend on other tasks."""

from __future__ import annotations

import os
import pickle
from tempfile import TemporaryFile
from typing import NamedTuple

from cp_resources.rejects import RejectsFile
from cp_resources.task_files import Row
from cp_resources.tasks import NewTask


class HeldRow(NamedTuple):
    """A row that waits for the others; `rejects` is its rejects file's position in `HeldRows.rejects`."""

    task: NewTask
    line: int
    text: bytes
    rejects: int


class HeldRows:
    """Rows that wait for the others, on disk; in memory only who they are and what they depend on.

    Attributes:
        dependencies: ids depended on, by task_id.
        places: where on disk a row stands, by task_id.
        keys: task_id by idempotency key.
        repeats: rows that use the id or key of an earlier one: that one's task_id, and their own place.
        rejects: rejects files of the files they came from.
    """

    def __init__(self) -> None:
        self.dependencies: dict[str, list[str]] = {}
        self.places: dict[str, int] = {}
        self.keys: dict[str, str] = {}
        self.repeats: list[tuple[str, int]] = []
        self.rejects: list[RejectsFile] = []
        self._spool = TemporaryFile()  # noqa: SIM115 - open for as long as this object is

    def add(self, task: NewTask, rejects: RejectsFile, row: Row) -> None:
        """Keep a row for later."""
        if not self.rejects or self.rejects[-1] is not rejects:
            self.rejects.append(rejects)
        place = self._spool.seek(0, os.SEEK_END)
        pickle.dump(HeldRow(task, row.line, row.text, len(self.rejects) - 1), self._spool)
        first = (
            task.task_id if task.task_id in self.dependencies else self.keys.get(task.idempotency_key or "")
        )
        if first is not None:
            self.repeats.append((first, place))
            return
        self.dependencies[task.task_id] = task.dependencies or []
        self.places[task.task_id] = place
        if task.idempotency_key is not None:
            self.keys[task.idempotency_key] = task.task_id

    def read(self, place: int) -> HeldRow:
        """The row that stands at `place`."""
        self._spool.seek(place)
        row: HeldRow = pickle.load(self._spool)  # noqa: S301 - written by this process, in a file of its own
        return row

    def close(self) -> None:
        """Give the disk space back."""
        self._spool.close()
