"""The bytes of a task file, unpacked and counted, by line or by block."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from cp_resources.task_files.rows import FILE_BYTES, ROW_BYTES, UnusableFileError

READ_BYTES = 256 * 1024
_LOOK_AHEAD_BYTES = 64 * 1024
_BOM = b"\xef\xbb\xbf"


class Counted(io.RawIOBase):
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


class Lines:
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
        self._stream: io.BufferedIOBase = io.BufferedReader(raw, READ_BYTES)
        head = self._look_ahead()
        if head.startswith(b"\x1f\x8b"):
            self._stream = gzip.GzipFile(fileobj=self._stream)
            head = self._look_ahead()
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UnusableFileError(f"{name} is in UTF-16; save it as UTF-8")
        if not head.removeprefix(_BOM).strip():
            raise UnusableFileError(f"{name} is empty")
        if head.startswith(_BOM):
            self.offset = len(self._stream.read(len(_BOM)))
        self.head = head.removeprefix(_BOM)

    def _look_ahead(self) -> bytes:
        head = self._stream.read(_LOOK_AHEAD_BYTES)
        self._stream = io.BufferedReader(_Rejoined(head, self._stream), READ_BYTES)
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
        while not piece.endswith(b"\n") and (piece := self._stream.readline(READ_BYTES)):
            self._count(piece)
            yield piece

    def block(self) -> bytes:
        """The next bytes, whatever lines they hold; b"" at the end of the file."""
        block = self._stream.read(READ_BYTES)
        self._count(block)
        return block

    def _count(self, piece: bytes) -> None:
        self.offset += len(piece)
        if self.offset > FILE_BYTES:
            raise UnusableFileError(
                f"{self.name}: more than {FILE_BYTES:,} bytes, the most that is read of one file: what "
                f"follows line {self.number} was not taken; split the file"
            )
