"""cancelling, and the progress of drains

Revision: 0007
Follows: 0006
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _count(name: str, kind: type[sa.Integer], comment: str | None = None) -> sa.Column[int]:
    return sa.Column(name, kind(), server_default=sa.text("0"), nullable=False, comment=comment)


def _time(name: str) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def upgrade() -> None:
    _create_cancellations()
    _create_drains()
    _let_executions_be_cancelled()


def _create_cancellations() -> None:
    op.create_table(
        "cancellations",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        _time("requested_at"),
        sa.Column("requested_by", sa.Text(), nullable=False, comment="login name, or whoever was named"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "selection", JSONB(), nullable=False, comment="tasks, day, batch, run, model; empty: everything"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cancellations")),
        schema="cp",
    )
    op.add_column(
        "tasks",
        sa.Column(
            "cancellation",
            sa.BigInteger(),
            comment="who called it off; of a running task: a request that its worker has yet to follow",
        ),
        schema="cp",
    )
    op.create_foreign_key(
        op.f("fk_tasks_cancellation_cancellations"),
        "tasks",
        "cancellations",
        ["cancellation"],
        ["id"],
        source_schema="cp",
        referent_schema="cp",
    )
    op.create_check_constraint(
        op.f("ck_tasks_cancellation"),
        "tasks",
        "cancellation IS NULL OR state NOT IN ('queued', 'deferred', 'assigned')",
        schema="cp",
    )
    op.create_index(
        "ix_tasks_called_off",
        "tasks",
        ["lease_owner"],
        schema="cp",
        postgresql_where=sa.text("state = 'running' AND cancellation IS NOT NULL"),
    )


def _create_drains() -> None:
    op.create_table(
        "drains",
        sa.Column("worker", sa.Text(), nullable=False, comment="lease owner"),
        sa.Column("run_id", sa.Text(), comment="Dagster run that drains"),
        sa.Column("submission_day", sa.Date(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        _time("started_at"),
        _time("heartbeat_at"),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("ended", sa.Text(), comment="why: drained, waiting, time budget, stopped or failed"),
        _count("held", sa.Integer, "tasks under its leases"),
        _count("attempts", sa.BigInteger),
        _count("succeeded", sa.BigInteger, "tasks"),
        _count("failed", sa.BigInteger, "tasks, dead ones too"),
        _count("cancelled", sa.BigInteger, "tasks"),
        _count("late", sa.BigInteger, "attempts"),
        _count("input_tokens", sa.BigInteger),
        _count("output_tokens", sa.BigInteger),
        sa.Column("cost_usd", sa.Numeric(18, 9), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("(ended IS NULL) = (ended_at IS NULL)", name=op.f("ck_drains_ended")),
        sa.PrimaryKeyConstraint("worker", name=op.f("pk_drains")),
        schema="cp",
    )
    op.create_index("ix_drains_started_at", "drains", ["started_at"], schema="cp")
    op.create_index(
        "ix_drains_under_way",
        "drains",
        ["submission_day"],
        schema="cp",
        postgresql_where=sa.text("ended_at IS NULL"),
    )


def _let_executions_be_cancelled() -> None:
    _check_executions(
        "state IN ('running', 'succeeded', 'failed', 'lost', 'cancelled')",
        "(state IN ('failed', 'lost', 'cancelled')) = (reason IS NOT NULL)",
    )


def _check_executions(state: str, reason: str) -> None:
    for name, rule in (("state", state), ("reason", reason)):
        op.drop_constraint(op.f(f"ck_executions_{name}"), "executions", schema="cp")
        op.create_check_constraint(op.f(f"ck_executions_{name}"), "executions", rule, schema="cp")


def downgrade() -> None:
    op.execute("UPDATE cp.executions SET state = 'failed' WHERE state = 'cancelled'")
    _check_executions(
        "state IN ('running', 'succeeded', 'failed', 'lost')",
        "(state IN ('failed', 'lost')) = (reason IS NOT NULL)",
    )
    op.drop_table("drains", schema="cp")
    op.drop_column("tasks", "cancellation", schema="cp")
    op.drop_table("cancellations", schema="cp")
