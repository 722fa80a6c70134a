"""The tables of schema `cp`: the single description that migrations, stores and tests share.

Conventions: tokens are BIGINT, money is NUMERIC US dollars, times are timestamptz, `task` columns hold the
internal `tasks.id`. Queue rows are narrow; what only one step reads lives in `task_payloads`.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from cp_core.execution.breaker import BreakerState
from cp_core.tasks.states import FINAL_STATES, TaskState

SCHEMA = "cp"
metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    },
)


def _one_of(column: str, values: list[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in sorted(values))})"


def _timestamp(name: str, *, nullable: bool = False, default_now: bool = False) -> Column[datetime]:
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable,
        server_default=text("now()") if default_now else None,
    )


tasks = Table(
    "tasks",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("task_id", Text, nullable=False, unique=True),
    Column("idempotency_key", Text, unique=True),
    _timestamp("submitted_at", default_now=True),
    Column(
        "submission_day",
        Date,
        Computed("(timezone('UTC', submitted_at))::date", persisted=True),
        nullable=False,
        comment="UTC day of submission: the partition key of every asset up to the outcome",
    ),
    Column("state", Text, nullable=False, server_default=TaskState.QUEUED.value),
    Column("priority", SmallInteger, nullable=False, comment="0 (P0, most urgent) to 4"),
    Column("workspace", Text, nullable=False),
    _timestamp("deadline", nullable=True),
    Column("dependencies", ARRAY(Text), comment="task_ids that must have succeeded before this one runs"),
    Column(
        "value_score",
        Double,
        comment="effective value score, once decided or overridden: the order of claims",
    ),
    Column("assignment", BigInteger, comment="current row of assignments"),
    Column("model", Text, comment="model of the current stage of the current assignment"),
    Column(
        "stage",
        SmallInteger,
        nullable=False,
        server_default=text("0"),
        comment="where the current assignment's plan stands, from 0",
    ),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("max_attempts", SmallInteger, nullable=False, server_default=text("3")),
    Column(
        "assignment_attempts_left",
        SmallInteger,
        nullable=False,
        server_default=text("3"),
        comment="how often assignment itself may still fail for a passing reason",
    ),
    _timestamp("available_at", default_now=True),
    Column("lease_owner", Text),
    _timestamp("lease_expires_at", nullable=True),
    Column("reason", Text, comment="why the task was deferred, retried or ended"),
    _timestamp("state_changed_at", default_now=True),
    Column(
        "cancellation",
        BigInteger,
        ForeignKey("cp.cancellations.id"),
        comment="who called it off; of a running task: a request that its worker has yet to follow",
    ),
    CheckConstraint(_one_of("state", list(TaskState)), name="state"),
    CheckConstraint("priority BETWEEN 0 AND 4", name="priority"),
    CheckConstraint("attempts >= 0 AND max_attempts >= 1", name="attempts"),
    CheckConstraint("stage BETWEEN 0 AND 2", name="stage"),
    CheckConstraint(
        "(state = 'running') = (lease_owner IS NOT NULL) AND (lease_owner IS NULL) = (lease_expires_at IS NULL)",
        name="lease",
    ),
    CheckConstraint("state NOT IN ('assigned', 'running') OR assignment IS NOT NULL", name="assigned"),
    CheckConstraint(
        "cancellation IS NULL OR state NOT IN ('queued', 'deferred', 'assigned')", name="cancellation"
    ),
    Index(
        "ix_tasks_open",
        "submission_day",
        "state",
        postgresql_where=text(_one_of("state", [s for s in TaskState if s not in FINAL_STATES])),
    ),
    # In the order of claims: see execution_queries.RANK.
    Index(
        "ix_tasks_claimable",
        "submission_day",
        "model",
        text("(value_score - date_part('epoch', timezone('UTC', submitted_at)) / 600) DESC"),
        "id",
        postgresql_where=text("state = 'assigned'"),
    ),
    Index("ix_tasks_leases", "lease_expires_at", postgresql_where=text("state = 'running'")),
    Index(
        "ix_tasks_called_off",
        "lease_owner",
        postgresql_where=text("state = 'running' AND cancellation IS NOT NULL"),
    ),
    Index("ix_tasks_submission_day", "submission_day"),
)

cancellations = Table(
    "cancellations",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    _timestamp("requested_at", default_now=True),
    Column("requested_by", Text, nullable=False, comment="login name, or whoever was named"),
    Column("reason", Text, nullable=False),
    Column("selection", JSONB, nullable=False, comment="tasks, day, batch, run, model; empty: everything"),
)

drains = Table(
    "drains",
    metadata,
    Column("worker", Text, primary_key=True, comment="lease owner"),
    Column("run_id", Text, comment="Dagster run that drains"),
    Column("submission_day", Date, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    _timestamp("started_at", default_now=True),
    _timestamp("heartbeat_at", default_now=True),
    _timestamp("ended_at", nullable=True),
    Column("ended", Text, comment="why: drained, waiting, time budget, stopped or failed"),
    Column("held", Integer, nullable=False, server_default=text("0"), comment="tasks under its leases"),
    Column("attempts", BigInteger, nullable=False, server_default=text("0")),
    Column("succeeded", BigInteger, nullable=False, server_default=text("0"), comment="tasks"),
    Column("failed", BigInteger, nullable=False, server_default=text("0"), comment="tasks, dead ones too"),
    Column("cancelled", BigInteger, nullable=False, server_default=text("0"), comment="tasks"),
    Column("late", BigInteger, nullable=False, server_default=text("0"), comment="attempts"),
    Column("input_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("cost_usd", Numeric(18, 9), nullable=False, server_default=text("0")),
    CheckConstraint("(ended IS NULL) = (ended_at IS NULL)", name="ended"),
    Index("ix_drains_started_at", "started_at"),
    Index("ix_drains_under_way", "submission_day", postgresql_where=text("ended_at IS NULL")),
)

task_payloads = Table(
    "task_payloads",
    metadata,
    Column(
        "task",
        BigInteger,
        ForeignKey("cp.tasks.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("title", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("labels", ARRAY(Text), nullable=False),
    Column("estimated_files", Integer),
    Column("estimated_lines", Integer),
    Column("workspace_files", Integer, comment="number of files in the workspace, where known"),
    Column("extra", JSONB, comment="what else the submitter sent; never read by a rule"),
)

task_scores = Table(
    "task_scores",
    metadata,
    Column(
        "task",
        BigInteger,
        ForeignKey("cp.tasks.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("submission_day", Date, nullable=False),
    Column("files", Integer, nullable=False),
    Column("lines", Integer, nullable=False),
    Column("size_source", Text, nullable=False, comment="given, or estimated from the text"),
    Column("complexity", Text, nullable=False),
    Column("complexity_factor", Double, nullable=False),
    Column("priority_points", Double, nullable=False),
    Column("time_bonus", Double, nullable=False),
    Column("time_bonus_reason", Text, nullable=False),
    Column("domain", Text, nullable=False),
    Column("domain_factor", Double, nullable=False),
    Column("domain_source", Text, nullable=False, comment="labels, paths, workspace or default"),
    Column("risk", Text, nullable=False),
    Column("risk_factor", Double, nullable=False),
    Column("score", Double, nullable=False),
    Column("override_score", Double),
    Column("override_reason", Text),
    Column("override_by", Text),
    Column(
        "effective_score", Double, Computed("coalesce(override_score, score)", persisted=True), nullable=False
    ),
    Column("input_mean", Double, nullable=False, comment="expected input tokens; what a quota plan uses"),
    Column("input_median", Double, nullable=False),
    Column("input_low", Double, nullable=False, comment="10th percentile: lower end of the 80 % interval"),
    Column("input_high", Double, nullable=False, comment="90th percentile: upper end of the 80 % interval"),
    Column("output_mean", Double, nullable=False),
    Column("output_median", Double, nullable=False),
    Column("output_low", Double, nullable=False),
    Column("output_high", Double, nullable=False),
    Column("traits", ARRAY(REAL), comment="what the trait model saw in the text; null: none was in force"),
    Column("trait_model", Text, comment="hash of the artifact that saw the traits"),
    Column("config_hash", Text, nullable=False),
    _timestamp("scored_at", default_now=True),
    CheckConstraint("score BETWEEN 0 AND 100", name="score"),
    CheckConstraint("override_score BETWEEN 0 AND 100", name="override_score"),
    CheckConstraint("(override_score IS NULL) = (override_reason IS NULL)", name="override_reason"),
    CheckConstraint("(traits IS NULL) = (trait_model IS NULL)", name="traits"),
    Index("ix_task_scores_submission_day", "submission_day"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column(
        "decision_id",
        UUID(as_uuid=True),
        nullable=False,
        unique=True,
        comment="idempotency key of the decision, and of the reservation for its first attempt",
    ),
    Column("task", BigInteger, ForeignKey("cp.tasks.id", ondelete="CASCADE"), nullable=False),
    Column("submission_day", Date, nullable=False),
    _timestamp("decided_at", default_now=True),
    Column("strategy", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, comment="reason code when nothing was assigned"),
    Column("model", Text, comment="model of the plan's first stage"),
    Column("funding", Text, comment="what pays for it: subscription:NAME or budget:NAME"),
    Column("plan", JSONB, comment="stages in order: model, funding and the amounts each reserves by account"),
    Column("expected_cost_usd", Numeric(18, 9)),
    Column("explanation", JSONB, nullable=False, comment="all of it, or what its figures do not say"),
    Column("figures", ARRAY(Double), comment="numbers of the explanation, spelled out by the batch's legend"),
    Column("config_hash", Text, nullable=False),
    Column("run_id", Text, comment="Dagster run that decided"),
    Column(
        "path",
        Text,
        nullable=False,
        server_default="batch",
        comment="which way decided: batch, inline or stress",
    ),
    Column(
        "batch",
        UUID(as_uuid=True),
        comment="row of assignment_batches that it was decided in, or took prices of",
    ),
    Column(
        "propensity", Double, comment="probability with which exploration drew this plan; null: not known"
    ),
    CheckConstraint("path IN ('batch', 'inline', 'stress')", name="path"),
    CheckConstraint("propensity > 0 AND propensity <= 1", name="propensity"),
    CheckConstraint("outcome IN ('assigned', 'deferred', 'rejected')", name="outcome"),
    CheckConstraint("(outcome = 'assigned') = (model IS NOT NULL)", name="model"),
    CheckConstraint("(outcome = 'assigned') = (reason IS NULL)", name="reason"),
    Index("ix_assignments_task", "task"),
    Index("ix_assignments_submission_day", "submission_day"),
)

assignment_batches = Table(
    "assignment_batches",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("submission_day", Date, comment="day that was assigned; null when several were"),
    _timestamp("decided_at", default_now=True),
    Column("strategy", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("started_from", UUID(as_uuid=True), comment="batch at whose prices the solver started"),
    Column("tasks", Integer, nullable=False),
    Column("assigned", Integer, nullable=False),
    Column("objective", Double, nullable=False, comment="worth of the assignment, value points"),
    Column("bound", Double, nullable=False, comment="no assignment of the batch is worth more"),
    Column("gap", Double, nullable=False, comment="fraction of the bound that was not reached"),
    Column("evaluations", Integer, nullable=False, comment="passes of the solver over the batch"),
    Column("seconds", Double, nullable=False),
    Column("prices", JSONB, nullable=False, comment="value points of one more unit, by account"),
    Column("quotes", JSONB, comment="prices for tasks decided alone until the next round, by account"),
    Column("available", JSONB, nullable=False, comment="what each account held before, by account"),
    Column("lapsing", JSONB, nullable=False, comment="how near each account's window was to its end, 0 to 1"),
    Column("forecast", JSONB, nullable=False, comment="what the assignment is expected to come to"),
    Column("alternatives", JSONB, nullable=False, comment="what other strategies were expected to come to"),
    Column("pruned", JSONB, nullable=False, comment="pairs of task and plan ruled out, by reason"),
    Column("considered", BigInteger, nullable=False, comment="pairs of task and plan"),
    Column(
        "legend",
        JSONB,
        comment="what the explanations of its decisions share; null: each explanation is whole",
    ),
    Column("config_hash", Text, nullable=False),
    Column("run_id", Text),
    CheckConstraint("assigned <= tasks", name="assigned"),
    CheckConstraint("gap >= 0 AND gap <= 1", name="gap"),
    Index("ix_assignment_batches_decided_at", "decided_at"),
)

assignment_attempts = Table(
    "assignment_attempts",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("task", BigInteger, ForeignKey("cp.tasks.id", ondelete="CASCADE"), nullable=False),
    Column("path", Text, nullable=False),
    Column(
        "outcome",
        Text,
        nullable=False,
        comment="assigned, deferred, rejected, timeout, failed or already_assigned",
    ),
    Column("reason", Text, comment="reason code when nothing was assigned"),
    Column(
        "tiers_either_side", SmallInteger, nullable=False, server_default=text("0"), comment="how far relaxed"
    ),
    Column("seconds", Double, nullable=False),
    _timestamp("ended_at", default_now=True),
    Column(
        "detail", JSONB, nullable=False, server_default=text("'{}'::jsonb"), comment="figures that prove it"
    ),
    CheckConstraint("path IN ('batch', 'inline', 'stress')", name="path"),
    CheckConstraint(
        "outcome IN ('assigned', 'deferred', 'rejected', 'timeout', 'failed', 'already_assigned')",
        name="outcome",
    ),
    Index("ix_assignment_attempts_task", "task", "id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("task", BigInteger, ForeignKey("cp.tasks.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False, comment="assigned or completed"),
    Column("payload", JSONB, nullable=False),
    _timestamp("created_at", default_now=True),
    _timestamp("available_at", default_now=True),
    _timestamp("delivered_at", nullable=True),
    Column("tries", SmallInteger, nullable=False, server_default=text("0")),
    Column("error", Text, comment="what went wrong at the last try"),
    CheckConstraint("kind IN ('assigned', 'completed')", name="kind"),
    Index("uq_outbox_task_kind", "task", "kind", unique=True),
    Index("ix_outbox_undelivered", "available_at", postgresql_where=text("delivered_at IS NULL")),
)

executions = Table(
    "executions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("task", BigInteger, ForeignKey("cp.tasks.id", ondelete="CASCADE"), nullable=False),
    Column("assignment", BigInteger, ForeignKey("cp.assignments.id", ondelete="CASCADE"), nullable=False),
    Column("submission_day", Date, nullable=False),
    Column("attempt", SmallInteger, nullable=False, comment="1 for the task's first attempt"),
    Column(
        "stage", SmallInteger, nullable=False, server_default=text("0"), comment="stage of the plan, from 0"
    ),
    Column("model", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("funding", Text, nullable=False, comment="what paid for it: subscription:NAME or budget:NAME"),
    Column("worker", Text, nullable=False, comment="lease owner that made the attempt"),
    Column("state", Text, nullable=False, server_default="running"),
    Column("reason", Text, comment="reason code of a failure"),
    Column("error", Text, comment="what the provider said, scrubbed and cut"),
    Column("http_status", SmallInteger),
    Column("request_id", Text, comment="the provider's id of the call"),
    Column(
        "input_tokens",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="uncached + cached + written",
    ),
    Column(
        "cached_tokens",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="read from the prompt cache",
    ),
    Column("cache_write_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column(
        "cost_usd",
        Numeric(18, 9),
        nullable=False,
        server_default=text("0"),
        comment="at the registry's list price",
    ),
    Column(
        "billed_usd",
        Numeric(18, 9),
        nullable=False,
        server_default=text("0"),
        comment="what went against a money budget: 0 where a subscription paid",
    ),
    Column("latency_ms", Double),
    Column("quality", Double, comment="0 to 10, from evidence"),
    Column("evidence", JSONB),
    Column("output", Text),
    Column("run_id", Text),
    _timestamp("started_at", default_now=True),
    _timestamp("finished_at", nullable=True),
    CheckConstraint("state IN ('running', 'succeeded', 'failed', 'lost', 'cancelled')", name="state"),
    CheckConstraint("(state IN ('failed', 'lost', 'cancelled')) = (reason IS NOT NULL)", name="reason"),
    CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
    CheckConstraint("quality BETWEEN 0 AND 10", name="quality"),
    CheckConstraint("cached_tokens + cache_write_tokens <= input_tokens", name="tokens"),
    Index("uq_executions_task_attempt", "task", "attempt", unique=True),
    Index("ix_executions_submission_day", "submission_day"),
    Index("ix_executions_retries", "started_at", postgresql_where=text("attempt > 1")),
)

# Triggers of the migration refuse UPDATE, DELETE and TRUNCATE.
evidence = Table(
    "evidence",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    _timestamp("recorded_at", default_now=True),
    Column("task", BigInteger, ForeignKey("cp.tasks.id"), nullable=False),
    Column("execution", BigInteger, ForeignKey("cp.executions.id"), nullable=False),
    Column("source", Text, nullable=False, comment="ci, person or worker-reported"),
    Column("reported_by", Text, nullable=False, comment="login name, or whatever CI calls itself"),
    Column("key", Text, comment="idempotency key of the report, such as the id of a CI run"),
    Column("report", JSONB, nullable=False, comment="what was said, without what was not looked at"),
    Column("evidence_before", JSONB, comment="executions.evidence"),
    Column("evidence_after", JSONB, nullable=False),
    Column("quality_before", Double, nullable=False),
    Column("quality_after", Double, nullable=False),
    Column("state_before", Text, nullable=False, comment="of the task"),
    Column("state_after", Text, nullable=False, comment="of the task"),
    CheckConstraint("source IN ('ci', 'person', 'worker-reported')", name="source"),
    CheckConstraint("quality_before BETWEEN 0 AND 10 AND quality_after BETWEEN 0 AND 10", name="quality"),
    Index("ix_evidence_execution", "execution"),
    Index("uq_evidence_task_key", "task", "key", unique=True, postgresql_where=text("key IS NOT NULL")),
)

quota_accounts = Table(
    "quota_accounts",
    metadata,
    Column("account", Text, primary_key=True),
    Column(
        "kind",
        Text,
        nullable=False,
        comment="window or budget hold quota; source and spent are the other side",
    ),
    Column("unit", Text, nullable=False),
    Column("quota_limit", Numeric(24, 9), comment="what a full window grants"),
    Column("window", Text, comment="5-hour, daily, weekly or monthly"),
    _timestamp("window_started_at", nullable=True),
    _timestamp("window_ends_at", nullable=True),
    Column("debits_pending", Numeric(24, 9), nullable=False, server_default=text("0")),
    Column("debits_posted", Numeric(24, 9), nullable=False, server_default=text("0")),
    Column("credits_pending", Numeric(24, 9), nullable=False, server_default=text("0")),
    Column("credits_posted", Numeric(24, 9), nullable=False, server_default=text("0")),
    Column(
        "debits_before_window",
        Numeric(24, 9),
        nullable=False,
        server_default=text("0"),
        comment="posted debits that are not use in the current window: earlier windows, and what lapsed",
    ),
    Column(
        "expired_until",
        DateTime(timezone=True),
        comment="every pending transfer of this account that expires before is resolved",
    ),
    Column("may_go_negative", Boolean, nullable=False, server_default=text("false")),
    CheckConstraint("kind IN ('window', 'budget', 'source', 'spent')", name="kind"),
    CheckConstraint("unit IN ('tokens', 'usd')", name="unit"),
    CheckConstraint(
        "may_go_negative OR credits_posted - debits_posted - debits_pending >= 0", name="not_below_zero"
    ),
    CheckConstraint(
        "debits_pending >= 0 AND debits_posted >= 0 AND credits_pending >= 0 AND credits_posted >= 0",
        name="positive",
    ),
)

# Written by cp.enter_transfers, a function of the migrations, together with what the transfers move.
# Triggers of the migrations refuse UPDATE, DELETE and TRUNCATE, and check each batch that is written: both
# accounts exist and count the same unit; a post or void resolves a pending transfer between the same accounts,
# and is at most what was reserved. Foreign keys would check the same hot rows once for every transfer.
quota_transfers = Table(
    "quota_transfers",
    metadata,
    Column("transfer_id", UUID(as_uuid=True), primary_key=True, comment="idempotency key"),
    Column("sequence", BigInteger, Identity(), nullable=False, comment="order of writing"),
    Column("phase", Text, nullable=False, comment="single, pending, post or void"),
    Column(
        "pending_id", UUID(as_uuid=True), unique=True, comment="the pending transfer that this one resolves"
    ),
    Column("reservation", UUID(as_uuid=True), comment="key of the reservation, shared by its transfers"),
    Column("debit_account", Text, nullable=False),
    Column("credit_account", Text, nullable=False),
    Column("amount", Numeric(24, 9), nullable=False, comment="a post may be less than its pending transfer"),
    Column("code", Text, nullable=False, comment="grant, lapse, use or overrun"),
    Column("task", BigInteger, comment="tasks.id the transfer was made for"),
    _timestamp("expires_at", nullable=True),
    _timestamp("created_at", default_now=True),
    CheckConstraint("phase IN ('single', 'pending', 'post', 'void')", name="phase"),
    CheckConstraint("(phase IN ('post', 'void')) = (pending_id IS NOT NULL)", name="resolves"),
    CheckConstraint("(phase = 'pending') OR (expires_at IS NULL)", name="expires"),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("debit_account <> credit_account", name="two_sides"),
    Index("ix_quota_transfers_expires_at", "expires_at", postgresql_where=text("phase = 'pending'")),
    Index("ix_quota_transfers_reservation", "reservation", postgresql_where=text("phase = 'pending'")),
    Index("ix_quota_transfers_task", "task", postgresql_where=text("task IS NOT NULL")),
)

config_versions = Table(
    "config_versions",
    metadata,
    Column("config_hash", Text, primary_key=True, comment="sha-256 of the canonical JSON"),
    Column("content", JSONB, nullable=False),
    _timestamp("created_at", default_now=True),
)

# No row, or a closed one, is a model in order. What moves a breaker is in cp_core/execution/breaker.py.
breakers = Table(
    "breakers",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("model", Text, primary_key=True, comment="'*' for everything that the provider serves"),
    Column("state", Text, nullable=False, server_default=BreakerState.CLOSED.value),
    _timestamp("since", nullable=True),
    _timestamp("retry_at", nullable=True),
    Column("openings", Integer, nullable=False, server_default=text("0"), comment="in a row"),
    Column(
        "recent",
        Text,
        nullable=False,
        server_default="",
        comment="last attempts, oldest first: . answered, x failed",
    ),
    _timestamp("heard_at", nullable=True),
    Column("reason", Text, comment="reason code of the failure that opened it last"),
    CheckConstraint(_one_of("state", list(BreakerState)), name="state"),
    CheckConstraint("(state = 'closed') = (retry_at IS NULL)", name="retry_at"),
)

worker_shares = Table(
    "worker_shares",
    metadata,
    Column(
        "scope",
        Text,
        primary_key=True,
        comment="such as model:NAME, all, tokens:provider:NAME",
    ),
    Column("worker", Text, primary_key=True),
    Column("wanted", Integer, nullable=False),
    Column("held", Integer, nullable=False),
    _timestamp("paused_until", nullable=True),
    _timestamp("expires_at"),
    CheckConstraint("wanted >= 0 AND held >= 0", name="amounts"),
)

performance_metrics = Table(
    "performance_metrics",
    metadata,
    Column("day", Date, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("domain", Text, primary_key=True, comment="'all' for the model as a whole"),
    Column("complexity", Text, primary_key=True, comment="'all' for the model as a whole"),
    Column("attempts", Integer, nullable=False),
    Column("tasks", Integer, nullable=False),
    Column("succeeded", Integer, nullable=False),
    Column("success_rate", Double, nullable=False),
    Column("quality_mean", Double),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd", Numeric(18, 9), nullable=False),
    Column(
        "value_delivered", Double, nullable=False, comment="sum of effective scores of tasks that succeeded"
    ),
    Column("value_per_usd", Double),
    Column("latency_p50_ms", Double),
    Column("latency_p95_ms", Double),
    Column("input_error_ratio", Double, comment="actual over estimated input tokens, of successful attempts"),
    Column(
        "output_error_ratio", Double, comment="actual over estimated output tokens, of successful attempts"
    ),
)

performance_estimates = Table(
    "performance_estimates",
    metadata,
    Column("day", Date, primary_key=True, comment="last day of the window that was looked at"),
    Column("model", Text, primary_key=True),
    Column("domain", Text, primary_key=True, comment="'all' for every domain"),
    Column("complexity", Text, primary_key=True, comment="'all' for every complexity"),
    Column("effective_n", Double, nullable=False, comment="attempts, each weighed by its age"),
    Column("measures", JSONB, nullable=False, comment="value, low and high of each measure, by its name"),
)

learning_results = Table(
    "learning_results",
    metadata,
    Column("day", Date, primary_key=True),
    Column("asset", Text, primary_key=True, comment="asset of the group learning that found it"),
    Column("content", JSONB, nullable=False),
    Column("config_hash", Text, nullable=False, comment="configuration that was in force"),
    Column("run_id", Text),
    _timestamp("made_at", default_now=True),
)

learning_reports = Table(
    "learning_reports",
    metadata,
    Column("day", Date, primary_key=True),
    Column("html", Text, nullable=False),
    Column("markdown", Text, nullable=False),
    _timestamp("made_at", default_now=True),
)

# Triggers of the migration refuse UPDATE, DELETE and TRUNCATE.
artifacts = Table(
    "artifacts",
    metadata,
    Column("artifact_hash", Text, primary_key=True, comment="sha-256 of the content"),
    Column("kind", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    _timestamp("created_at", default_now=True),
)

config_candidates = Table(
    "config_candidates",
    metadata,
    Column("day", Date, primary_key=True),
    Column("config_hash", Text, ForeignKey("cp.config_versions.config_hash"), nullable=False),
    Column("champion_hash", Text, nullable=False, comment="version that it was made from"),
    Column("changes", JSONB, nullable=False, comment="each number that differs: before, after and limit"),
    Column("evidence", JSONB, nullable=False, comment="what the gates judge it by"),
    Column("run_id", Text),
    _timestamp("made_at", default_now=True),
)

# Triggers of the migration refuse UPDATE, DELETE and TRUNCATE.
gate_results = Table(
    "gate_results",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("config_hash", Text, nullable=False, comment="the version that was judged, and no other"),
    Column("day", Date, nullable=False),
    Column("gate", Text, nullable=False),
    Column("has_passed", Boolean, nullable=False),
    Column("evidence", JSONB, nullable=False),
    Column("run_id", Text),
    _timestamp("judged_at", default_now=True),
    Index("ix_gate_results_config_hash", "config_hash", "gate"),
)

config_pointers = Table(
    "config_pointers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("config_hash", Text, ForeignKey("cp.config_versions.config_hash"), nullable=False),
    _timestamp("moved_at", default_now=True),
    CheckConstraint("name IN ('champion', 'challenger', 'previous')", name="name"),
)

# Triggers of the migration refuse UPDATE, DELETE and TRUNCATE.
promotions = Table(
    "promotions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    _timestamp("promoted_at", default_now=True),
    Column("action", Text, nullable=False, comment="promote, rollback, challenge or refuse"),
    Column("from_hash", Text, comment="champion before"),
    Column("to_hash", Text, nullable=False, comment="champion, or what was refused or challenges"),
    Column("by", Text, nullable=False, comment="login name, or the asset that did it"),
    Column("reason", Text, nullable=False),
    Column("evidence", JSONB, nullable=False),
    CheckConstraint("action IN ('promote', 'rollback', 'challenge', 'refuse')", name="action"),
)

# Triggers of the migrations refuse DELETE, and UPDATE of what was defined.
experiments = Table(
    "experiments",
    metadata,
    Column("experiment", Text, primary_key=True),
    Column("layer", Text, nullable=False, comment="experiments of one layer never share a unit"),
    Column("state", Text, nullable=False),
    Column("salt", Text, nullable=False),
    Column(
        "definition", JSONB, nullable=False, comment="arms, frozen weights, metrics, minimum sample and time"
    ),
    _timestamp("created_at", default_now=True),
    _timestamp("started_at", nullable=True),
    _timestamp("ended_at", nullable=True),
    Column("conclusion", Text),
    Column("first_bucket", Integer, comment="where its range of the layer begins; none before the start"),
    CheckConstraint("state IN ('draft', 'running', 'graduated', 'stopped')", name="state"),
    CheckConstraint("(state IN ('graduated', 'stopped')) = (ended_at IS NOT NULL)", name="ended"),
    CheckConstraint(
        "state <> 'running' OR started_at IS NOT NULL AND first_bucket IS NOT NULL", name="running"
    ),
)

# Triggers of the migration refuse UPDATE, DELETE and TRUNCATE.
exposures = Table(
    "exposures",
    metadata,
    Column("experiment", Text, ForeignKey("cp.experiments.experiment"), primary_key=True),
    Column("unit", Text, primary_key=True, comment="task_id"),
    Column("arm", Text, nullable=False),
    _timestamp("exposed_at", default_now=True),
    Column("block", DateTime(timezone=True), comment="start of the switchback block; else none"),
    Index("ix_exposures_arm", "experiment", "exposed_at", "arm"),
    Index("ix_exposures_unit", "unit"),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    _timestamp("occurred_at", default_now=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, comment="what the event is about: a task_id, an account, a run"),
    Column("payload", JSONB, nullable=False),
    Index("ix_events_kind_occurred_at", "kind", "occurred_at"),
)
