"""JSON lines: one object a line."""

from __future__ import annotations

from collections.abc import Iterator

from cp_resources.task_files.lines import Lines
from cp_resources.task_files.rows import ROW_BYTES, BadRow, Row, json_row, too_long


def json_lines(lines: Lines) -> Iterator[Row | BadRow]:
    while line := lines.line():
        number = lines.number
        if len(line) > ROW_BYTES:
            for _ in lines.rest_of_line(line):
                pass
            yield too_long(number, line)
        elif not line.isspace():
            yield json_row(line.rstrip(b"\r\n"), number, lines.offset - len(line))
