"""Reading the rows of a task file one at a time: JSON lines, a JSON list, or CSV, plain or gzipped.

A reader holds one row in memory, never the file, and gives each row its line. What a row means is decided
elsewhere; a row that cannot be read at all comes out as a `BadRow` and the reader goes on behind it.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import stat
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from cp_core.tasks.submission import DESCRIPTION_CHARACTERS
from cp_resources.errors import UserError

FILE_BYTES = 10 * 1024**3
"""Most bytes read of one file, counted after decompression."""
ROW_BYTES = 2 * 1024**2
"""Most bytes of one row as it stands in the file: a row of legal fields has less, however it is escaped."""

STDIN = "-"
_LOOK_AHEAD_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"


class Format(StrEnum):
    """Formats a task file may have."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"


# .json is left to sniffing: it is often JSON lines.
_EXTENSIONS = {".jsonl": Format.JSONL, ".ndjson": Format.JSONL, ".csv": Format.CSV}


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
        self._raw = _Counted(raw)
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
            lines = _Lines(self._raw, self.name)
            chosen = self._declared or _sniff(lines.head)
            if chosen is Format.CSV:
                yield from _csv_records(lines, check_columns)
            else:
                yield from _json_lines(lines) if chosen is Format.JSONL else _JsonList(lines).rows()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            line = lines.number if lines else 0
            raise UnusableFileError(
                f"{self.name}: the gzip file is damaged or cut short; nothing behind line {line} could be read "
                f"({error})"
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
        if not str(error).startswith("EOF"):
            return Format.JSONL
        # an object over several lines, or a single line longer than what was looked at
        return Format.JSON if rest or re.search(rb"\[\s*\{", line) else Format.JSONL
    if rest.strip() or "title" in first:
        return Format.JSONL
    holds_rows = any(
        isinstance(value, list) and value and isinstance(value[0], dict) for value in first.values()
    )
    return Format.JSON if holds_rows else Format.JSONL


class _Counted(io.RawIOBase):
    """A raw stream that counts what was taken of it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._source.readinto(buffer) or 0  # type: ignore[attr-defined]
        self.taken += count
        return count


class _Rejoined(io.RawIOBase):
    """A stream from whose front some bytes were read, made whole again."""

    def __init__(self, head: bytes, rest: io.BufferedIOBase) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._rest.readinto(buffer) or 0
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


class _Lines:
    """The decompressed bytes of a file, with the count of what was read.

    Attributes:
        head: its first bytes, for sniffing, without a byte order mark.
        number: line last read, from 1.
        offset: bytes read so far.
    """

    def __init__(self, raw: io.RawIOBase, name: str) -> None:
        self.name = name
        self.number = 0
        self.offset = 0
        self._stream: io.BufferedIOBase = io.BufferedReader(raw, _READ_BYTES)
        head = self._look_ahead()
        if head.startswith(b"\x1f\x8b"):
            self._stream = gzip.GzipFile(fileobj=self._stream)
            head = self._look_ahead()
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UnusableFileError(f"{name} is in UTF-16; save it as UTF-8")
        if not head.strip():
            raise UnusableFileError(f"{name} is empty")
        if head.startswith(_BOM):
            self.offset = len(self._stream.read(len(_BOM)))
        self.head = head.removeprefix(_BOM)

    def _look_ahead(self) -> bytes:
        head = self._stream.read(_LOOK_AHEAD_BYTES)
        self._stream = io.BufferedReader(_Rejoined(head, self._stream), _READ_BYTES)
        return head

    def line(self) -> bytes:
        """The next line, b"" at the end of the file; of too long a line the first `ROW_BYTES` + 1 bytes."""
        line = self._stream.readline(ROW_BYTES + 1)
        if line:
            self.number += 1
            self._count(line)
        return line

    def rest_of_line(self, beginning: bytes) -> Iterator[bytes]:
        """What is still unread of a line of which `line` gave only the beginning."""
        piece = beginning
        while not piece.endswith(b"\n") and (piece := self._stream.readline(_READ_BYTES)):
            self._count(piece)
            yield piece

    def block(self) -> bytes:
        """The next bytes, whatever lines they hold; b"" at the end of the file."""
        block = self._stream.read(_READ_BYTES)
        self._count(block)
        return block

    def _count(self, piece: bytes) -> None:
        self.offset += len(piece)
        if self.offset > FILE_BYTES:
            raise UnusableFileError(
                f"{self.name}: more than {FILE_BYTES:,} bytes, the most that is read of one file: what "
                f"follows line {self.number} was not taken; split the file"
            )


def _too_long(line: int, text: bytes) -> BadRow:
    return BadRow(line, f"the row is longer than {ROW_BYTES:,} bytes, the most a row may have", text)


def _json_row(text: bytes, line: int, offset: int) -> Row | BadRow:
    """One row from its JSON; `offset` is where it begins in the file."""
    try:
        fields = from_json(text)
    except ValueError as error:
        invalid = _invalid_utf8(text, line, offset)
        return BadRow(line, invalid or f"not valid JSON: {error} (counted from the row's beginning)", text)
    if not isinstance(fields, dict):
        return BadRow(line, 'not a JSON object: a row looks like {"title": "…", "priority": "P2"}', text)
    return Row(line, fields, text)


def _invalid_utf8(text: bytes, line: int, offset: int) -> str | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        where = line + text.count(b"\n", 0, error.start)
        return (
            f"not valid UTF-8: byte 0x{text[error.start]:02x} in line {where}, at byte {offset + error.start:,} of "
            "the file (counted from 0)"
        )
    return None


def _json_lines(lines: _Lines) -> Iterator[Row | BadRow]:
    while line := lines.line():
        number = lines.number
        if len(line) > ROW_BYTES:
            for _ in lines.rest_of_line(line):
                pass
            yield _too_long(number, line)
        elif not line.isspace():
            yield _json_row(line.rstrip(b"\r\n"), number, lines.offset - len(line))


# Only brackets and commas matter outside of strings. A whole string is one token; so is the quote of an open
# one.
_JSON_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_QUOTE, _COMMA, _LIST, _LIST_END, _OBJECT, _OBJECT_END = b'",[]{}'


class _JsonList:
    """A walk along the members of a JSON list, told apart by brackets: a malformed one spoils no other.

    The list is the file's outermost value, or the first list of objects inside of it. Several such values one
    behind the other, as `gh api --paginate` prints them, are read in turn.
    """

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self._buffer = b""  # what is still needed of the file
        self._scanned = 0  # how much of the buffer was looked at
        self._row_start = 0  # where in the buffer the present row begins
        self._line = 1  # line of the file at which `_counted` stands in the buffer
        self._counted = 0
        self._depth = 0  # in brackets
        self._rows_depth: int | None = None  # that of the list of rows, while inside of it
        self._previous = 0  # symbol of the token before
        self._found = False  # whether the present outermost value has had its list
        self._oversized: BadRow | None = None  # the present row, when it is too long to be kept

    def rows(self) -> Iterator[Row | BadRow]:
        """Every member in turn."""
        while block := self._lines.block():
            self._buffer += block
            yield from self._scan()
            self._forget()
        if self._rows_depth is not None:
            self._advance_to_row()
            raise self._unusable("the list of rows has no end: the row that begins here was not taken")
        if self._depth or not self._found:
            raise self._unusable(_NO_LIST)

    def _scan(self) -> Iterator[Row | BadRow]:
        for token in _JSON_TOKEN.finditer(self._buffer, self._scanned):
            begin, end = token.span()
            symbol = self._buffer[begin]
            if symbol == _QUOTE and end == begin + 1:
                self._scanned = begin
                return
            if symbol in (_LIST, _OBJECT):
                self._open(symbol, begin, end)
            elif symbol in (_LIST_END, _OBJECT_END):
                yield from self._close(symbol, begin)
            elif symbol == _COMMA and self._depth == self._rows_depth:
                yield self._member(begin)
                self._row_start = end
            self._previous = symbol
        self._scanned = len(self._buffer)

    def _open(self, symbol: int, begin: int, end: int) -> None:
        if self._depth == 0:
            self._found = False
        if not self._found and symbol == _OBJECT and self._previous == _LIST:
            self._found, self._rows_depth, self._row_start = True, self._depth, begin
        self._depth += 1
        if symbol == _LIST and self._depth == 1:
            self._found, self._rows_depth, self._row_start = True, self._depth, end

    def _close(self, symbol: int, begin: int) -> Iterator[Row | BadRow]:
        """Leave a bracket, and with the last one of the list its last row."""
        if self._depth == self._rows_depth:
            if self._buffer[self._row_start : begin].strip() or self._oversized:
                yield self._member(begin)
            if symbol == _OBJECT_END:
                self._advance(begin)
                raise self._unusable("a } that closes nothing: what follows was not taken")
            self._rows_depth = None
        self._depth -= 1
        if self._depth < 0 or (self._depth == 0 and not self._found):
            self._advance(begin)
            raise self._unusable(_NO_LIST)

    def _member(self, end: int) -> Row | BadRow:
        """The row that ends here."""
        if self._oversized:
            row, self._oversized = self._oversized, None
            return row
        begin = self._advance_to_row()
        text = self._buffer[begin:end].rstrip()
        if len(text) > ROW_BYTES:
            return _too_long(self._line, text)
        return _json_row(text, self._line, self._lines.offset - len(self._buffer) + begin)

    def _advance_to_row(self) -> int:
        """Bring the count of lines to the first character of the present row, and tell where it stands."""
        blank = _BLANK.match(self._buffer, self._row_start)
        begin = blank.end() if blank else self._row_start
        self._advance(begin)
        return begin

    def _advance(self, position: int) -> None:
        self._line += self._buffer.count(b"\n", self._counted, position)
        self._counted = position

    def _forget(self) -> None:
        """Drop what is no longer needed; of too long a row keep only what tells where its strings end."""
        keep = self._scanned if self._rows_depth is None else self._row_start
        if len(self._buffer) - keep <= ROW_BYTES:
            self._advance(max(keep, self._counted))
            self._buffer = self._buffer[keep:]
            self._scanned -= keep
            self._counted -= keep
        else:
            if self._rows_depth is not None and self._oversized is None:
                begin = self._advance_to_row()
                self._oversized = _too_long(self._line, self._buffer[begin : begin + ROW_BYTES])
            self._advance(len(self._buffer))
            self._buffer = self._open_string()
            self._scanned, self._counted = 0, len(self._buffer)
        self._row_start = 0

    def _open_string(self) -> bytes:
        """The shortest text that leaves a string open just as the buffer does; b"" when none is open."""
        if self._scanned == len(self._buffer):
            return b""
        backslashes = len(self._buffer) - len(self._buffer.rstrip(b"\\"))
        return b'"\\' if backslashes % 2 else b'"'

    def _unusable(self, message: str) -> UnusableFileError:
        return UnusableFileError(f"{self._lines.name}, line {self._line}: {message}")


_BLANK = re.compile(rb"\s*")
_NO_LIST = (
    "no list of rows: expected [{…}, {…}], or an object that holds such a list; for one object a line say "
    "--format jsonl, and put a single task into [ ]"
)


class _UnreadableRecordError(Exception):
    """A record of a CSV file that must not be given to the csv module."""


class _CsvLines:
    """Feeds decoded lines to the csv module, and remembers those of the present record.

    Attributes:
        first: line at which the present record begins.
        text: its lines as they stand in the file, up to `ROW_BYTES`.
    """

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self.begin_record()

    def begin_record(self) -> None:
        self.first = self._lines.number + 1
        self.text = b""
        self._quotes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._lines.line()
        if not line:
            raise StopIteration
        self._quotes += line.count(b'"')
        offset = self._lines.offset - len(line)
        if len(self.text) + len(line) > ROW_BYTES:
            self._quotes += sum(piece.count(b'"') for piece in self._lines.rest_of_line(line))
            raise _UnreadableRecordError(_too_long(self.first, b"").message)
        self.text += line
        if invalid := _invalid_utf8(line, self._lines.number, offset):
            raise _UnreadableRecordError(invalid)
        return line.decode()

    def skip_record(self) -> None:
        """Go to the line behind the present record; within quotes the end of a line ends no record."""
        while self._quotes % 2 and (line := self._lines.line()):
            self._quotes += line.count(b'"') + sum(
                piece.count(b'"') for piece in self._lines.rest_of_line(line)
            )

    @property
    def span(self) -> str:
        """The lines of a record of several, for the end of a message."""
        last = self._lines.number
        return f" (lines {self.first} to {last})" if last > self.first else ""


def _csv_records(lines: _Lines, check_columns: Callable[[list[str]], None] | None) -> Iterator[Row | BadRow]:
    feed = _CsvLines(lines)
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
            f"a cell has more than {csv.field_size_limit():,} characters; the longest allowed, a description, has "
            f"at most {DESCRIPTION_CHARACTERS:,}"
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
