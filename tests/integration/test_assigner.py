"""Assignment against a real PostgreSQL: what is decided, reserved and stored is one thing or nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from cp_core.assignment.decision import decision_id, reservation_key
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.models.registry import ModelRegistry
from cp_core.policy.policies import Flags, Policies
from cp_core.quota.account import Account
from cp_core.scoring.config import Domain, ScoringConfig
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration, load_file
from cp_resources.database import Database
from cp_resources.ledger import Ledger, Reservation, Settlement, reservation_transfers
from cp_resources.settings import PROJECT_ROOT

DAY = date(2026, 3, 4)
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
TOKENS = 22_000  # expected by each task here, input and output together


def configuration(
    *, tokens: float = 10_000_000, usd: float = 100, flags: Flags | None = None, **policy: Any
) -> Configuration:
    """A premium, a second premium and a budget model; a subscription of one window, and one money budget."""
    models = {
        "opus": ("premium", "claude", 5, 25),
        "astra": ("premium", "gpt", 10, 50),
        "haiku": ("budget", "claude", 1, 5),
    }
    registry = ModelRegistry.model_validate(
        {
            "providers": {
                "maker": {"wire": "openai-chat", "base_url": "https://maker.example/v1", "api_key_env": "KEY"}
            },
            "models": {
                name: {
                    "provider": "maker",
                    "api_name": name,
                    "tier": tier,
                    "family": family,
                    "input_usd_per_million": input_price,
                    "output_usd_per_million": output_price,
                    "context_window": 200_000,
                    "max_output_tokens": 50_000,
                    "capability": dict.fromkeys(Domain, 0.8),
                }
                for name, (tier, family, input_price, output_price) in models.items()
            },
            "subscriptions": {
                "claude-max": {
                    "family": "claude",
                    "models": ["opus", "haiku"],
                    "windows": [{"window": "weekly", "tokens": tokens}],
                }
            },
            "budgets": {"api": {"window": "monthly", "usd": usd, "models": ["astra"]}},
        }
    )
    return Configuration(
        registry=registry,
        scoring=load_file(PROJECT_ROOT / "config" / "scoring.yaml", ScoringConfig),
        policies=Policies(assignment=AssignmentPolicy(**policy), flags=flags or Flags()),
    )


def assigner(database: Database, config: Configuration | None = None) -> Assigner:
    return Assigner(database, Ledger(database), config or configuration())


def add_task(
    database: Database,
    task_id: str,
    value_score: float | None = 95.0,
    *,
    dependencies: Sequence[str] = (),
    deadline: datetime | None = None,
    state: str = "queued",
    input_mean: float = 20_000,
) -> int:
    with database.transaction() as connection:
        [(task,)] = connection.execute(
            """INSERT INTO tasks (task_id, submitted_at, priority, workspace, deadline, dependencies, state,
                   value_score)
               VALUES (%s, %s, 0, 'here', %s, %s, %s, %s) RETURNING id""",
            (task_id, NOON, deadline, list(dependencies) or None, state, value_score),
        ).fetchall()
        connection.execute(
            "INSERT INTO task_payloads (task, title, description, labels) VALUES (%s, 'title', 'text', '{}')",
            (task,),
        )
        if value_score is not None:
            connection.execute(
                """INSERT INTO task_scores (task, submission_day, files, lines, size_source, complexity,
                       complexity_factor, priority_points, time_bonus, time_bonus_reason, domain,
                       domain_factor, domain_source, risk, risk_factor, score, input_mean, input_median,
                       input_low, input_high, output_mean, output_median, output_low, output_high,
                       config_hash)
                   VALUES (%s, %s, 1, 1, 'given', 'simple', 1, 1, 0, 'none', 'backend', 1, 'default',
                       'development', 1, %s, %s, 20000, 10000, 40000, 2000, 2000, 1000, 4000, 'hash')""",
                (task, DAY, value_score, input_mean),
            )
    return task


def add_execution(database: Database, task: int, model: str, reason: str) -> None:
    """A failed attempt under the task's decision, after which the task is queued for another one."""
    with database.transaction() as connection:
        connection.execute(
            """INSERT INTO executions (task, assignment, submission_day, attempt, model, provider, funding,
                   worker, state, reason, finished_at)
               SELECT id, assignment, %s, attempts + 1, %s, 'maker', 'budget:api', 'w', 'failed', %s, now()
               FROM tasks WHERE id = %s""",
            (DAY, model, reason, task),
        )
        connection.execute(
            """UPDATE tasks SET state = 'queued', reason = %s, attempts = attempts + 1, assignment = NULL,
                   model = NULL
               WHERE id = %s""",
            (reason, task),
        )


def move(database: Database, task_id: str, state: str) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET state = %s WHERE task_id = %s", (state, task_id))


def make_due(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET available_at = now() - interval '1 second'")


def states(database: Database) -> dict[str, tuple[str, str | None]]:
    rows = database.fetch("SELECT task_id, state, reason FROM tasks ORDER BY task_id")
    return {task_id: (state, reason) for task_id, state, reason in rows}


def account(database: Database, name: str) -> Account:
    return next(account for account in Ledger(database).accounts() if account.account == name)


def count(database: Database, table: str) -> int:
    [(rows,)] = database.fetch(f"SELECT count(*) FROM {table}")
    return rows


def test_a_batch_is_assigned_reserved_and_stored(database: Database) -> None:
    config = configuration()
    task = add_task(database, "A", 95)
    add_task(database, "B", 10)
    summary = assigner(database, config).assign_day(DAY, run_id="run-1")

    assert summary.outcomes == {"assigned": 2}
    assert summary.models == {"opus": 1, "haiku": 1}
    assert summary.tiers == {"premium": 1, "budget": 1}
    assert summary.fundings == {"subscription:claude-max": 2}
    assert summary.reserved == {"claude-max/weekly": 2 * TOKENS}
    assert summary.value_assigned == 105
    [row] = database.fetch(
        """SELECT t.state, t.model, a.model, a.funding, a.outcome, a.plan, a.expected_cost_usd, a.decision_id,
               ARRAY(SELECT transfer_id FROM quota_transfers WHERE reservation = a.decision_id),
               (a.explanation ->> 'value_score')::float8, a.config_hash, a.run_id,
               a.submission_day, a.strategy
           FROM tasks t JOIN assignments a ON a.id = t.assignment AND a.task = t.id WHERE t.id = %s""",
        [task],
    )
    identity = decision_id("A", 0, config.content_hash)
    assert row == (
        "assigned",
        "opus",
        "opus",
        "subscription:claude-max",
        "assigned",
        [
            {
                "model": "opus",
                "funding": "subscription:claude-max",
                "amounts": {"claude-max/weekly": str(TOKENS)},
            }
        ],
        Decimal("0.15"),
        identity,
        reservation_transfers(reservation_key(identity, 1), ["claude-max/weekly"]),
        95.0,
        config.content_hash,
        "run-1",
        DAY,
        "tiered",
    )
    assert account(database, "claude-max/weekly").pending == 2 * TOKENS
    assert database.fetch("SELECT config_hash FROM config_versions") == [(config.content_hash,)]
    [(subject, payload)] = database.fetch("SELECT subject, payload FROM events WHERE kind = 'assign.summary'")
    assert (subject, payload["outcomes"], payload["days"]) == ("run-1", {"assigned": 2}, ["2026-03-04"])


def test_scarce_quota_goes_to_the_most_valuable_tasks_across_batches(database: Database) -> None:
    for number in range(10):
        add_task(database, f"T{number}", 90 + number)
    config = configuration(tokens=3 * TOKENS, usd=0.001, batch_size=2)
    summary = assigner(database, config).assign_day(DAY)
    assert summary.outcomes == {"assigned": 3, "deferred": 7}
    assert {task for task, (state, _) in states(database).items() if state == "assigned"} == {
        "T7",
        "T8",
        "T9",
    }
    assert set(summary.reasons) == {"INSUFFICIENT_GLOBAL_CAPACITY"}


def test_a_repeat_decides_nothing_anew(database: Database) -> None:
    add_task(database, "A")
    add_task(database, "B", 95, input_mean=900_000_000)
    add_task(database, "C", 95, dependencies=["A"])
    assigner(database).assign_day(DAY)
    before = states(database), count(database, "assignments"), count(database, "quota_transfers")
    assert assigner(database).assign_day(DAY).decided == 0
    assert (states(database), count(database, "assignments"), count(database, "quota_transfers")) == before


def test_a_deferred_task_waits_and_a_repeated_deferral_adds_no_row(database: Database) -> None:
    add_task(database, "A", 95)
    poor = configuration(tokens=TOKENS, usd=0.001, flags=Flags(retry_policy_v2=False))
    Ledger(database).open_accounts(poor.registry)
    with database.transaction() as connection:
        rival = Reservation(uuid4(), {"claude-max/weekly": Decimal(1)})
        assert Ledger(database).reserve(connection, [rival], expires_in=timedelta(hours=1)) == [True]

    assert assigner(database, poor).assign_day(DAY).outcomes == {"deferred": 1}
    [(wait,)] = database.fetch("SELECT extract(epoch FROM available_at - now()) FROM tasks")
    assert 290 < wait <= 300
    make_due(database)
    assert assigner(database, poor).assign_day(DAY).outcomes == {"deferred": 1}
    assert count(database, "assignments") == 1

    make_due(database)
    assert assigner(database, configuration()).assign_day(DAY).outcomes == {"assigned": 1}
    assert states(database)["A"] == ("assigned", None)
    assert count(database, "assignments") == 2


def test_a_task_waits_for_its_dependency_and_is_due_once_that_has_succeeded(database: Database) -> None:
    add_task(database, "first", 20)
    add_task(database, "second", 99, dependencies=["first"])
    add_task(database, "never", 99, dependencies=["unknown"])
    patient = configuration(dependency_seconds=300)
    assigner(database, patient).assign_day(DAY)
    waiting = ("deferred", "DEPENDENCY_PENDING")
    assert states(database) == {"first": ("assigned", None), "never": waiting, "second": waiting}

    move(database, "first", "succeeded")
    assert assigner(database, patient).assign_day(DAY).outcomes == {"assigned": 1}
    assert states(database)["second"] == ("assigned", None)


def test_what_depends_on_a_dead_task_is_dead_all_the_way_down(database: Database) -> None:
    add_task(database, "c", 99, dependencies=["b"])
    add_task(database, "b", 95, dependencies=["a"])
    add_task(database, "a", 91, deadline=NOON)
    assert assigner(database).assign_day(DAY).reasons["DEPENDENCY_FAILED"] == 2
    assert states(database) == {
        "a": ("dead", "DEADLINE_PASSED"),
        "b": ("dead", "DEPENDENCY_FAILED"),
        "c": ("dead", "DEPENDENCY_FAILED"),
    }


def test_the_longer_a_task_has_waited_for_another_the_later_it_is_looked_at_again(database: Database) -> None:
    add_task(database, "A", 99, dependencies=["unknown"])
    assigner(database).assign_day(DAY)
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET state_changed_at = now() - interval '100 s', available_at = now()"
        )
    assigner(database).assign_day(DAY)
    [(wait,)] = database.fetch("SELECT extract(epoch FROM available_at - now()) FROM tasks")
    assert 90 < wait < 110


def test_deadlines_of_imported_days_do_not_count_where_the_policy_says_so(database: Database) -> None:
    add_task(database, "A", deadline=NOON)
    assigner(database, configuration(enforce_deadlines=False)).assign_day(DAY)
    assert states(database)["A"] == ("assigned", None)


def test_a_model_that_failed_a_task_for_good_is_not_given_it_again(database: Database) -> None:
    task = add_task(database, "A", 95)
    assigner(database).assign_day(DAY)
    add_execution(database, task, "opus", "REFUSED")
    assigner(database).assign_day(DAY)
    assert database.fetch("SELECT state, model FROM tasks") == [("assigned", "astra")]

    add_execution(database, task, "astra", "REFUSED")
    assigner(database).assign_day(DAY)
    assert states(database)["A"] == ("dead", "NO_ELIGIBLE_PLAN")


def test_a_transient_failure_excludes_nothing(database: Database) -> None:
    task = add_task(database, "A", 95)
    assigner(database).assign_day(DAY)
    add_execution(database, task, "opus", "TIMEOUT")
    assigner(database).assign_day(DAY)
    assert database.fetch("SELECT state, model FROM tasks") == [("assigned", "opus")]


def test_a_task_that_was_done_poorly_and_has_no_other_model_has_failed(database: Database) -> None:
    task = add_task(database, "A", 10)
    assigner(database).assign_day(DAY)
    add_execution(database, task, "haiku", "LOW_QUALITY")
    assigner(database).assign_day(DAY)
    assert states(database)["A"] == ("failed", "LOW_QUALITY")
    assert database.fetch("SELECT outcome, reason FROM assignments ORDER BY id DESC LIMIT 1") == [
        ("rejected", "NO_ELIGIBLE_PLAN")
    ]


def test_only_scored_tasks_of_the_day_are_decided_and_at_most_the_limit(database: Database) -> None:
    add_task(database, "unscored", None)
    for number in range(5):
        add_task(database, f"T{number}", 90 + number)
    assert assigner(database).assign_day(DAY + timedelta(days=1)).decided == 0
    assert assigner(database, configuration(batch_size=2)).assign_day(DAY, limit=3).decided == 3
    assert [task for task, (state, _) in states(database).items() if state == "assigned"] == [
        "T2",
        "T3",
        "T4",
    ]
    assert assigner(database).assign_day(DAY).decided == 2


def test_two_assigners_at_once_assign_no_task_twice_and_overdraw_nothing(database: Database) -> None:
    tasks, affordable = 240, 100
    for number in range(tasks):
        add_task(database, f"T{number}", 90 + number % 10)
    config = configuration(tokens=affordable * TOKENS, usd=0.001, batch_size=20)
    start = threading.Barrier(3)

    def run() -> Any:
        own = Database(database.url)
        start.wait()
        try:
            return Assigner(own, Ledger(own), config).assign_day(DAY)
        finally:
            own.close()

    with ThreadPoolExecutor(3) as pool:
        summaries = [future.result() for future in [pool.submit(run) for _ in range(3)]]

    assert sum(summary.outcomes["assigned"] for summary in summaries) == affordable
    assert sum(summary.decided for summary in summaries) == tasks
    assert count(database, "assignments") == tasks
    assert count(database, "(SELECT DISTINCT task FROM assignments) AS decided") == tasks
    assert account(database, "claude-max/weekly").available == 0
    assert Ledger(database).verify().balanced


def test_a_crash_before_the_commit_leaves_nothing_half_done(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_task(database, "A")
    config = configuration()
    with monkeypatch.context() as patch:

        def crash(*_: object) -> None:
            raise ConnectionError("the process died here")

        patch.setattr(Assigner, "_announce", crash)
        with pytest.raises(ConnectionError):
            assigner(database, config).assign_day(DAY)
    assert states(database)["A"] == ("queued", None)
    assert count(database, "assignments") == 0
    assert account(database, "claude-max/weekly").pending == 0

    assigner(database, config).assign_day(DAY)
    assert database.fetch("SELECT decision_id FROM assignments") == [
        (decision_id("A", 0, config.content_hash),)
    ]


class RacedLedger(Ledger):
    """A ledger in which a rival takes tokens right after the balances were read, so many times.

    A rival that `lets_go` gives them back before the balances are read the next time. The first `spared` readings are
    not raced: what strategies are compared on is one.
    """

    def __init__(
        self, database: Database, tokens: int, times: int, *, lets_go: bool = False, spared: int = 0
    ) -> None:
        super().__init__(database)
        self._spared = spared
        self._raced, self._tokens, self._times, self._lets_go = database, tokens, times, lets_go
        self._taken: list[Settlement] = []

    def accounts(self) -> list[Account]:
        with self._raced.transaction() as connection:
            self.settle(connection, self._taken if self._lets_go else [])
        found = super().accounts()
        self._spared -= 1
        if self._spared < 0 and self._times:
            self._times -= 1
            rival = Reservation(uuid4(), {"claude-max/weekly": Decimal(self._tokens)})
            self._taken.append(Settlement(rival.key, {}))
            with self._raced.transaction() as connection:
                assert self.reserve(connection, [rival], expires_in=timedelta(hours=1)) == [True]
        return found


def test_a_lost_race_is_decided_again_with_the_balances_of_then(database: Database) -> None:
    add_task(database, "A", 95)
    add_task(database, "B", 96)
    raced = RacedLedger(database, tokens=TOKENS, times=1, spared=1)
    summary = Assigner(database, raced, configuration(tokens=2 * TOKENS)).assign_day(DAY)
    assert (summary.outcomes, summary.races_lost) == ({"assigned": 2}, 1)
    models = dict(database.fetch("SELECT task_id, funding FROM assignments JOIN tasks ON tasks.id = task"))
    assert models == {"B": "subscription:claude-max", "A": "budget:api"}
    assert Ledger(database).verify().balanced


def test_a_task_that_loses_every_race_is_deferred(database: Database) -> None:
    add_task(database, "A", 95)
    raced = RacedLedger(database, tokens=1, times=9, lets_go=True)
    summary = Assigner(database, raced, configuration(tokens=TOKENS, usd=0.001)).assign_day(DAY)
    assert (summary.outcomes, summary.races_lost) == ({"deferred": 1}, 3)
    assert states(database)["A"] == ("deferred", "QUOTA_EXHAUSTED")
    assert database.fetch("SELECT outcome, model FROM assignments") == [("deferred", None)]


def test_a_task_that_another_transaction_holds_is_left_to_it(database: Database) -> None:
    add_task(database, "A", 95)
    add_task(database, "B", 95)
    with psycopg.connect(database.url) as other:
        other.execute("SELECT 1 FROM cp.tasks WHERE task_id = 'A' FOR UPDATE")
        assert assigner(database).assign_day(DAY).decided == 1
    assert states(database) == {"A": ("queued", None), "B": ("assigned", None)}


@pytest.mark.parametrize("ended", ["dead", "failed", "cancelled"])
def test_a_task_that_is_sent_back_may_be_tried_as_often_as_a_new_one(database: Database, ended: str) -> None:
    task = add_task(database, "A", 95)
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET state = %s, assignment_attempts_left = 0 WHERE id = %s", (ended, task)
        )
        connection.execute("UPDATE tasks SET state = 'queued' WHERE id = %s", (task,))
    assert database.fetch("SELECT assignment_attempts_left FROM tasks") == [(3,)]


def test_the_summary_of_a_batch_counts_pairs_and_statements(database: Database) -> None:
    config = configuration(tokens=10 * TOKENS)
    add_task(database, "A", 95)
    add_task(database, "B", 30)
    assigner(database, config).assign_day(DAY)
    [(event,)] = database.fetch("SELECT payload FROM events WHERE kind = 'assign.summary'")
    options = sum(len(config.registry.fundings(model)) for model in config.registry.models)
    assert event["considered"] == 2 * options
    assert 0 < sum(event["pruned"].values()) < event["considered"]
    assert event["queries"] > 5
