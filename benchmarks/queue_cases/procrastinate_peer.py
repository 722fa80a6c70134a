"""procrastinate at its best setting here: several processes, finished jobs deleted, no listening."""

from __future__ import annotations

import asyncio
import time
from multiprocessing.synchronize import Barrier

import procrastinate

_CHUNK = 5_000
_CONCURRENCY = 10


def _app(url: str) -> procrastinate.App:
    connector = procrastinate.PsycopgConnector(conninfo=url, max_size=_CONCURRENCY + 2)
    return procrastinate.App(connector=connector)


def prepare(url: str, tasks: int) -> None:
    """Its tables, and jobs in its queue."""
    asyncio.run(_defer(url, tasks))


async def _defer(url: str, tasks: int) -> None:
    app = _app(url)
    work = app.task(name="work")(_nothing)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(0, tasks, _CHUNK):
            await work.batch_defer_async(*({"number": n} for n in range(first, min(first + _CHUNK, tasks))))


async def _nothing(number: int) -> None:
    pass


def drain(url: str, worker: int, start: Barrier) -> tuple[int, float]:
    """Run until the queue is empty."""
    return asyncio.run(_drain(url, start))


async def _drain(url: str, start: Barrier) -> tuple[int, float]:
    app = _app(url)
    done = 0

    @app.task(name="work")
    async def work(number: int) -> None:
        nonlocal done
        done += 1

    async with app.open_async():
        await asyncio.to_thread(start.wait)
        await app.run_worker_async(
            wait=False,
            concurrency=_CONCURRENCY,
            listen_notify=False,
            install_signal_handlers=False,
            delete_jobs="always",
        )
        return done, time.time()
