"""The bare loop: the calls of a day over httpx, as many at once as the platform makes, and nothing kept of the answers.

    python -m benchmarks.drain_cases.bare FILE URL CONCURRENCY CLIENTS

FILE holds one request body a line. CLIENTS is how many clients share the connections: with one, httpx looks through its
whole pool at every call; with one a connection it need not.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

HEADERS = {"authorization": "Bearer simulated", "content-type": "application/json"}


def main() -> None:
    """Make the calls; print seconds and CPU seconds as one JSON object."""
    path, url, concurrency, clients = sys.argv[1:]
    bodies = Path(path).read_bytes().splitlines()
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(_calls(url, bodies, int(concurrency), int(clients)))
    print(
        json.dumps({"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}),
        flush=True,
    )


async def _calls(url: str, bodies: list[bytes], concurrency: int, clients: int) -> None:
    each = concurrency // clients
    limits = httpx.Limits(max_connections=each, max_keepalive_connections=each)
    tls = httpx.create_ssl_context()  # made once: it takes as long as twenty calls
    opened = [
        httpx.AsyncClient(limits=limits, timeout=60, trust_env=False, verify=tls) for _ in range(clients)
    ]
    waiting = iter(bodies)
    await asyncio.gather(*(_caller(client, url, waiting) for client in opened for _ in range(each)))
    for client in opened:
        await client.aclose()


async def _caller(client: httpx.AsyncClient, url: str, waiting: Iterator[bytes]) -> None:
    for body in waiting:
        answer = await client.post(url, content=body, headers=HEADERS)
        answer.raise_for_status()
        answer.json()


if __name__ == "__main__":
    main()
