"""Notices: stored once with the change they tell of, delivered until someone has them, never lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from assigned_tasks import DAY, add_assigned, add_task, assign, configuration

from cp_core.execution.cost import Usage
from cp_core.execution.outcome import AttemptResult
from cp_core.policy.notices import NoticePolicy
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import TaskState
from cp_resources.assigner import Assigner
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore, Finished
from cp_resources.ledger import Ledger
from cp_resources.notifiers.file import FileNotifier
from cp_resources.notifiers.message import Message, NoticeSetupError, Sent
from cp_resources.outbox import BATCH, Notice, NoticeKind, Outbox, notices_about
from cp_resources.planner import Planner

ASSIGNED, COMPLETED = NoticeKind.ASSIGNED, NoticeKind.COMPLETED
DONE = AttemptResult(
    None,
    usage=Usage(input_tokens=10_000, output_tokens=2_000),
    cost_usd=Decimal("0.02"),
    quality=9.0,
    evidence={"tests_passed": 3},
    output="the work",
)
POOR = replace(DONE, reason=Reason.LOW_QUALITY, quality=2.0)
DELIVERED = Sent(delivered=True)
POLICY = NoticePolicy(max_tries=3, backoff_base_seconds=100, backoff_cap_seconds=150)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


@pytest.fixture
def store(database: Database, ledger: Ledger) -> ExecutionStore:
    return ExecutionStore(database, ledger, configuration())


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database, POLICY, jitter=lambda: 0.5)


class Recorder:
    """A notifier that keeps what it is given and answers as it is told."""

    def __init__(self, answer: Callable[[Message], Sent | None] = lambda message: DELIVERED) -> None:
        self.messages: list[Message] = []
        self._answer = answer

    def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
        self.messages += messages
        answers = {message.id: self._answer(message) for message in messages}
        return {key: sent for key, sent in answers.items() if sent is not None}


class Crash(BaseException):
    """The process dies: nothing catches this."""


class DiesAfterSending:
    """Sends, and does not live to tell."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
        self._inner.send(messages)
        raise Crash


def notices(database: Database) -> list[tuple[str, str]]:
    return database.fetch(
        "SELECT t.task_id, o.kind FROM outbox o JOIN tasks t ON t.id = o.task ORDER BY 1, 2"
    )


def payload(database: Database, kind: str) -> dict[str, Any]:
    [(found,)] = database.fetch("SELECT payload FROM outbox WHERE kind = %s", [kind])
    return found


def add_notices(database: Database, count: int = 1) -> list[int]:
    """Tasks with an `assigned` notice each."""
    tasks = [add_task(database, f"t{number:03}") for number in range(count)]
    with database.transaction() as connection:
        assert Outbox.add(connection, [Notice(task, ASSIGNED) for task in tasks]) == count
    return tasks


def make_due(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE outbox SET available_at = now() WHERE available_at < 'infinity'")


def work_on(store: ExecutionStore, result: AttemptResult) -> None:
    """One attempt at each assigned task."""
    claimed = store.claim(DAY, "w", 100, {"sonnet": 100, "mini": 100, "nano": 100})
    store.complete("w", [Finished(one, result, 0.0) for one in claimed])


# --- what is stored, and when


def test_an_assignment_tells_who_does_it_who_pays_and_what_it_is_worth(
    database: Database, ledger: Ledger
) -> None:
    add_task(database, "a", value_score=50.0)

    Assigner(database, ledger, configuration()).assign_day(DAY)

    assert notices(database) == [("a", "assigned")]
    told = payload(database, "assigned")
    assert UUID(told.pop("id"))
    assert datetime.now(UTC) - datetime.fromisoformat(told.pop("at")) < timedelta(minutes=1)
    assert told.pop("expected_cost_usd") > 0
    assert told == {
        "kind": "assigned",
        "task_id": "a",
        "title": "A title",
        "state": "assigned",
        "reason": None,
        "value_score": 50.0,
        "model": "mini",
        "funding": "budget:api",
        "attempts": 0,
        "quality": None,
        "cost_usd": None,
    }


def test_a_completion_tells_how_good_it_is_and_what_it_cost(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, task_id="a")

    work_on(store, replace(DONE, reason=Reason.RATE_LIMITED, quality=None))
    assert notices(database) == []
    work_on(store, DONE)

    told = payload(database, "completed")
    assert (told["state"], told["reason"], told["model"]) == ("succeeded", None, "sonnet")
    assert (told["funding"], told["quality"], told["attempts"]) == ("subscription:plan", 9.0, 2)
    assert told["cost_usd"] == 0.04  # two attempts at 0.02, the failed one too


def test_a_notice_holds_neither_the_prompt_nor_the_answer(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger)
    work_on(store, replace(DONE, error="a provider's words"))
    told = json.dumps(payload(database, "completed"))
    assert "What to do" not in told
    assert "the work" not in told
    assert "provider's words" not in told


def test_every_way_to_an_end_is_told(database: Database, ledger: Ledger, store: ExecutionStore) -> None:
    add_assigned(database, ledger, task_id="poor", max_attempts=1)
    work_on(store, POOR)
    add_assigned(database, ledger, task_id="impossible", max_attempts=1)
    work_on(store, replace(DONE, reason=Reason.INVALID_REQUEST, quality=None))
    add_assigned(database, ledger, task_id="lost", max_attempts=1)
    store.claim(DAY, "w", 100, {"sonnet": 100})
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'"
        )
    store.requeue_expired()
    add_assigned(database, ledger, task_id="withdrawn", deadline_in=timedelta(seconds=-1))
    store.withdraw(DAY)
    add_task(database, "refused", deadline_in=timedelta(seconds=-1))
    Assigner(database, ledger, configuration()).assign_day(DAY)

    ended = database.fetch("SELECT task_id, state FROM tasks ORDER BY 1")
    assert ended == [
        ("impossible", "dead"),
        ("lost", "dead"),
        ("poor", "failed"),
        ("refused", "dead"),
        ("withdrawn", "dead"),
    ]
    assert notices(database) == [(task, "completed") for task, _ in ended]


def test_what_is_not_committed_is_not_told(database: Database) -> None:
    task = add_task(database)

    def move_and_crash() -> None:
        with database.transaction() as connection:
            connection.execute("UPDATE tasks SET state = 'dead' WHERE id = %s", [task])
            Outbox.add(connection, [Notice(task, COMPLETED)])
            raise Crash

    with pytest.raises(Crash):
        move_and_crash()
    assert notices(database) == []


def test_a_task_that_is_assigned_again_is_told_once(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_task(database, "a")
    assigner = Assigner(database, ledger, configuration())

    assigner.assign_day(DAY)
    first = payload(database, "assigned")
    work_on(store, POOR)
    assert database.fetch("SELECT state FROM tasks") == [("queued",)]
    assigner.assign_day(DAY)
    Planner(database, ledger, configuration()).decide("a")

    assert database.fetch("SELECT count(*) FROM assignments WHERE outcome = 'assigned'") == [(2,)]
    assert payload(database, "assigned") == first


def test_whichever_of_two_paths_is_first_one_notice_stands(database: Database) -> None:
    tasks = [add_task(database, f"t{number}") for number in range(50)]
    together = threading.Barrier(4)

    def add(order: int) -> int:
        with database.transaction() as connection:
            together.wait(10)
            return Outbox.add(connection, [Notice(task, ASSIGNED) for task in tasks[::order]])

    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(add, [1, -1, 1, -1]))

    assert sorted(added) == [0, 0, 0, 50]
    assert len(notices(database)) == 50


def test_only_assignments_and_ends_are_told() -> None:
    moved = dict(enumerate(TaskState))
    told = {list(TaskState)[notice.task]: notice.kind for notice in notices_about(moved)}
    assert told == {
        TaskState.ASSIGNED: ASSIGNED,
        TaskState.SUCCEEDED: COMPLETED,
        TaskState.FAILED: COMPLETED,
        TaskState.CANCELLED: COMPLETED,
        TaskState.DEAD: COMPLETED,
    }


# --- delivery


def test_what_is_delivered_is_not_sent_again(database: Database, outbox: Outbox) -> None:
    add_notices(database, 3)
    recorder = Recorder()

    done = outbox.deliver(recorder)
    again = outbox.deliver(recorder)

    assert (done.claimed, done.delivered, done.put_off, done.failed) == (3, 3, 0, 0)
    assert again.claimed == 0
    assert [message.payload["task_id"] for message in recorder.messages] == ["t000", "t001", "t002"]
    assert outbox.undelivered().waiting == 0


def test_a_batch_takes_no_more_than_it_is_told_to(database: Database, outbox: Outbox) -> None:
    add_notices(database, 30)
    recorder = Recorder()
    outbox.deliver(recorder, 7)
    assert len(recorder.messages) == 7
    assert outbox.undelivered().waiting == 23


def test_two_deliverers_at_once_share_the_notices_and_repeat_none(database: Database, outbox: Outbox) -> None:
    add_notices(database, 40)
    both_hold_a_batch = threading.Barrier(2)

    def deliver(_: int) -> list[str]:
        recorder = Recorder()

        class Meets(Recorder):
            def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
                both_hold_a_batch.wait(10)
                return recorder.send(messages)

        outbox.deliver(Meets(), 20)
        return [message.id for message in recorder.messages]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(deliver, range(2))

    assert (len(first), len(second)) == (20, 20)
    assert not set(first) & set(second)
    assert outbox.undelivered().waiting == 0


def test_a_crash_between_sending_and_committing_repeats_under_the_same_id(
    database: Database, outbox: Outbox
) -> None:
    add_notices(database)
    recorder = Recorder()

    with pytest.raises(Crash):
        outbox.deliver(DiesAfterSending(recorder))
    assert outbox.undelivered().due == 1
    assert outbox.deliver(recorder).delivered == 1

    first, second = recorder.messages
    assert first.id == second.id == second.payload["id"]


def test_the_file_has_each_notice_once_also_after_crashes(
    database: Database, outbox: Outbox, tmp_path: Path
) -> None:
    path = tmp_path / "notices.jsonl"
    add_notices(database, 30)
    for _ in range(3):
        with pytest.raises(Crash):
            outbox.deliver(DiesAfterSending(FileNotifier(path)), 10)
    outbox.deliver_due(FileNotifier(path), seconds=60)

    told = [json.loads(line)["task_id"] for line in path.read_text().splitlines()]
    assert told == [f"t{number:03}" for number in range(30)]
    assert outbox.undelivered().waiting == 0


def test_a_failed_try_waits_longer_each_time_and_then_for_a_person(
    database: Database, outbox: Outbox
) -> None:
    add_notices(database)
    failing = Recorder(lambda message: Sent(delivered=False, error="answered 500"))

    def seconds_until_next() -> float:
        [(seconds,)] = database.fetch("SELECT extract(epoch FROM available_at - now())::float8 FROM outbox")
        return seconds

    assert outbox.deliver(failing).put_off == 1
    assert 45 < seconds_until_next() <= 50  # half of 100
    assert outbox.deliver(failing).claimed == 0
    make_due(database)
    assert outbox.deliver(failing).put_off == 1
    assert 70 < seconds_until_next() <= 75  # half of 200, capped at 150
    make_due(database)
    last = outbox.deliver(failing)
    make_due(database)

    assert (last.failed, last.put_off, last.errors) == (1, 0, {"answered 500": 1})
    assert outbox.deliver(failing).claimed == 0
    assert (outbox.undelivered().waiting, outbox.undelivered().failed) == (0, 1)
    [stuck] = outbox.listed(10)
    assert (stuck.task_id, stuck.kind, stuck.tries) == ("t000", "assigned", 3)
    assert (stuck.next_try_at, stuck.error) == (None, "answered 500")


def test_a_failed_notice_is_tried_again_when_a_person_asks(database: Database) -> None:
    add_notices(database, 2)
    outbox = Outbox(database, NoticePolicy(max_tries=1))
    outbox.deliver(Recorder(lambda message: Sent(delivered=False, error="gone")), 1)

    assert outbox.retry_failed() == 1
    assert outbox.deliver(Recorder()).delivered == 2
    assert outbox.retry_failed() == 0


def test_a_receiver_that_asks_for_time_gets_it(database: Database, outbox: Outbox) -> None:
    add_notices(database)
    outbox.deliver(Recorder(lambda message: Sent(delivered=False, error="busy", retry_after=3000)))
    [(waits,)] = database.fetch("SELECT available_at - now() > interval '2900 s' FROM outbox")
    assert waits


def test_what_there_was_no_time_for_keeps_its_tries(database: Database, outbox: Outbox) -> None:
    add_notices(database, 3)
    only_one = Recorder(lambda message: DELIVERED if message.payload["task_id"] == "t001" else None)
    assert outbox.deliver(only_one).delivered == 1
    assert database.fetch("SELECT tries, delivered_at IS NULL FROM outbox ORDER BY id") == [
        (0, True),
        (1, False),
        (0, True),
    ]


def test_notices_wait_while_the_notifier_is_set_up_wrongly(database: Database, outbox: Outbox) -> None:
    add_notices(database, 3)

    class Unset:
        def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
            raise NoticeSetupError("notices.webhook.secret_env names ...")

    for _ in range(POLICY.max_tries + 1):
        with pytest.raises(NoticeSetupError):
            outbox.deliver(Unset())
    assert database.fetch("SELECT DISTINCT tries, error FROM outbox") == [(0, None)]
    assert outbox.deliver(Recorder()).delivered == 3


def test_a_person_hears_of_recipients_that_a_delivered_notice_did_not_reach(
    database: Database, outbox: Outbox
) -> None:
    add_notices(database)
    done = outbox.deliver(Recorder(lambda message: Sent(delivered=True, error="some were refused")))
    assert (done.delivered, done.errors) == (1, {"some were refused": 1})
    assert database.fetch("SELECT error, delivered_at IS NOT NULL FROM outbox") == [
        ("some were refused", True)
    ]


def test_delivery_goes_on_until_nothing_is_due(database: Database, outbox: Outbox) -> None:
    add_notices(database, BATCH + 5)
    recorder = Recorder()
    done = outbox.deliver_due(recorder, seconds=60)
    assert done.delivered == len({message.id for message in recorder.messages}) == BATCH + 5


def test_delivery_begins_no_batch_after_its_time(database: Database, outbox: Outbox) -> None:
    add_notices(database, 2 * BATCH)
    times = iter([0.0, 0.0, 11.0])
    assert outbox.deliver_due(Recorder(), seconds=10, clock=lambda: next(times)).delivered == BATCH


def test_a_task_may_be_worked_on_while_its_notice_is_being_sent(
    database: Database, ledger: Ledger, store: ExecutionStore, outbox: Outbox
) -> None:
    task = add_task(database)
    with database.transaction() as connection:
        Outbox.add(connection, [Notice(task, ASSIGNED)])
    assign(database, ledger, task)

    class WorksMeanwhile(Recorder):
        def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
            work_on(store, DONE)
            return super().send(messages)

    outbox.deliver(WorksMeanwhile())
    assert [kind for _, kind in notices(database)] == ["assigned", "completed"]
