"""Plans of several stages against a real PostgreSQL: escalated, accepted or failed, and every account exact.

nano costs the budget 0.05 USD a task, sonnet the subscription 22,000 tokens in both windows; a plan `nano > sonnet`
reserves 0.05 USD and half of the tokens.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from assigned_tasks import DAY, DOLLARS, TOKENS, add_assigned, add_task, assign, configuration

from cp_core.execution.cost import Usage
from cp_core.execution.evidence import Source
from cp_core.execution.feedback import Report
from cp_core.execution.outcome import AttemptResult, NextStep
from cp_core.tasks.reasons import Reason
from cp_core.tasks.states import TaskState
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.executions import ClaimedTask, ExecutionStore, Finished
from cp_resources.feedback import FeedbackStore
from cp_resources.ledger import Ledger

ROOM = {"sonnet": 1000, "mini": 1000, "nano": 1000}
GOOD = AttemptResult(
    None,
    usage=Usage(input_tokens=10_000, output_tokens=2_000),
    cost_usd=Decimal("0.02"),
    quality=9.0,
    evidence={"schema_valid": True, "tests_passed": 3, "tests_failed": 0},
    output="the work",
)
POOR = replace(GOOD, reason=Reason.LOW_QUALITY, quality=2.0, output="a first try")
BUSY = AttemptResult(Reason.RATE_LIMITED)
REFUSED = replace(GOOD, reason=Reason.REFUSED, quality=None, evidence=None)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    opened = Ledger(database)
    opened.open_accounts(configuration().registry)
    return opened


@pytest.fixture
def store(database: Database, ledger: Ledger) -> ExecutionStore:
    return ExecutionStore(database, ledger, configuration())


def claim(store: ExecutionStore, worker: str = "w") -> ClaimedTask:
    [claimed] = store.claim(DAY, worker, 10, ROOM)
    return claimed


def complete(
    store: ExecutionStore,
    claimed: ClaimedTask,
    result: AttemptResult,
    worker: str = "w",
    delay: float = 0.0,
) -> NextStep | None:
    [step] = store.complete(worker, [Finished(claimed, result, delay)])
    return step


def attempt(
    store: ExecutionStore, result: AttemptResult, worker: str = "w", delay: float = 0.0
) -> NextStep | None:
    return complete(store, claim(store, worker), result, worker, delay)


def standing(database: Database, task: int) -> tuple[Any, ...]:
    [row] = database.fetch("SELECT state, reason, attempts, stage, model FROM tasks WHERE id = %s", [task])
    return row


def executions(database: Database) -> list[tuple[Any, ...]]:
    return database.fetch(
        "SELECT attempt, stage, model, funding, state, reason FROM executions ORDER BY attempt"
    )


def use(ledger: Ledger) -> dict[str, tuple[Decimal, Decimal]]:
    """What is used and what is reserved of the budget and of a window; the windows are always alike."""
    found = {account.account: (account.used, account.pending) for account in ledger.accounts()}
    assert found["plan/5-hour"] == found["plan/weekly"]
    assert ledger.verify().balanced
    return {"USD": found["budget/api"], "tokens": found["plan/weekly"]}


def expire_leases(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET lease_expires_at = now() - interval '1 second' WHERE state = 'running'"
        )


def test_poor_work_escalates_to_the_next_stage_which_any_worker_may_take(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet")
    assert use(ledger) == {"USD": (0, DOLLARS), "tokens": (0, TOKENS / 2)}
    first = claim(store)

    step = complete(store, first, POOR, delay=30.0)

    assert step == NextStep(TaskState.ASSIGNED, Reason.LOW_QUALITY, 0.0, 1)
    assert standing(database, task) == ("assigned", "LOW_QUALITY", 1, 1, "sonnet")
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (0, TOKENS)}
    second = claim(store, "another")
    assert (second.stage, second.model, second.provider, second.funding) == (
        *(1, "sonnet", "anthropic"),
        "subscription:plan",
    )
    assert second.amounts == {"plan/5-hour": TOKENS, "plan/weekly": TOKENS}
    assert (second.attempt, second.decision_attempt) == (2, 2)
    assert (second.decision_id, second.execution) != (first.decision_id, first.execution)
    assert second.decision_id == first.decision_id

    assert complete(store, second, GOOD, "another") == NextStep(TaskState.SUCCEEDED, None)

    assert standing(database, task) == ("succeeded", None, 2, 1, "sonnet")
    assert executions(database) == [
        (1, 0, "nano", "budget:api", "failed", "LOW_QUALITY"),
        (2, 1, "sonnet", "subscription:plan", "succeeded", None),
    ]
    assert database.fetch("SELECT cost_usd, billed_usd FROM executions ORDER BY attempt") == [
        (Decimal("0.02"), Decimal("0.02")),
        (Decimal("0.02"), 0),
    ]
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (12_000, 0)}


def test_work_accepted_at_the_first_stage_gives_the_rest_of_the_plan_back(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet")

    attempt(store, GOOD)

    assert standing(database, task) == ("succeeded", None, 1, 0, "nano")
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (0, 0)}


def test_two_stages_on_one_account_are_each_charged_what_they_used(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, 1, "nano", "mini")
    assert use(ledger)["USD"] == (0, Decimal("0.075"))  # 0.05, and half of 0.05

    attempt(store, replace(POOR, cost_usd=Decimal("0.03")))
    assert use(ledger)["USD"] == (Decimal("0.03"), DOLLARS)
    attempt(store, replace(GOOD, cost_usd=Decimal("0.07")))

    assert use(ledger)["USD"] == (Decimal("0.10"), 0)


def test_the_next_stage_is_not_begun_without_its_quota(database: Database) -> None:
    ledger = Ledger(database)
    tight = configuration(tokens=15_000)  # holds the half that was expected, never the whole
    ledger.open_accounts(tight.registry)
    store = ExecutionStore(database, ledger, tight)
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet")

    step = attempt(store, POOR)

    assert step == NextStep(TaskState.QUEUED, Reason.QUOTA_EXHAUSTED)
    assert standing(database, task) == ("queued", "QUOTA_EXHAUSTED", 1, 0, None)
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (0, 0)}


@pytest.mark.parametrize("failure", [POOR, REFUSED], ids=["poor work", "refused"])
def test_what_the_first_model_would_fail_again_leads_to_the_next_stage(
    database: Database, ledger: Ledger, store: ExecutionStore, failure: AttemptResult
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet", max_attempts=1)

    attempt(store, failure)

    assert standing(database, task) == ("assigned", str(failure.reason), 1, 1, "sonnet")


def test_a_passing_failure_tries_the_same_stage_again_and_keeps_the_rest_of_the_plan(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet")

    assert attempt(store, BUSY) == NextStep(TaskState.ASSIGNED, Reason.RATE_LIMITED, 0.0, 0)
    assert use(ledger) == {"USD": (0, DOLLARS), "tokens": (0, TOKENS / 2)}
    attempt(store, POOR)
    assert attempt(store, BUSY) == NextStep(TaskState.ASSIGNED, Reason.RATE_LIMITED, 0.0, 1)

    assert standing(database, task) == ("assigned", "RATE_LIMITED", 3, 1, "sonnet")
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (0, TOKENS)}
    # three attempts are the task's own, the escalation is not one of them
    assert attempt(store, BUSY) == NextStep(TaskState.DEAD, Reason.ATTEMPTS_EXHAUSTED)
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (0, 0)}


@pytest.mark.parametrize(
    ("max_attempts", "state"), [(1, "failed"), (2, "queued")], ids=["none left", "one left"]
)
def test_poor_work_at_the_last_stage_fails_the_plan(
    database: Database, ledger: Ledger, store: ExecutionStore, max_attempts: int, state: str
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet", max_attempts=max_attempts)

    attempt(store, POOR)
    attempt(store, POOR)

    assert standing(database, task)[:2] == (state, "LOW_QUALITY")
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (12_000, 0)}


def test_three_stages_follow_each_other(database: Database, ledger: Ledger, store: ExecutionStore) -> None:
    add_assigned(database, ledger, 1, "nano", "mini", "sonnet")

    attempt(store, POOR)
    # mini in full, and of sonnet still the half that was expected
    assert use(ledger) == {"USD": (Decimal("0.02"), DOLLARS), "tokens": (0, TOKENS / 2)}
    attempt(store, POOR)
    attempt(store, GOOD)

    assert [row[1:3] for row in executions(database)] == [(0, "nano"), (1, "mini"), (2, "sonnet")]
    assert use(ledger) == {"USD": (Decimal("0.04"), 0), "tokens": (12_000, 0)}


def test_a_stage_whose_worker_died_is_taken_up_at_that_stage(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet")
    attempt(store, POOR)
    claim(store, "killed")
    expire_leases(database)

    store.requeue_expired()

    assert standing(database, task) == ("assigned", "LEASE_EXPIRED", 2, 1, "sonnet")
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (0, TOKENS)}
    again = claim(store)
    assert (again.stage, again.model, again.attempt) == (1, "sonnet", 3)
    complete(store, again, GOOD)
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (12_000, 0)}


def test_a_late_answer_of_an_earlier_stage_is_charged_once_and_changes_nothing(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet")
    late = claim(store, "slow")
    expire_leases(database)
    store.requeue_expired()
    attempt(store, POOR)
    current = claim(store)

    assert complete(store, late, POOR, "slow") is None
    assert complete(store, late, POOR, "slow") is None

    assert standing(database, task) == ("running", None, 3, 1, "sonnet")
    assert use(ledger) == {"USD": (Decimal("0.04"), 0), "tokens": (0, TOKENS)}
    assert complete(store, current, GOOD) == NextStep(TaskState.SUCCEEDED, None)
    assert use(ledger) == {"USD": (Decimal("0.04"), 0), "tokens": (12_000, 0)}


def test_a_stage_whose_model_was_disabled_meanwhile_is_given_to_another(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet")
    attempt(store, POOR)
    config = configuration()
    models = {
        name: model.model_copy(update={"enabled": name != "sonnet"})
        for name, model in config.registry.models.items()
    }
    registry = config.registry.model_copy(update={"models": models})
    without = ExecutionStore(database, ledger, Configuration(registry, config.scoring, config.policies))

    assert without.withdraw(DAY) == 1

    assert standing(database, task) == ("queued", "MODEL_DISABLED", 1, 0, None)
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (0, 0)}
    assign(database, ledger, task, "mini")
    assert (claim(store).stage, claim_count(database)) == (0, 2)


def claim_count(database: Database) -> int:
    [(count,)] = database.fetch("SELECT count(*) FROM executions")
    return int(count)


def test_no_stage_is_begun_past_the_deadline(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet", deadline_in=timedelta(minutes=1))
    claimed = claim(store)
    with database.transaction() as connection:
        connection.execute("UPDATE tasks SET deadline = now() - interval '1 second'")

    complete(store, claimed, POOR)

    assert standing(database, task)[:2] == ("dead", "DEADLINE_PASSED")
    assert use(ledger) == {"USD": (Decimal("0.02"), 0), "tokens": (0, 0)}


def test_the_next_stage_sees_the_earlier_work_only_where_the_policy_says_so(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    add_assigned(database, ledger, 2, "nano", "sonnet")
    for claimed in store.claim(DAY, "w", 10, ROOM):
        assert claimed.earlier_work is None
        complete(store, claimed, POOR)
    generous = ExecutionStore(database, ledger, configuration(hand_on_work=True))

    [plain] = store.claim(DAY, "w", 1, ROOM)
    [informed] = generous.claim(DAY, "w", 1, ROOM)

    assert (plain.earlier_work, informed.earlier_work) == (None, "a first try")


def test_evidence_on_an_earlier_stage_corrects_its_quality_and_nothing_else(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet", task_id="web-7")
    attempt(store, POOR)
    attempt(store, GOOD)

    rescored = FeedbackStore(database, 6.0).record(
        "web-7", Report(source=Source.CI, tests_passed=5, tests_failed=0), by="ci", attempt=1
    )

    assert (rescored.model, rescored.quality_before, rescored.quality_after) == ("nano", 2.0, 10.0)
    assert standing(database, task)[0] == "succeeded"
    assert executions(database)[0][4:] == ("failed", "LOW_QUALITY")


def test_evidence_against_the_last_stage_moves_the_task(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    [task] = add_assigned(database, ledger, 1, "nano", "sonnet", task_id="web-7")
    attempt(store, POOR)
    attempt(store, GOOD)

    FeedbackStore(database, 6.0).record(
        "web-7", Report(source=Source.CI, tests_passed=0, tests_failed=5), by="ci"
    )

    assert standing(database, task)[:2] == ("failed", "LOW_QUALITY")
    assert executions(database)[1][4:] == ("failed", "LOW_QUALITY")


def test_a_task_that_is_assigned_anew_begins_at_the_first_stage(
    database: Database, ledger: Ledger, store: ExecutionStore
) -> None:
    task = add_task(database)
    assign(database, ledger, task, "nano", "sonnet")
    attempt(store, POOR)
    attempt(store, POOR)
    assert standing(database, task)[3:] == (0, None)

    assign(database, ledger, task, "mini", "sonnet")

    third = claim(store)
    assert (third.stage, third.model, third.attempt, third.decision_attempt) == (0, "mini", 3, 1)
    complete(store, third, GOOD)
    assert use(ledger) == {"USD": (Decimal("0.04"), 0), "tokens": (12_000, 0)}
