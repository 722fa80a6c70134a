"""A database filled with outcomes: some tasks scored and decided as in production, then copied over many days.

The tasks are those of `benchmarks.scoring`; scores, decisions with their explanations, batches and reservations are
made by the platform's own code under `maximize_value`. Copies of them lie on every day of the window that learning
looks at, each with attempts of its own: models succeed more and less often, tokens are log-normal around what was
expected, some attempts are cut off, some are failures of the provider, and bad work is tried again by another model.
Forty days ago the version of a model changed. Every attempt has a reservation and its settlement in the ledger, the
tasks of the latest fortnight take part in an experiment, and some scores were overridden by people.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import date
from typing import LiteralString

import psycopg
from psycopg import sql

from benchmarks.pipeline import lay_in_queue, with_quota_for
from benchmarks.scoring import made_up_tasks
from cp_core.assignment.strategies import Strategy
from cp_core.learning.experiments.definition import ExperimentDefinition
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.experiments import Experiments
from cp_resources.ledger import Ledger
from cp_resources.scores import ScoreStore

DAYS = 60
COPIES_A_DAY = 2
ATTEMPTS_A_TASK = 1.2
_EXPERIMENT = ExperimentDefinition.model_validate(
    {
        "experiment": "more-exploration",
        "hypothesis": "Exploring more does no harm.",
        "arms": [{"name": "control"}, {"name": "more", "overrides": {"policies.exploration.rate": 0.1}}],
        "metrics": [{"measure": "success"}, {"measure": "cost_usd", "role": "guardrail"}],
        "planned_units_per_arm": 50_000,
    }
)


def in_force() -> Configuration:
    """What tasks are decided by: the shipped files with quota for some thousand tasks a day, under a strategy."""
    return with_quota_for(Strategy.MAXIMIZE_VALUE, 20_000)


def fill(database: Database, outcomes: int) -> date:
    """Make about so many outcomes; the last day of them."""
    originals = round(outcomes / (DAYS * COPIES_A_DAY * ATTEMPTS_A_TASK))
    configuration = in_force()
    day = lay_in_queue(database, made_up_tasks(random.Random(20240607)).iloc[:originals])
    ScoreStore(database).score_day(day, configuration)
    Assigner(database, Ledger(database), configuration).assign_day(day)
    Experiments(database).create(_EXPERIMENT, "benchmark")
    Experiments(database).start(_EXPERIMENT.experiment, configuration, "benchmark")
    with database.transaction() as connection:
        connection.execute(
            "SET LOCAL session_replication_role = replica"
        )  # no keys or triggers: the rows fit
        connection.execute("SELECT setseed(0.7)")
        _declare_models(connection, configuration)
        for copy in range(1, DAYS * COPIES_A_DAY):
            _copy_tasks(connection, copy * originals, copy // COPIES_A_DAY, originals, day)
        for statement in (
            _OLDER_VERSION,
            _ATTEMPTS,
            _SECOND_ATTEMPTS,
            _ENDED,
            _LEDGER,
            _OVERRIDES,
            _STARTED,
            _EXPOSED,
        ):
            connection.execute(statement, {"day": day})
        for table in ("tasks", "assignments"):
            connection.execute(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))")  # type: ignore[call-overload]
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    return day


def _copy_tasks(connection: psycopg.Connection, shift: int, days_ago: int, originals: int, day: date) -> None:
    """Tasks with payload, score and decision once more, `days_ago` days earlier."""
    then = f"submission_day - {days_ago}"
    changed: dict[str, Mapping[str, str]] = {
        "tasks": {
            "id": f"id + {shift}",
            "task_id": f"task_id || '+{shift}'",
            "submitted_at": f"submitted_at - {days_ago} * interval '1 day'",
            "assignment": f"assignment + {shift}",
        },
        "task_payloads": {"task": f"task + {shift}"},
        "task_scores": {"task": f"task + {shift}", "submission_day": then},
        "assignments": {
            "id": f"id + {shift}",
            "task": f"task + {shift}",
            "submission_day": then,
            "decision_id": "gen_random_uuid()",
            "decided_at": f"decided_at - {days_ago} * interval '1 day'",
        },
    }
    for table, changes in changed.items():
        names = [name for (name,) in connection.execute(_COLUMNS, [table]).fetchall()]
        key = "id" if table == "tasks" else "task"
        connection.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} WHERE {} <= {}").format(
                sql.Identifier(table),
                sql.SQL(", ").join(map(sql.Identifier, names)),
                sql.SQL(", ").join(sql.SQL(changes.get(name, f'"{name}"')) for name in names),  # type: ignore[arg-type]
                sql.Identifier(table),
                sql.Identifier(key),
                sql.Literal(originals),
            )
        )


def _declare_models(connection: psycopg.Connection, configuration: Configuration) -> None:
    """Temporary table of models: a number, names, prices, and how often each succeeds at simple work."""
    connection.execute(
        "CREATE TEMPORARY TABLE declared (number int, model text, provider text, input numeric, output numeric, "
        "success float8) ON COMMIT DROP"
    )
    for number, (name, model) in enumerate(sorted(configuration.registry.models.items())):
        prices = [model.input_usd_per_million, model.output_usd_per_million]
        connection.execute(
            "INSERT INTO declared VALUES (%s, %s, %s, %s, %s, %s)",
            [number, name, model.provider, *prices, 0.95 - 0.3 * number / len(configuration.registry.models)],
        )


_COLUMNS: LiteralString = """
    SELECT column_name FROM information_schema.columns
    WHERE table_schema = 'cp' AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position
"""

_OLDER_VERSION: LiteralString = """
    WITH older AS (
        INSERT INTO config_versions (config_hash, content)
        SELECT md5(config_hash) || md5(config_hash || 'older'), jsonb_set(content, ARRAY['models', 'models', (
            SELECT model FROM declared WHERE number = 0), 'api_name'], '"older"')
        FROM config_versions WHERE config_hash = (SELECT config_hash FROM assignments LIMIT 1)
        RETURNING config_hash
    )
    UPDATE assignments SET config_hash = older.config_hash FROM older
    WHERE submission_day < %(day)s::date - 40
"""

# On the latest days what was decided is done; on days before, all models have had their share of all kinds of tasks.
_ATTEMPTS: LiteralString = """
    WITH drawn AS MATERIALIZED (
        SELECT a.id, a.task, a.submission_day, a.model, a.funding, a.decided_at, s.complexity, s.domain, s.input_mean,
            s.output_mean, random() AS chance, random() AS kind, random() AS cut,
            floor(random() * (SELECT count(*) FROM declared))::int AS number, random_normal() AS input,
            random_normal() AS output, random_normal() AS seconds
        FROM assignments a JOIN task_scores s ON s.task = a.task WHERE a.outcome = 'assigned'
    ), made AS (
        SELECT drawn.*, d.model AS made_by, d.provider, d.input AS input_price, d.output AS output_price,
            CASE
                WHEN chance < d.success - 0.07 * array_position(
                    ARRAY['simple', 'moderate', 'complex', 'highly_complex'], complexity) + 0.02 * (
                    (d.number * 7 + length(domain)) %% 5) THEN NULL
                WHEN kind < 0.7 THEN 'LOW_QUALITY' WHEN kind < 0.85 THEN 'TIMEOUT' WHEN kind < 0.95 THEN 'RATE_LIMITED'
                ELSE 'REFUSED'
            END AS reason
        FROM drawn JOIN declared d ON CASE WHEN submission_day > %(day)s::date - 2 THEN d.model = drawn.model
            ELSE d.number = drawn.number END
    ), used AS (
        SELECT made.*, round(input_mean * 0.9 * exp(0.4 * input) * part)::bigint AS input_tokens,
            round(output_mean * 0.8 * exp(0.5 * output) * part)::bigint AS output_tokens
        FROM made CROSS JOIN LATERAL (
            SELECT CASE reason WHEN 'TIMEOUT' THEN cut WHEN 'RATE_LIMITED' THEN 0 ELSE 1 END AS part) AS ended
    )
    INSERT INTO executions (task, assignment, submission_day, attempt, stage, model, provider, funding, worker, state,
        reason, input_tokens, cached_tokens, output_tokens, cost_usd, billed_usd, latency_ms, quality, started_at,
        finished_at)
    SELECT task, id, submission_day, 1, 0, made_by, provider, funding, 'benchmark',
        CASE WHEN reason IS NULL THEN 'succeeded' ELSE 'failed' END, reason, input_tokens, input_tokens / 4,
        output_tokens, (input_tokens * input_price + output_tokens * output_price) / 1000000, 0,
        exp(9 + 0.7 * seconds),
        CASE WHEN reason IS NULL THEN 6 + 4 * kind WHEN reason = 'LOW_QUALITY' THEN 6 * kind END,
        decided_at + interval '5 s', decided_at + interval '65 s'
    FROM used ORDER BY submission_day, id
"""
_SECOND_ATTEMPTS: LiteralString = """
    INSERT INTO executions (task, assignment, submission_day, attempt, stage, model, provider, funding, worker, state,
        reason, input_tokens, cached_tokens, output_tokens, cost_usd, billed_usd, latency_ms, quality, started_at,
        finished_at)
    SELECT e.task, e.assignment, e.submission_day, 2, 1, d.model, d.provider, e.funding, 'benchmark', 'succeeded', NULL,
        e.input_tokens, 0, e.output_tokens, (e.input_tokens * d.input + e.output_tokens * d.output) / 1000000, 0,
        e.latency_ms * 1.1, 8, e.started_at + interval '70 s', e.finished_at + interval '80 s'
    FROM executions e JOIN declared mine ON mine.model = e.model
    JOIN declared d ON d.number = (mine.number + 1) %% (SELECT count(*) FROM declared)
    WHERE e.reason = 'LOW_QUALITY'
"""
_ENDED: LiteralString = """
    UPDATE tasks SET state = CASE WHEN ended.well THEN 'succeeded' ELSE 'failed' END, attempts = ended.attempts,
        state_changed_at = ended.at
    FROM (
        SELECT task, bool_or(state = 'succeeded') AS well, count(*) AS attempts, max(finished_at) AS at
        FROM executions GROUP BY task
    ) AS ended WHERE ended.task = tasks.id
"""
_LEDGER: LiteralString = """
    WITH reserved AS MATERIALIZED (
        SELECT task, debit_account, credit_account, amount FROM quota_transfers WHERE phase = 'pending'
    ), settled AS MATERIALIZED (
        SELECT gen_random_uuid() AS pending, gen_random_uuid() AS reservation, e.task, e.started_at, e.finished_at,
            r.debit_account, r.credit_account, r.amount
        FROM executions e JOIN reserved r ON r.task = 1 + (e.task - 1) %% (SELECT max(task) FROM reserved)
        WHERE e.task > (SELECT max(task) FROM reserved) OR e.attempt > 1
    ), pended AS (
        INSERT INTO quota_transfers (transfer_id, phase, reservation, debit_account, credit_account, amount, code, task,
            expires_at, created_at)
        SELECT pending, 'pending', reservation, debit_account, credit_account, amount, 'use', task,
            started_at + interval '1 hour', started_at FROM settled
    )
    INSERT INTO quota_transfers (transfer_id, phase, pending_id, reservation, debit_account, credit_account, amount,
        code, task, created_at)
    SELECT gen_random_uuid(), 'post', pending, reservation, debit_account, credit_account, amount * 0.8, 'use', task,
        finished_at FROM settled
"""
_OVERRIDES: LiteralString = """
    UPDATE task_scores SET override_score = least(score * 1.2, 100), override_reason = 'worth more', override_by = 'ann'
    WHERE task %% 500 = 0 AND score > 0
"""
_STARTED: LiteralString = "UPDATE experiments SET started_at = %(day)s::date - 13"
_EXPOSED: LiteralString = """
    INSERT INTO exposures (experiment, unit, arm, exposed_at)
    SELECT experiment, task_id, CASE WHEN hashtext(task_id) %% 2 = 0 THEN 'control' ELSE 'more' END, submitted_at
    FROM tasks CROSS JOIN experiments WHERE submission_day > %(day)s::date - 13
"""
