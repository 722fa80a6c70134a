"""The floor that the queue is compared with does the platform's work: both leave the same rows behind."""

from __future__ import annotations

from decimal import Decimal
from threading import Barrier
from typing import Any

import pytest

from benchmarks.queue_cases import floor, platform
from cp_resources.database import Database
from cp_resources.ledger import Ledger

TASKS = 130
"""One full batch, and a part of another."""


@pytest.mark.parametrize("case", [platform, floor], ids=["platform", "floor"])
def test_a_drained_queue_leaves_tasks_executions_posts_and_notices(
    case: Any, empty_database_url: str
) -> None:
    case.prepare(empty_database_url, TASKS)
    done, _ = case.drain(empty_database_url, 0, Barrier(1))
    database = Database(empty_database_url)
    found = database.fetch(
        """SELECT (SELECT array_agg(DISTINCT (state, attempts, lease_owner)::text) FROM tasks),
                  (SELECT array_agg(DISTINCT (state, attempt, output_tokens, quality)::text) FROM executions),
                  (SELECT count(*) FROM executions),
                  (SELECT array_agg(DISTINCT kind) FROM outbox), (SELECT count(*) FROM outbox),
                  (SELECT count(*) FROM quota_transfers WHERE phase = 'post'),
                  (SELECT sum(amount) FROM quota_transfers WHERE phase = 'post')"""
    )
    assert done == TASKS
    assert found == [
        (["(succeeded,1,)"], ["(succeeded,1,2000,8)"], TASKS, ["completed"], TASKS, TASKS, Decimal("5.2"))
    ]
    assert Ledger(database).verify().balanced
    database.close()
