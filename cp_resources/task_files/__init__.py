"""Reading the rows of a task file one at a time: JSON lines, a JSON list, or CSV, plain or gzipped.

A reader holds one row in memory, never the file, and gives each row its line. What a row means is decided
elsewhere; a row that cannot be read at all comes out as a `BadRow`, and the reader goes on behind it.
"""

from __future__ import annotations

import re
import stat
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from pydantic_core import from_json

from cp_resources.task_files.csv_records import csv_records
from cp_resources.task_files.json_lines import json_lines
from cp_resources.task_files.json_list import JsonList
from cp_resources.task_files.lines import Counted, Lines
from cp_resources.task_files.rows import FILE_BYTES, ROW_BYTES, BadRow, Row, UnusableFileError

__all__ = [
    "FILE_BYTES",
    "ROW_BYTES",
    "STDIN",
    "BadRow",
    "Format",
    "Row",
    "TaskFile",
    "UnusableFileError",
    "open_task_file",
]

STDIN = "-"


class Format(StrEnum):
    """Formats a task file may have."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"


# .json is left to sniffing: it is often JSON lines.
_EXTENSIONS = {".jsonl": Format.JSONL, ".ndjson": Format.JSONL, ".csv": Format.CSV}


class TaskFile:
    """An open task file.

    Attributes:
        name: the path as given, or "standard input".
        size: bytes on disk, or None where unknown.
        identity: names this very content, as far as the file system tells: the same file read again has the
            same identity, a file written anew has another.
    """

    def __init__(
        self, raw: BinaryIO, name: str, declared: Format | None, *, identity: str, size: int | None
    ) -> None:
        self.name = name
        self.identity = identity
        self.size = size
        self._raw = Counted(raw)
        self._declared = declared

    @property
    def position(self) -> int:
        """Bytes taken from the disk so far; compared with `size` it tells the progress."""
        return self._raw.taken

    def rows(self, check_columns: Callable[[list[str]], None] | None = None) -> Iterator[Row | BadRow]:
        """Every row in turn.

        Args:
            check_columns: is given a CSV file's columns before its first row, and may raise.

        Raises:
            UnusableFileError: the file is of no known format, or is damaged or too large from some line on.
        """
        lines = None
        try:
            lines = Lines(self._raw, self.name)
            chosen = self._declared or _sniff(lines.head)
            if chosen is Format.CSV:
                yield from csv_records(lines, check_columns)
            else:
                yield from json_lines(lines) if chosen is Format.JSONL else JsonList(lines).rows()
        except (EOFError, OSError, zlib.error) as error:
            line = lines.number if lines else 0
            raise UnusableFileError(
                f"{self.name}: damaged or cut short; nothing behind line {line} could be read ({error})"
            ) from None


@contextmanager
def open_task_file(
    path: str | Path, declared: Format | None = None, *, identity: str | None = None
) -> Iterator[TaskFile]:
    """Open a task file, or standard input for "-".

    Args:
        path: the file, or "-".
        declared: its format; else the extension tells it, else the first bytes do.
        identity: see `TaskFile`; by default made of the path, the size and the time of change.

    Raises:
        UnusableFileError: there is no such file, or it may not be read.
    """
    if str(path) == STDIN:
        yield TaskFile(sys.stdin.buffer, "standard input", declared, identity=uuid.uuid4().hex, size=None)
        return
    path = Path(path)
    try:
        raw = path.open("rb", buffering=0)
    except OSError as error:
        raise UnusableFileError(f"cannot read {path}: {error.strerror}") from None
    with raw:
        status = path.stat()
        plain = stat.S_ISREG(status.st_mode)
        seen = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}" if plain else uuid.uuid4().hex
        yield TaskFile(
            raw,
            str(path),
            declared or _format_of(path),
            identity=identity or seen,
            size=status.st_size if plain else None,
        )


def _format_of(path: Path) -> Format | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _EXTENSIONS.get(suffixes[-1]) if suffixes else None


def _sniff(head: bytes) -> Format:
    """The format that the first bytes of a file speak for."""
    text = head.lstrip()
    if text.startswith(b"["):
        return Format.JSON
    if not text.startswith(b"{"):
        return Format.CSV
    line, _, rest = text.partition(b"\n")
    try:
        first = from_json(line)
    except ValueError as error:
        if str(error).startswith("EOF") and rest:
            return Format.JSON  # an object over several lines
        # one line, and it is longer than what was looked at, or holds several objects
        several = str(error).startswith(("EOF", "trailing characters"))
        return Format.JSON if several and re.search(rb"\[\s*\{", line) else Format.JSONL
    if rest.strip() or "title" in first:
        return Format.JSONL
    holds_rows = any(
        isinstance(value, list) and value and isinstance(value[0], dict) for value in first.values()
    )
    return Format.JSON if holds_rows else Format.JSONL
