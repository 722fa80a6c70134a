"""A worker process that drains a day as the asset execution_outcomes does, and what can be wrong with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cp_core.assignment.exploration import ExplorationPolicy
from cp_core.assignment.plans import PlanPolicy
from cp_core.assignment.policy import AssignmentPolicy, Band
from cp_core.assignment.strategies import Strategy
from cp_core.execution.breaker import BreakerPolicy
from cp_core.execution.policy import ExecutionPolicy
from cp_core.models.registry import Tier
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore
from cp_resources.ledger import Ledger
from cp_resources.scores import ScoreStore
from cp_resources.settings import PROJECT_ROOT, Settings
from cp_resources.worker import drain

_DEMANDS = ((20.0, 0.995), (0.0, 0.9))
"""Success that is asked for, by value."""


@dataclass(frozen=True)
class Orders:
    """What a worker is told.

    Attributes:
        execution: what differs from the default of `ExecutionPolicy`.
        log: file that takes its output.
        clock_off_by: seconds by which its wall clock is wrong.
        silent_seconds: see `Database`.
        twice: whatever it records, and every sweep, it sends to the database twice.
        staged: see `shipped_configuration`.
        assigns: whether it has what came back assigned again.
    """

    database_url: str
    simulator_url: str
    day: date
    log: Path
    execution: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 120.0
    clock_off_by: float = 0.0
    silent_seconds: float = 2.0
    twice: bool = False
    staged: bool = False
    assigns: bool = True


def shipped_configuration(execution: Mapping[str, Any], *, staged: bool = False) -> Configuration:
    """The shipped models and rules, with an execution policy of the test's, and breakers that try again soon.

    Args:
        staged: ask so much that no model is enough alone: every plan has two stages or three.
    """
    shipped = load_configuration(PROJECT_ROOT / "config")
    changes: dict[str, BaseModel] = {
        "execution": ExecutionPolicy(**execution),
        "breaker": BreakerPolicy(cool_down_seconds=0.1, cool_down_cap_seconds=0.2, trials=8),
    }
    if staged:
        bands = [Band(at_least=least, tiers=list(Tier), required_success=ask) for least, ask in _DEMANDS]
        changes["assignment"] = AssignmentPolicy(strategy=Strategy.MINIMIZE_COST, bands=bands)
        changes["plans"] = PlanPolicy(most_stages=3)
        changes["exploration"] = ExplorationPolicy(rate=0)
    policies = shipped.policies.model_copy(update=changes)
    return replace(shipped, policies=policies)


def work(orders: Orders) -> None:
    """Drain the day; the process ends with 0 when the drain ends by itself."""
    _speak_into(orders.log)
    _spoil(orders)
    configuration = shipped_configuration(orders.execution, staged=orders.staged)
    database = Database(orders.database_url, silent_seconds=orders.silent_seconds)
    ledger = Ledger(database)
    assigner = Assigner(database, ledger, configuration)

    def assign_again() -> None:
        ScoreStore(database).score_day(orders.day, configuration)
        assigner.assign_day(orders.day)

    drain(
        database,
        ledger,
        configuration,
        _settings(orders),
        orders.day,
        worker_name="worker",
        time_budget=timedelta(seconds=orders.seconds),
        assign_again=assign_again if orders.assigns else None,
    )
    database.close()


def run_process_queue(orders: Orders) -> None:
    """One run of the whole job for the day."""
    _speak_into(orders.log)
    from dagster import DagsterInstance

    from cp_definitions import build_defs

    definitions = build_defs(
        database=Database(orders.database_url),
        settings=_settings(orders),
        configuration=shipped_configuration(orders.execution, staged=orders.staged),
    )
    with DagsterInstance.ephemeral() as instance:
        definitions.resolve_job_def("process_queue").execute_in_process(
            partition_key=orders.day.isoformat(), instance=instance
        )


def _settings(orders: Orders) -> Settings:
    return Settings(simulator_url=orders.simulator_url, home=orders.log.parent / "home")


def _speak_into(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _spoil(orders: Orders) -> None:
    if orders.clock_off_by:
        right = time.time
        time.time = lambda: right() + orders.clock_off_by
    if orders.twice:
        for name in ("complete", "release", "abandon", "requeue_expired", "withdraw"):
            setattr(ExecutionStore, name, _twice(getattr(ExecutionStore, name)))


def _twice(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        first = method(*args)
        method(*args)
        return first

    return call
