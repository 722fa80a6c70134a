"""What a reader of task files gives: rows, rows that cannot be read, and the end of what can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from cp_resources.errors import UserError

FILE_BYTES = 10 * 1024**3
"""Most bytes read of one file, counted after decompression."""
ROW_BYTES = 2 * 1024**2
"""Most bytes of one row as it stands in the file: a row of legal fields has less, however it is escaped."""


class UnusableFileError(UserError):
    """A file, or all of it from some line on, cannot be read as rows of tasks."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row that could be read.

    Attributes:
        line: line of the file on which it begins, from 1.
        fields: its values by name.
        text: the row as it stands in the file.
    """

    line: int
    fields: dict[str, Any]
    text: bytes


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that could not be read: where it begins, why, and as much of it as was kept."""

    line: int
    message: str
    text: bytes


def too_long(line: int, text: bytes) -> BadRow:
    return BadRow(line, f"the row is longer than {ROW_BYTES:,} bytes, the most a row may have", text)


def json_row(text: bytes, line: int, offset: int) -> Row | BadRow:
    """One row from its JSON; `offset` is where it begins in the file."""
    try:
        fields = from_json(text)
    except ValueError as error:
        invalid = invalid_utf8(text, line, offset)
        return BadRow(line, invalid or f"not valid JSON: {error} (counted from the row's beginning)", text)
    if not isinstance(fields, dict):
        return BadRow(line, 'not a JSON object: a row looks like {"title": "…", "priority": "P2"}', text)
    return Row(line, fields, text)


def invalid_utf8(text: bytes, line: int, offset: int) -> str | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        where = line + text.count(b"\n", 0, error.start)
        return (
            f"not valid UTF-8: byte 0x{text[error.start]:02x} in line {where}, at byte "
            f"{offset + error.start:,} of the file (counted from 0)"
        )
    return None
