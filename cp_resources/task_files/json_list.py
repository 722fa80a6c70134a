"""A JSON list of objects, read without holding more than one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cp_resources.task_files.lines import Lines
from cp_resources.task_files.rows import ROW_BYTES, BadRow, Row, UnusableFileError, json_row, too_long

# Only brackets and commas matter outside of strings. A whole string is one token; so is the quote of an open
# one.
_JSON_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_QUOTE, _COMMA, _LIST, _LIST_END, _OBJECT, _OBJECT_END = b'",[]{}'


class JsonList:
    """A walk along the members of a JSON list, told apart by brackets: a malformed one spoils no other.

    The list is the file's outermost value, or the first list of objects inside of it. Several such values one
    behind the other, as `gh api --paginate` prints them, are read in turn.
    """

    def __init__(self, lines: Lines) -> None:
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
            return too_long(self._line, text)
        return json_row(text, self._line, self._lines.offset - len(self._buffer) + begin)

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
                self._oversized = too_long(self._line, self._buffer[begin : begin + ROW_BYTES])
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
