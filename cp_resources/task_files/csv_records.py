"""CSV with a header: records by the rules of the csv module, one in memory at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator

from cp_core.tasks.submission import DESCRIPTION_CHARACTERS
from cp_resources.task_files.lines import Lines
from cp_resources.task_files.rows import ROW_BYTES, BadRow, Row, UnusableFileError, invalid_utf8, too_long


class _UnreadableRecordError(Exception):
    """A record of a CSV file that must not be given to the csv module."""


class _CsvFeed:
    """Feeds decoded lines to the csv module, and remembers those of the present record, up to `ROW_BYTES`.

    Attributes:
        first: line at which the present record begins.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.begin_record()

    def begin_record(self) -> None:
        self.first = self._lines.number + 1
        self._text = bytearray()
        self._quotes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._lines.line()
        if not line:
            raise StopIteration
        self._quotes += line.count(b'"')
        offset = self._lines.offset - len(line)
        if len(self._text) + len(line) > ROW_BYTES:
            self._quotes += sum(piece.count(b'"') for piece in self._lines.rest_of_line(line))
            raise _UnreadableRecordError(too_long(self.first, b"").message)
        self._text += line
        if invalid := invalid_utf8(line, self._lines.number, offset):
            raise _UnreadableRecordError(invalid)
        return line.decode()

    def skip_record(self) -> None:
        """Go to the line behind the present record; within quotes the end of a line ends no record."""
        while self._quotes % 2 and (line := self._lines.line()):
            self._quotes += line.count(b'"') + sum(
                piece.count(b'"') for piece in self._lines.rest_of_line(line)
            )

    @property
    def text(self) -> bytes:
        """The present record as it stands in the file."""
        return bytes(self._text)

    @property
    def span(self) -> str:
        """The lines of a record of several, for the end of a message."""
        last = self._lines.number
        return f" (lines {self.first} to {last})" if last > self.first else ""


def csv_records(lines: Lines, check_columns: Callable[[list[str]], None] | None) -> Iterator[Row | BadRow]:
    feed = _CsvFeed(lines)
    first_line = lines.head.partition(b"\n")[0]
    delimiter = max(",;\t", key=lambda mark: first_line.count(mark.encode()))
    records = csv.reader(feed, delimiter=delimiter, strict=True)
    columns = _csv_columns(records, lines.name)
    if check_columns:
        check_columns(columns)
    while True:
        feed.begin_record()
        try:
            cells = next(records)
        except StopIteration:
            return
        except (csv.Error, _UnreadableRecordError) as error:
            feed.skip_record()
            yield BadRow(feed.first, f"{_csv_message(error)}{feed.span}", feed.text)
            continue
        if not cells:
            continue
        if len(cells) != len(columns):
            message = f"has {len(cells)} cells where the header has {len(columns)} columns{feed.span}"
            yield BadRow(feed.first, message, feed.text)
            continue
        fields = {
            name: cell for name, cell in zip(columns, cells, strict=True) if cell and not cell.isspace()
        }
        yield Row(feed.first, fields, feed.text)


def _csv_message(error: Exception) -> str:
    text = str(error)
    if text == "unexpected end of data":
        return "a quote is opened and never closed"
    if text.startswith("field larger than field limit"):
        return (
            f"a cell has more than {csv.field_size_limit():,} characters; a description, the longest, "
            f"may have {DESCRIPTION_CHARACTERS:,}"
        )
    if "expected after" in text:
        return "text follows a cell's closing quote; a quote inside of a quoted cell is written twice"
    return text


def _csv_columns(records: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = [cell.strip() for cell in next(records)]
    except (csv.Error, _UnreadableRecordError) as error:
        raise UnusableFileError(f"{name}: the first line is no CSV header: {error}") from None
    columns = [cell or f"column {position}" for position, cell in enumerate(header, start=1)]
    if repeated := {column for column in columns if columns.count(column) > 1}:
        raise UnusableFileError(f"{name}: the CSV header names {', '.join(sorted(repeated))} more than once")
    return columns
