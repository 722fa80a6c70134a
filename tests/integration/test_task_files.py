"""Task files as they come: every format, and what is broken in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_resources import task_files
from cp_resources.task_files import BadRow, Format, Row, TaskFile, UnusableFileError, open_task_file
from cp_resources.task_files.rows import ROW_BYTES

TOO_LONG = "the row is longer than 2,097,152 bytes, the most a row may have"


def read(path: Path, declared: Format | None = None) -> list[Row | BadRow]:
    with open_task_file(path, declared) as file:
        return list(file.rows())


def good(rows: list[Row | BadRow]) -> list[tuple[int, dict[str, Any]]]:
    return [(row.line, row.fields) for row in rows if isinstance(row, Row)]


def bad(rows: list[Row | BadRow]) -> list[tuple[int, str]]:
    return [(row.line, row.message) for row in rows if isinstance(row, BadRow)]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return to


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"id":"1"}\n{"id":"2"}\n'),
        ("a.ndjson", b'\n{"id":"1"}\r\n\r\n{"id":"2"}'),
        ("a.json", b'{"id":"1"}\n{"id":"2"}\n'),  # JSON lines under a wrong name
        ("a.json", b'[{"id":"1"},{"id":"2"}]'),
        ("a.json", b'\xef\xbb\xbf[\n  {"id": "1"},\n  {"id": "2"}\n]\n'),
        ("a.json", b'{"total": 2, "labels": ["x"], "items": [{"id":"1"},{"id":"2"}], "more": [{"id":"3"}]}'),
        ("a.json", b'{"data": {"issues": {"nodes": [\n{"id":"1"},\n{"id":"2"}]}}}'),
        ("a.json", b'[{"id":"1"}]\n[{"id":"2"}]'),  # as `gh api --paginate` prints pages
        ("a.json", b'{"items":[{"id":"1"}]}{"items":[{"id":"2"}]}'),
        ("a.csv", b"id\n1\n2\n"),
        ("a.csv", b'\xef\xbb\xbf"id"\r\n"1"\r\n\r\n2'),
        ("a.csv", b"id;title\n1;\n2; \n"),
        ("a.csv", b"id\ttitle\n1\t\n2\t\n"),
        ("unnamed", b'{"id":"1"}\n{"id":"2"}\n'),
        ("unnamed", b' [{"id":"1"},{"id":"2"}]'),
        ("unnamed", b"id,title\n1,\n2,\n"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_gives_its_rows_plain_or_gzipped(write, name, content, packed):
    path = write(f"{name}.gz", gzip.compress(content)) if packed else write(name, content)
    assert [fields for _, fields in good(read(path))] == [{"id": "1"}, {"id": "2"}]
    assert bad(read(path)) == []


def test_gzip_is_recognised_without_its_extension(write):
    assert good(read(write("a.jsonl", gzip.compress(b'{"id":"1"}\n')))) == [(1, {"id": "1"})]


def test_declared_format_wins_over_extension(write):
    assert good(read(write("a.csv", b'{"id":"1"}\n'), Format.JSONL)) == [(1, {"id": "1"})]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"number":1,"title":"x","labels":[{"name":"bug"}]}', Format.JSONL),
        (b'{"number":1,"labels":[{"name":"bug"}]}\n{"number":2}', Format.JSONL),
        (b'{"total":1,"items":[{"id":1}]}', Format.JSON),
        (b'{"description":"' + b"x" * 70_000 + b'"}\n{"id":2}', Format.JSONL),
        (b'{"items":[{"description":"' + b"x" * 70_000 + b'"}]}', Format.JSON),
        (b'{"bad": P1}\n{"id":2}', Format.JSONL),
    ],
)
def test_one_object_is_told_from_lines_of_objects(content, expected):
    assert task_files._sniff(content[: 64 * 1024]) is expected


def test_json_lines_are_told_apart_with_their_numbers(write):
    rows = read(
        write("a.jsonl", b'{"id":1}\n\n{"id":\n[1]\n{"id":"\xff"}\n{"id":"\\ud800"}\n{"id":NaN}\n{"id":2}\n')
    )
    assert good(rows)[0] == (1, {"id": 1})
    assert good(rows)[-1] == (8, {"id": 2})
    messages = dict(bad(rows))
    assert messages[3].startswith("not valid JSON: EOF while parsing a value at line 1 column 6")
    assert messages[4].startswith("not a JSON object")
    # before the byte: 9 + 1 + 7 + 4 bytes of lines 1 to 4, and {"id":"
    assert messages[5] == "not valid UTF-8: byte 0xff in line 5, at byte 28 of the file (counted from 0)"
    assert messages[6].startswith("not valid JSON")


def test_a_line_too_long_is_skipped_and_the_next_one_read(write):
    longest = b'{"id":"' + b"x" * (ROW_BYTES - 10) + b'"}\n'
    huge = b'{"id":"' + b"x" * 3 * ROW_BYTES + b'"}\n'
    assert len(longest) == ROW_BYTES
    rows = read(write("a.jsonl", longest + b" " + longest + huge + b'{"id":2}\n'))
    assert [line for line, _ in good(rows)] == [1, 4]
    assert bad(rows) == [(2, TOO_LONG), (3, TOO_LONG)]
    assert all(len(row.text) <= ROW_BYTES + 1 for row in rows)


def test_a_malformed_member_spoils_no_other(write):
    rows = read(write("a.json", b'[{"id":1},\n{"id":P1},\n7,\n{"id":"]}\\""}\n,{"id":[{}]},{"id":2},]'))
    assert good(rows) == [(1, {"id": 1}), (4, {"id": ']}"'}), (5, {"id": [{}]}), (5, {"id": 2})]
    assert [line for line, _ in bad(rows)] == [2, 3]


def test_a_member_too_long_is_skipped_and_the_next_one_read(write):
    huge = b'{"id":"' + rb"\\\"[,}" * (ROW_BYTES // 2) + b'", "more": [' + b"1,\n" * ROW_BYTES + b"2]}"
    rows = read(write("a.json", b'[{"id":1},\n' + huge + b',{"id":2}]'))
    assert [fields for _, fields in good(rows)] == [{"id": 1}, {"id": 2}]
    assert good(rows)[1][0] == 2 + ROW_BYTES
    assert bad(rows) == [(2, TOO_LONG)]


@pytest.mark.parametrize(
    ("content", "taken", "message"),
    [
        (b'[{"id":1},\n{"id":"2]', 1, "line 2: the list of rows has no end"),
        (b'[{"id":1}},\n{"id":2}]', 1, "line 1: a } that closes nothing"),
        (b'[{"id":1}]\n{"id":2}', 1, "line 2: no list of rows"),
        (b'{\n"title": "x", "labels": ["a"]}', 0, "line 2: no list of rows"),
        (b"[]]", 0, "line 1: no list of rows"),
        (b"[", 0, "line 1: the list of rows has no end"),
    ],
)
def test_a_list_that_breaks_off_gives_what_came_before_and_says_where(write, content, taken, message):
    rows = []
    with pytest.raises(UnusableFileError, match=message), open_task_file(write("a.json", content)) as file:
        rows.extend(file.rows())
    with open_task_file(write("a.json", content)) as file:
        assert len(list(until_broken(file))) == taken


def until_broken(file: TaskFile) -> Iterator[Row | BadRow]:
    try:
        yield from file.rows()
    except UnusableFileError:
        return


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.text(), _JSON, max_size=4), max_size=6),
    st.booleans(),
    st.sampled_from([None, 0, 3]),
    st.integers(1, 7),
)
def test_any_json_list_gives_its_members_however_it_is_cut_into_blocks(members, escaped, indent, block):
    text = json.dumps(members, ensure_ascii=escaped, indent=indent).encode(errors="surrogatepass")
    rows = task_files.JsonList(Blocks(text, block)).rows()  # type: ignore[arg-type]
    assert [row.fields if isinstance(row, Row) else row.message for row in rows] == members


class Blocks:
    """Lines, cut into blocks of a few bytes."""

    name = "blocks"

    def __init__(self, text: bytes, size: int) -> None:
        self.text, self.size, self.offset = text, size, 0

    def block(self) -> bytes:
        piece = self.text[self.offset : self.offset + self.size]
        self.offset += len(piece)
        return piece


def test_csv_cells_may_hold_lines_quotes_and_commas_and_rows_keep_their_first_line(write):
    rows = read(write("a.csv", b'id,title\n1,"a\n""b"", c\n"\n2,5" pipe\n'))
    assert good(rows) == [(2, {"id": "1", "title": 'a\n"b", c\n'}), (5, {"id": "2", "title": '5" pipe'})]


def test_csv_rows_with_too_many_or_too_few_cells_are_told(write):
    rows = read(write("a.csv", b'id,title\n1\n2,a,b\n3,"x\ny",z\n4,ok\n'))
    assert good(rows) == [(6, {"id": "4", "title": "ok"})]
    assert bad(rows) == [
        (2, "has 1 cells where the header has 2 columns"),
        (3, "has 3 cells where the header has 2 columns"),
        (4, "has 3 cells where the header has 2 columns (lines 4 to 5)"),
    ]


def test_csv_with_invalid_utf8_loses_only_that_row(write):
    rows = read(write("a.csv", b'id,title\n1,"a\nb\xff,\nc"\n2,ok\n'))
    assert good(rows) == [(5, {"id": "2", "title": "ok"})]
    # before the byte: 9 + 5 bytes of lines 1 and 2, and b
    assert bad(rows) == [
        (2, "not valid UTF-8: byte 0xff in line 3, at byte 15 of the file (counted from 0) (lines 2 to 4)")
    ]


def test_csv_with_a_huge_cell_loses_only_that_row(write):
    lines = b'"' + b"x,\n" * (ROW_BYTES // 4) + b'"'
    megabyte = b'"' + b"y" * 1_048_576 + b'"'
    rows = read(write("a.csv", b"id,title\n1," + lines + b"\n2,ok\n3," + megabyte + b"\n4,ok\n"))
    assert [fields["id"] for _, fields in good(rows)] == ["2", "4"]
    message = "a cell has more than 131,072 characters; a description, the longest, may have 100,000"
    assert [text.partition(" (lines")[0] for _, text in bad(rows)] == [message, message]


def test_csv_with_a_line_too_long_loses_only_that_row(write):
    rows = read(write("a.csv", b"id,title\n1," + b"x" * 3 * ROW_BYTES + b"\n2,ok\n"))
    assert good(rows) == [(3, {"id": "2", "title": "ok"})]
    assert bad(rows) == [(2, TOO_LONG)]


def test_csv_with_an_open_quote_makes_no_tasks_out_of_its_inside(write):
    rows = read(write("a.csv", b'id,title\n1,ok\n2,"open\n3,x\n4,y\n'))
    assert good(rows) == [(2, {"id": "1", "title": "ok"})]
    assert bad(rows) == [(3, "a quote is opened and never closed (lines 3 to 5)")]


def test_csv_with_text_behind_a_quoted_cell_is_told(write):
    rows = read(write("a.csv", b'id,title\n1,"a"b\n2,ok\n'))
    assert good(rows) == [(3, {"id": "2", "title": "ok"})]
    assert bad(rows) == [
        (2, "text follows a cell's closing quote; a quote inside of a quoted cell is written twice")
    ]


def test_csv_columns_without_a_name_are_numbered(write):
    assert good(read(write("a.csv", b"id,\n1,x\n"))) == [(2, {"id": "1", "column 2": "x"})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,title,id\n", "names id more than once"),
        ("a.csv", b"\xff\n", "the first line is no CSV header"),
        ("a.csv", b'"id\n', "the first line is no CSV header"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\xef\xbb\xbf \n", "is empty"),
        ("a.json", '{"a":1}'.encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"id":1}\n' * 1000)[:30], "damaged or cut short"),
        ("a.jsonl.gz", b"\x1f\x8bnonsense", "damaged or cut short"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(write, name, content, message):
    with pytest.raises(UnusableFileError, match=message) as caught:
        read(write(name, content))
    assert name in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UnusableFileError, match=r"cannot read .*: No such file"):
        read(tmp_path / "a.jsonl")
    with pytest.raises(UnusableFileError, match=r"cannot read .*: Is a directory"):
        read(tmp_path)


def test_reading_stops_at_the_most_that_is_read_of_a_file_counted_unpacked(write, monkeypatch):
    monkeypatch.setattr(task_files.lines, "FILE_BYTES", 100)
    path = write("a.jsonl.gz", gzip.compress(b'{"id":1}\n' * 1000))
    with open_task_file(path) as file:
        assert len(list(until_broken(file))) == 11  # of nine bytes each
    with pytest.raises(UnusableFileError, match="what follows line 12 was not taken"):
        read(path)


def test_a_file_read_again_has_the_same_identity_and_a_file_written_anew_another(write):
    path = write("a.jsonl", b'{"id":1}\n')

    def identity() -> str:
        with open_task_file(path) as file:
            return file.identity

    before = identity()
    assert identity() == before
    write("a.jsonl", b'{"id":12}\n')
    assert identity() != before


def test_progress_goes_from_nothing_to_the_size(write):
    path = write("a.jsonl.gz", gzip.compress(b'{"id":1}\n' * 100))
    with open_task_file(path) as file:
        assert file.position == 0
        assert len(list(file.rows())) == 100
        assert file.position == file.size == path.stat().st_size


def test_a_csv_record_is_bounded_even_when_none_of_its_cells_is_too_long(write):
    cell = b'"' + b"\n" * 100_000 + b'",'
    rows = read(write("a.csv", b"id,title\n" + cell * 30 + b"x\n2,ok\n"))
    assert [fields["id"] for _, fields in good(rows)] == ["2"]
    assert bad(rows)[0][1].startswith(TOO_LONG)
