"""The platform: `ExecutionStore.claim` and `complete`, as a worker calls them, without the call to a model between."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from multiprocessing.synchronize import Barrier
from uuid import UUID

import psycopg

from cp_core.assignment.decision import reservation_key
from cp_core.execution.cost import Usage
from cp_core.execution.outcome import AttemptResult
from cp_core.models.registry import ModelRegistry
from cp_core.policy.policies import Policies
from cp_core.scoring.config import Domain, ScoringConfig
from cp_resources import migrate
from cp_resources.configuration import Configuration, load_file
from cp_resources.database import Database
from cp_resources.executions import ExecutionStore, Finished
from cp_resources.ledger import Ledger, Reservation
from cp_resources.settings import PROJECT_ROOT

BATCH = 100
DAY = date(2026, 3, 4)
MODELS = ("one", "two", "three", "four")
RESERVED = Decimal("0.05")
COST = Decimal("0.04")
ACCOUNT = "budget/all"
_CHUNK = 5_000

_TASKS = """
INSERT INTO cp.tasks (task_id, submitted_at, priority, workspace, value_score)
SELECT 'T-' || n, %(noon)s, n %% 5, 'acme/web', (n * 7919) %% 100
FROM generate_series(1, %(tasks)s) AS n
"""

_PAYLOADS = """
INSERT INTO cp.task_payloads (task, title, description, labels)
SELECT id, 'Mend the button', repeat('It does nothing when it is pressed. ', 20), '{bug}' FROM cp.tasks
"""

_SCORES = """
INSERT INTO cp.task_scores
    (task, submission_day, files, lines, size_source, complexity, complexity_factor, priority_points, time_bonus,
     time_bonus_reason, domain, domain_factor, domain_source, risk, risk_factor, score, input_mean, input_median,
     input_low, input_high, output_mean, output_median, output_low, output_high, config_hash)
SELECT id, submission_day, 1, 1, 'given', 'simple', 1, 1, 0, 'none', 'backend', 1, 'default', 'development', 1,
       value_score, 20000, 20000, 10000, 40000, 2000, 2000, 1000, 4000, 'benchmark'
FROM cp.tasks
"""

_ASSIGNMENTS = """
INSERT INTO cp.assignments (decision_id, task, submission_day, strategy, outcome, model, funding, plan,
                            explanation, config_hash)
SELECT gen_random_uuid(), id, submission_day, 'tiered', 'assigned', model, 'budget:all',
       jsonb_build_array(jsonb_build_object('model', model, 'funding', 'budget:all',
                                            'amounts', jsonb_build_object(%(account)s::text, %(reserved)s::text))),
       '{}', 'benchmark'
FROM (SELECT id, submission_day, (%(models)s::text[])[1 + id %% cardinality(%(models)s::text[])] AS model
      FROM cp.tasks) AS task
"""

_ASSIGN = """
UPDATE cp.tasks SET state = 'assigned', assignment = a.id, model = a.model
FROM cp.assignments AS a WHERE a.task = tasks.id
"""


def configuration() -> Configuration:
    """Four models of one provider, paid from one budget: all completions of all workers meet at its account."""
    model = {
        "provider": "local",
        "tier": "budget",
        "family": "local",
        "input_usd_per_million": 1,
        "output_usd_per_million": 4,
        "context_window": 200_000,
        "max_output_tokens": 50_000,
        "capability": dict.fromkeys(Domain, 0.8),
        "max_concurrency": 1_000,
    }
    registry = {
        "providers": {
            "local": {"wire": "openai-chat", "base_url": "http://127.0.0.1:1/v1", "api_key_env": "LOCAL_KEY"}
        },
        "models": {name: {**model, "api_name": name} for name in MODELS},
        "budgets": {"all": {"window": "monthly", "usd": 10**9}},
    }
    return Configuration(
        registry=ModelRegistry.model_validate(registry),
        scoring=load_file(PROJECT_ROOT / "config" / "scoring.yaml", ScoringConfig),
        policies=Policies(),
    )


def prepare(url: str, tasks: int) -> None:
    """A migrated database with assigned tasks, each with its reservation."""
    migrate.upgrade(url)
    database = Database(url)
    ledger = Ledger(database)
    ledger.open_accounts(configuration().registry)
    with database.transaction() as connection:
        connection.execute(_TASKS, {"noon": datetime(2026, 3, 4, 12, tzinfo=UTC), "tasks": tasks})
        connection.execute(_PAYLOADS)
        connection.execute(_SCORES)
        connection.execute(
            _ASSIGNMENTS, {"models": list(MODELS), "account": ACCOUNT, "reserved": str(RESERVED)}
        )
        connection.execute(_ASSIGN)
        decided = connection.execute("SELECT decision_id, task FROM cp.assignments").fetchall()
    for start in range(0, len(decided), _CHUNK):
        _reserve(database, ledger, decided[start : start + _CHUNK])
    database.close()
    _vacuum(url)


def _reserve(database: Database, ledger: Ledger, decided: list[tuple[UUID, int]]) -> None:
    reservations = [
        Reservation(reservation_key(decision, 1), {ACCOUNT: RESERVED}, task) for decision, task in decided
    ]
    with database.transaction() as connection:
        if not all(ledger.reserve(connection, reservations, expires_in=timedelta(hours=6))):
            raise SystemExit("the budget does not suffice for the benchmark")


def _vacuum(url: str) -> None:
    """Leave no dead rows of the preparation behind, as hours of real life would not."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")


def drain(url: str, worker: int, start: Barrier) -> tuple[int, float]:
    """Claim and complete batches until none is left."""
    database = Database(url, max_connections=1)
    store = ExecutionStore(database, Ledger(database), configuration())
    name, slots = f"worker-{worker}", dict.fromkeys(MODELS, BATCH)
    store.open_tasks(DAY)  # connects
    start.wait()
    done = 0
    while claimed := store.claim(DAY, name, BATCH, slots):
        steps = store.complete(name, [Finished(task, _RESULT) for task in claimed])
        done += sum(step is not None for step in steps)
    ended = time.time()
    database.close()
    return done, ended


_RESULT = AttemptResult(
    None,
    Usage(input_tokens=20_000, output_tokens=2_000),
    COST,
    quality=8.0,
    evidence={"schema_valid": True},
    output="Done: the button listens again.",
    http_status=200,
    request_id="req_1",
    latency_ms=900.0,
)
