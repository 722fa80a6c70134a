"""Claim: one process of the simulator answers 1,000 calls a second, so that it is not what a run waits for.

The client is a bare loop over sockets, as an HTTP library would be the slower side. No latency, no failures.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from benchmarks.report import report

CALLS = 6000
CONNECTIONS = 32
GOAL = ">= 1000"
INSTRUCTIONS = "You are a software engineer. Do the task and end with a block of evidence. " * 12
TASK = "The webhook handler runs twice when the sender retries; make it idempotent. " * 10


def main() -> None:
    """Measure one process, then as many as half the cores."""
    for workers, goal in ((1, GOAL), (max((os.cpu_count() or 2) // 2, 2), None)):
        with _simulator(workers) as url:
            asyncio.run(_calls(url, CALLS // 6))
            seconds = asyncio.run(_calls(url, CALLS))
        case = f"{workers} process{'es' if workers > 1 else ''}, chat completions"
        report("simulator", case, "throughput", CALLS / seconds, "calls/s", goal)


@contextmanager
def _simulator(workers: int) -> Iterator[str]:
    options = ["--port", "0", "--workers", str(workers), "--latency-ms", "0", "--failure-share", "0"]
    command = [sys.executable, "-m", "cp_cli.main", "simulate", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.terminate()


async def _calls(url: str, calls: int) -> float:
    """Make the calls over a fixed number of connections; return the seconds they took."""
    numbers = iter(range(calls))
    started = time.perf_counter()
    await asyncio.gather(*(_connection(url, numbers) for _ in range(CONNECTIONS)))
    return time.perf_counter() - started


async def _connection(url: str, numbers: Iterator[int]) -> None:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    for number in numbers:
        messages = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": f"Delivery {number}. {TASK}"},
        ]
        body = json.dumps({"model": "gpt-5.4", "messages": messages}).encode()
        head = (
            "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            "authorization: Bearer simulated\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        await reader.readexactly(int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
    writer.close()


if __name__ == "__main__":
    main()
