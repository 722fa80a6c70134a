"""Log files of processes that we start: opened with a limit to their size, and quoted in errors."""

from __future__ import annotations

from pathlib import Path
from typing import IO

LIMIT_BYTES = 10_000_000
LINES_QUOTED = 12


def open_log(path: Path) -> IO[str]:
    """Open a log to append to, readable by its owner only. One that has grown too long is set aside, once."""
    if path.exists() and path.stat().st_size > LIMIT_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    path.touch(mode=0o600)
    return path.open("a")


def last_lines(path: Path) -> str:
    """The last lines of a log, for a person who must know what went wrong."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 20_000))
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LINES_QUOTED:]).strip()
