"""The file sink: one JSON object a line, each notice once, even after a crash between writing and committing.

Whoever writes holds the file's lock, looks for what an earlier try may have written already, appends the rest
and waits until it is on the disk. A last line that a crash tore is taken out first: its notice is written anew.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cp_resources.notifiers.message import Message, NoticeSetupError, Sent

OWNER_ONLY = 0o600

_LONGEST_TRY = timedelta(hours=1)
"""No try lasts longer, so lines are out of the order of their `written_at` by less than this."""


class FileNotifier:
    """Appends notices to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._since: datetime | None = None
        self._read_to = 0
        self._ids: set[str] = set()

    def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
        """See `Notifier.send`."""
        try:
            with self._locked() as descriptor:
                _drop_torn_line(descriptor)
                self._learn(descriptor, min(message.created_at for message in messages) - _LONGEST_TRY)
                _append(descriptor, [message for message in messages if message.id not in self._ids])
        except OSError as error:
            raise NoticeSetupError(
                f"notices.file.path: cannot write {self._path} ({error.strerror or error}): make room or give "
                "the right to write there, or name another file"
            ) from error
        return {message.id: Sent(delivered=True) for message in messages}

    def _learn(self, descriptor: int, since: datetime) -> None:
        """Read the ids of lines that were written after `since` and that this process has not read yet."""
        status = os.fstat(descriptor)
        file = (status.st_dev, status.st_ino)
        if self._since is None or since < self._since or file != self._file or status.st_size < self._read_to:
            self._file, self._since, self._read_to = file, since, 0
        self._ids.update(_ids_since(descriptor, since, self._read_to))
        self._read_to = status.st_size

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The open file, which no one else writes meanwhile."""
        is_new = not self._path.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, OWNER_ONLY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("it is no regular file")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_new:
                _sync_folder(self._path.parent)
            yield descriptor
        finally:
            os.close(descriptor)


def _drop_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as content:
        whole = content.rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(descriptor, whole)


def _ids_since(descriptor: int, moment: datetime, offset: int) -> Iterator[str]:
    """Ids in lines beyond `offset` that were written after `moment`, read from the end of the file."""
    end = os.fstat(descriptor).st_size
    if end <= offset:
        return
    with mmap.mmap(descriptor, end, access=mmap.ACCESS_READ) as content:
        while end > offset:
            start = content.rfind(b"\n", offset, end - 1) + 1 or offset
            line = _parse(content[start:end])
            if _is_older(line.get("written_at"), moment):
                return
            yield str(line.get("id"))
            end = start


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a line; empty for a line that is not ours."""
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _is_older(written_at: object, moment: datetime) -> bool:
    try:
        return datetime.fromisoformat(str(written_at)) < moment
    except (ValueError, TypeError):
        return False


def _append(descriptor: int, messages: Sequence[Message]) -> None:
    """Append the messages: all of them and on the disk, or none."""
    if not messages:
        return
    size = os.fstat(descriptor).st_size
    content = b"".join(_line(message) for message in messages)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _line(message: Message) -> bytes:
    return json.dumps({**message.payload, "written_at": message.claimed_at.isoformat()}).encode() + b"\n"


def _sync_folder(folder: Path) -> None:
    """Have the file's name on the disk, as well as what is in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
