"""pgqueuer at its best setting: asyncpg on uvloop, batches of 100, its statistics left for later."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from multiprocessing.synchronize import Barrier

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.queue_cases.platform import BATCH

_CHUNK = 5_000


def prepare(url: str, tasks: int) -> None:
    """Its tables, and jobs in its queue."""
    uvloop.run(_enqueue(url, tasks))


async def _enqueue(url: str, tasks: int) -> None:
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for first in range(0, tasks, _CHUNK):
        count = min(_CHUNK, tasks - first)
        await queries.enqueue(["work"] * count, [b"Mend the button"] * count, [0] * count)
    await connection.execute("VACUUM (ANALYZE)")
    await connection.close()


def drain(url: str, worker: int, start: Barrier) -> tuple[int, float]:
    """Run until the queue is empty. Its time ends with the last success it logged, not with its shut-down."""
    return uvloop.run(_drain(url, start))


async def _drain(url: str, start: Barrier) -> tuple[int, float]:
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))
    done = 0

    @queue.entrypoint("work")
    async def work(job: Job) -> None:
        nonlocal done
        done += 1

    await asyncio.to_thread(start.wait)
    await queue.run(
        batch_size=BATCH,
        mode=QueueExecutionMode.drain,
        dequeue_timeout=timedelta(seconds=1),
        log_aggregation_interval=timedelta(0),
    )
    connection = await asyncpg.connect(url)
    ended = await connection.fetchval("SELECT extract(epoch FROM max(created))::float8 FROM pgqueuer_log")
    await connection.close()
    return done, ended
