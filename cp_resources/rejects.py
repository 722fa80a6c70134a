"""The file of rows that were not taken, from which a person can mend them and submit them again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cp_core.tasks.submission import Problem
from cp_resources.errors import UserError

ROW_CHARACTERS = 10_000
"""Most characters of a rejected row that are kept; a longer one ends in "…"."""


class RejectsError(UserError):
    """Rejected rows cannot be written. The text says where and why."""


class RejectsFile:
    """Rejected rows of one task file. Nothing is created before the first of them.

    Each line has `line`, `field`, `value` and `message` of the row's first problem, its other problems under
    `also`, and the row as it stood in the file under `row`. A line is written whole, in one call: what a
    crash leaves behind is still readable.

    Args:
        places: paths to create the file at; the first that can be written is used. Nothing is ever
            overwritten: a path that exists is passed over for one with a number.
    """

    def __init__(self, *places: Path) -> None:
        self._places = places
        self._file: int | None = None
        self.path: Path | None = None

    def write(self, line: int | None, problems: Sequence[Problem], row: bytes) -> None:
        """Add one rejected row.

        Raises:
            RejectsError: the file cannot be created at any of its places, or not be written any further.
        """
        if self._file is None:
            self._file, self.path = self._create()
        first, *others = problems
        text = row.decode(errors="backslashreplace")
        entry: dict[str, object] = {"line": line, **_entry(first)}
        if others:
            entry["also"] = [_entry(problem) for problem in others]
        entry["row"] = text if len(text) <= ROW_CHARACTERS else text[:ROW_CHARACTERS] + "…"
        try:
            os.write(self._file, json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise RejectsError(
                f"cannot write the rejects file {self.path} any further: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> RejectsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _create(self) -> tuple[int, Path]:
        reasons = []
        for place in self._places:
            try:
                return _create_new(place)
            except OSError as error:
                reasons.append(f"{place} ({error.strerror})")
        raise RejectsError(
            f"cannot write the rejects file {' or '.join(reasons)}; name another place with --rejects"
        )


def _entry(problem: Problem) -> dict[str, str | None]:
    return {"field": problem.field, "value": problem.value, "message": problem.message}


def _create_new(path: Path) -> tuple[int, Path]:
    if path.exists() and not path.is_file():
        return os.open(path, os.O_WRONLY), path  # a device or a pipe: nothing there to overwrite
    number = 1
    while True:
        name = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644), name
        except FileExistsError:
            number += 1
