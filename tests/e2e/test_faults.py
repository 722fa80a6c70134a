"""What breaks, and what must hold all the same: every fault is followed by `Installation.settled`."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from faults import FINAL, PATIENCE_SECONDS, QUICK, installation, wait_until
from lossy_proxy import Fate, LossyProxy

from cp_resources import migrate
from cp_resources.cancellation import CancellationStore, Selection
from cp_resources.embedded_postgres import EmbeddedPostgres

KILLS = 30
KILLS_OF_PLANS = 15
LEDGER_LOCKED = """
SELECT EXISTS (
    SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
    WHERE locktype = 'advisory' AND granted AND datname = current_database()
)
"""


def test_thirty_killed_workers_lose_nothing(database_url: str, tmp_path: Path) -> None:
    """Two workers share the queue; one after the other is killed at a random moment and replaced."""
    rng = random.Random(20260302)
    policy = {"lease_seconds": 1, "heartbeat_seconds": 0.25, "concurrency": 4}
    with installation(database_url, tmp_path, latency_ms=40, **policy) as broken:
        broken.submit(300, max_attempts=10)
        workers = [broken.worker(), broken.worker()]
        for kill in range(KILLS):
            served = len(broken.calls())
            broken.await_calls(served + rng.randint(1, 4))
            time.sleep(rng.uniform(0, 0.06))  # so that any step of a worker may be the one that is cut
            workers[kill % 2].kill()
            workers[kill % 2] = broken.worker()
        assert broken.states()["succeeded"] < 300, "the kills came when all was done"
        for worker in workers:
            broken.await_end(worker)

        books = broken.settled(deaths=KILLS)
        print(books)
        assert books.lost > 0


def test_killed_workers_lose_nothing_of_plans_with_several_stages(database_url: str, tmp_path: Path) -> None:
    """As above, with work that is checked and handed to a second and a third model."""
    rng = random.Random(20260303)
    policy = {"lease_seconds": 1, "heartbeat_seconds": 0.25, "concurrency": 4}
    with installation(database_url, tmp_path, latency_ms=40, staged=True, **policy) as broken:
        broken.submit(100, max_attempts=10)
        workers = [broken.worker(), broken.worker()]
        for kill in range(KILLS_OF_PLANS):
            broken.await_calls(len(broken.calls()) + rng.randint(1, 4))
            time.sleep(rng.uniform(0, 0.06))
            workers[kill % 2].kill()
            workers[kill % 2] = broken.worker()
        assert sum(broken.states()[state] for state in FINAL) < 100, "the kills came when all was done"
        for worker in workers:
            broken.await_end(worker)

        books = broken.settled(deaths=KILLS_OF_PLANS)
        assert books.lost > 0
        assert broken.stages().keys() == {0, 1, 2}


STAGES = pytest.mark.parametrize("staged", [False, True], ids=["one stage", "several stages"])


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, with a migrated database `broken`."""
    with EmbeddedPostgres(tmp_path / "server") as server:
        server.create_database("broken")
        migrate.upgrade(server.url("broken"))
        yield server


@STAGES
def test_a_database_that_is_stopped_and_started_again_is_waited_for(
    own_server: EmbeddedPostgres, tmp_path: Path, staged: bool
) -> None:
    """Once in good order and once at once, as in a crash; a worker goes on where it was, another just begins then."""
    with installation(own_server.url("broken"), tmp_path, latency_ms=100, staged=staged) as broken:
        broken.submit(120)
        workers = [broken.worker()]
        for shutdown in (signal.SIGINT, signal.SIGQUIT):
            broken.await_calls(len(broken.calls()) + 15)
            [(postmaster,)] = broken.database.fetch(
                "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
            )
            process = psutil.Process(postmaster)
            process.send_signal(shutdown)
            process.wait(PATIENCE_SECONDS)
            begun = broken.worker()
            workers.append(begun)
            wait_until(lambda begun=begun: "database failed" in broken.log_of(begun), "its first look")  # type: ignore[misc]
            own_server.url("broken")  # starts it again
        for worker in workers:
            broken.await_end(worker)

        assert broken.settled().unrecorded == 0
        assert (broken.stages()[1] > 0) == staged


@STAGES
def test_a_storm_of_failures_ends_with_every_task_accounted_for(
    database_url: str, tmp_path: Path, staged: bool
) -> None:
    """Three of four calls fail, in every way that passes."""
    with installation(database_url, tmp_path, "--storm", "0:600:0.75", staged=staged) as broken:
        broken.submit(40 if staged else 60, max_attempts=6 if staged else 3)
        broken.finish()

        books = broken.settled()
        failed = sum(call["status"] != 200 or call["ending"] == "disconnect" for call in broken.calls())
        assert failed / books.calls > 0.7
        assert books.states["dead"] > 0
        assert books.states["succeeded"] > 0
        assert (broken.stages()[1] > 0) == staged


@pytest.mark.parametrize("kind", ["hang", "trickle"])
def test_an_answer_that_does_not_come_or_does_not_end_costs_its_time_and_no_more(
    database_url: str, tmp_path: Path, kind: str
) -> None:
    storm = ("--storm", f"0:600:0.4:{kind}")
    with installation(database_url, tmp_path, *storm, concurrency=30, timeout_seconds=1.5) as broken:
        broken.submit(30)
        broken.finish()

        books = broken.settled()
        timeouts = broken.database.fetch("SELECT count(*) FROM executions WHERE reason = 'TIMEOUT'")
        left = sum(call["ending"] == "client-left" for call in broken.calls())
        assert timeouts == [(left,)]
        assert left > 0.3 * books.calls
        assert books.states["succeeded"] > 0


def test_a_worker_that_is_stopped_past_its_lease_and_woken_changes_nothing(
    database_url: str, tmp_path: Path
) -> None:
    with installation(database_url, tmp_path, latency_ms=400) as broken:
        broken.submit(60)
        stopped = broken.worker()
        broken.await_calls(10)
        os.kill(stopped.pid, signal.SIGSTOP)
        broken.finish()
        before = broken.states()
        os.kill(stopped.pid, signal.SIGCONT)
        broken.await_end(stopped)

        books = broken.settled()
        assert broken.states() == before
        assert books.late > 0
        assert books.unrecorded == 0


def test_a_worker_that_is_stopped_within_a_transaction_does_not_hold_up_the_others(
    database_url: str, tmp_path: Path
) -> None:
    """It is stopped just before a commit, while it holds the lock of the ledger's writers."""
    woken = threading.Event()

    def fate() -> Fate:
        if broken.database.fetch(LEDGER_LOCKED) == [(True,)] and not woken.is_set():
            os.kill(stopped.pid, signal.SIGSTOP)
            woken.wait(PATIENCE_SECONDS)
        return Fate.PASS

    with (
        installation(database_url, tmp_path) as broken,
        LossyProxy(database_url, fate) as proxy,
    ):
        broken.submit(60)
        stopped = broken.worker(through=proxy.url)
        wait_until(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED, "the stop")
        broken.finish()
        woken.set()
        os.kill(stopped.pid, signal.SIGCONT)
        broken.await_end(stopped)

        assert broken.settled().unrecorded == 0


def test_acknowledgements_that_are_lost_after_the_commit_do_no_harm(
    database_url: str, tmp_path: Path
) -> None:
    """One of eight commits or so, the very first one too; a sound worker does what then waits for another plan."""
    rng = random.Random(7)
    lucky, lost = 1, 0

    def fate() -> Fate:
        nonlocal lucky, lost
        lucky -= 1
        if lucky > 0:
            return Fate.PASS
        lucky, lost = rng.randint(4, 12), lost + 1
        return Fate.LOSE_ANSWER

    with (
        installation(database_url, tmp_path, lease_seconds=1) as broken,
        LossyProxy(database_url, fate) as proxy,
    ):
        broken.submit(150)
        broken.await_end(broken.worker(through=proxy.url, assigns=False))
        broken.assign()
        broken.finish()

        assert broken.settled().unrecorded == 0
        assert lost >= 10


def test_what_is_delivered_twice_counts_once(database_url: str, tmp_path: Path) -> None:
    """Each task is submitted twice at once, and every outcome is sent to the database twice."""
    with installation(database_url, tmp_path, "--failure-share", "0.3") as broken:
        file = broken.task_file(60)
        with ThreadPoolExecutor(2) as pool:
            submissions = list(pool.map(broken.submit_file, [file, file]))
        assert [submission.returncode for submission in submissions] == [0, 0]
        broken.submit(60)
        broken.await_end(broken.worker(twice=True))

        books = broken.settled()
        assert books.calls == books.attempts


def test_cancelling_that_races_completion_leaves_each_task_one_end(database_url: str, tmp_path: Path) -> None:
    """Whatever was called last is cancelled, at every moment of its attempt and after; the rest by a command."""
    rng = random.Random(11)
    with installation(database_url, tmp_path, latency_ms=80, concurrency=4) as broken:
        broken.submit(120)
        workers = [broken.worker(), broken.worker()]
        canceller = CancellationStore(broken.database, broken.ledger)
        asked: Counter[str] = Counter()
        while asked.total() < 60:
            running = broken.database.fetch("SELECT task_id FROM tasks WHERE state = 'running'")
            chosen = tuple(task for (task,) in running if rng.random() < 0.3)
            if chosen:
                time.sleep(rng.uniform(0, 0.1))  # so that any step of an attempt may be the one that is raced
                cancelled = canceller.cancel(Selection(task_ids=chosen), by="test", reason="a race")
                asked.update(
                    raced=cancelled.requested + cancelled.too_late.total(), waiting=cancelled.at_once
                )
        said = broken.control_panel("cancel", "--all", "--yes", "--reason", "enough")
        assert said.returncode == 0, said.stderr
        for worker in workers:
            broken.await_end(worker)

        books = broken.settled()
        assert books.states["cancelled"] > 0
        assert books.states["succeeded"] > 0


def test_two_runs_of_one_day_at_once_share_it(database_url: str, tmp_path: Path) -> None:
    with installation(database_url, tmp_path, "--failure-share", "0.1") as broken:
        assert broken.submit_file(broken.task_file(120)).returncode == 0
        runs = [broken.run(), broken.run()]
        for run in runs:
            broken.await_end(run)

        books = broken.settled()
        assert books.calls == books.attempts
        workers = broken.database.fetch("SELECT count(DISTINCT worker) FROM executions")
        assert workers == [(2,)]


def test_only_the_databases_clock_counts(database_url: str, tmp_path: Path) -> None:
    """One worker's clock is a day ahead, another's a day behind; leases, retries and deadlines are as ever."""
    with installation(database_url, tmp_path, "--failure-share", "0.2", latency_ms=200) as broken:
        [(began,)] = broken.database.fetch("SELECT clock_timestamp()")
        broken.submit(80, deadline=(began + timedelta(hours=1)).isoformat())
        workers = [broken.worker(clock_off_by=seconds) for seconds in (86_400.0, -86_400.0)]
        wait_until(lambda: len(broken.owners()) == 2, "both workers' claims")
        workers[0].kill()
        [(longest,)] = broken.database.fetch("SELECT max(lease_expires_at) - clock_timestamp() FROM tasks")
        assert longest <= timedelta(seconds=QUICK["lease_seconds"])
        workers[0] = broken.worker(clock_off_by=86_400.0)
        for worker in workers:
            broken.await_end(worker)

        books = broken.settled(deaths=1)
        assert books.lost > 0
        assert broken.database.fetch(
            """SELECT bool_and(started_at BETWEEN %(began)s AND clock_timestamp()
                   AND finished_at BETWEEN started_at AND clock_timestamp())
               FROM executions""",
            {"began": began},
        ) == [(True,)]
        assert broken.database.fetch("SELECT count(*) FROM tasks WHERE reason = 'DEADLINE_PASSED'") == [(0,)]
