"""Batches with their prices, attempts at assignment, and the outbox of notices.

Revision: 0002
Follows: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "assignment_batches",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column(
            "submission_day",
            sa.Date(),
            nullable=True,
            comment="day that was assigned; null when several were",
        ),
        sa.Column("decided_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column(
            "started_from", sa.UUID(), nullable=True, comment="batch at whose prices the solver started"
        ),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("assigned", sa.Integer(), nullable=False),
        sa.Column("objective", sa.Double(), nullable=False, comment="worth of the assignment, value points"),
        sa.Column("bound", sa.Double(), nullable=False, comment="no assignment of the batch is worth more"),
        sa.Column("gap", sa.Double(), nullable=False, comment="fraction of the bound that was not reached"),
        sa.Column("evaluations", sa.Integer(), nullable=False, comment="passes of the solver over the batch"),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column(
            "prices",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="value points of one more unit, by account",
        ),
        sa.Column(
            "available",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="what each account held before, by account",
        ),
        sa.Column(
            "lapsing",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="how near each account's window was to its end, 0 to 1",
        ),
        sa.Column(
            "forecast",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="what the assignment is expected to come to",
        ),
        sa.Column(
            "alternatives",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="what other strategies were expected to come to",
        ),
        sa.Column(
            "pruned",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="pairs of task and plan ruled out, by reason",
        ),
        sa.Column("considered", sa.BigInteger(), nullable=False, comment="pairs of task and plan"),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.CheckConstraint("assigned <= tasks", name=op.f("ck_assignment_batches_assigned")),
        sa.CheckConstraint("gap >= 0 AND gap <= 1", name=op.f("ck_assignment_batches_gap")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignment_batches")),
        schema="cp",
    )
    op.create_index(
        "ix_assignment_batches_decided_at", "assignment_batches", ["decided_at"], unique=False, schema="cp"
    )
    op.create_table(
        "assignment_attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("task", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column(
            "outcome",
            sa.Text(),
            nullable=False,
            comment="assigned, deferred, rejected, timeout, failed or already_assigned",
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="reason code when nothing was assigned"),
        sa.Column(
            "tiers_either_side",
            sa.SmallInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="how far relaxed",
        ),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "detail",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="figures that prove it",
        ),
        sa.CheckConstraint(
            "outcome IN ('assigned', 'deferred', 'rejected', 'timeout', 'failed', 'already_assigned')",
            name=op.f("ck_assignment_attempts_outcome"),
        ),
        sa.CheckConstraint("path IN ('batch', 'inline', 'stress')", name=op.f("ck_assignment_attempts_path")),
        sa.ForeignKeyConstraint(
            ["task"], ["cp.tasks.id"], name=op.f("fk_assignment_attempts_task_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignment_attempts")),
        schema="cp",
    )
    op.create_index(
        "ix_assignment_attempts_task", "assignment_attempts", ["task", "id"], unique=False, schema="cp"
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("task", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="assigned or completed"),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "available_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tries", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True, comment="what went wrong at the last try"),
        sa.CheckConstraint("kind IN ('assigned', 'completed')", name=op.f("ck_outbox_kind")),
        sa.ForeignKeyConstraint(
            ["task"], ["cp.tasks.id"], name=op.f("fk_outbox_task_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        schema="cp",
    )
    op.create_index(
        "ix_outbox_undelivered",
        "outbox",
        ["available_at"],
        unique=False,
        schema="cp",
        postgresql_where=sa.text("delivered_at IS NULL"),
    )
    op.create_index("uq_outbox_task_kind", "outbox", ["task", "kind"], unique=True, schema="cp")
    op.add_column(
        "assignments",
        sa.Column(
            "path",
            sa.Text(),
            server_default="batch",
            nullable=False,
            comment="which way decided: batch, inline or stress",
        ),
        schema="cp",
    )
    op.add_column(
        "assignments",
        sa.Column(
            "batch",
            sa.UUID(),
            nullable=True,
            comment="row of assignment_batches that it was decided in, or took prices of",
        ),
        schema="cp",
    )
    op.add_column(
        "assignments",
        sa.Column(
            "propensity",
            sa.Double(),
            nullable=True,
            comment="probability with which exploration drew this plan; null: not known",
        ),
        schema="cp",
    )
    op.create_check_constraint(
        op.f("ck_assignments_path"), "assignments", "path IN ('batch', 'inline', 'stress')", schema="cp"
    )
    op.create_check_constraint(
        op.f("ck_assignments_propensity"), "assignments", "propensity > 0 AND propensity <= 1", schema="cp"
    )
    op.add_column(
        "tasks",
        sa.Column(
            "assignment_attempts_left",
            sa.SmallInteger(),
            server_default=sa.text("3"),
            nullable=False,
            comment="how often assignment itself may still fail for a passing reason",
        ),
        schema="cp",
    )


def downgrade() -> None:
    op.drop_column("tasks", "assignment_attempts_left", schema="cp")
    op.drop_column("assignments", "propensity", schema="cp")
    op.drop_column("assignments", "batch", schema="cp")
    op.drop_column("assignments", "path", schema="cp")
    op.drop_index("uq_outbox_task_kind", table_name="outbox", schema="cp")
    op.drop_index(
        "ix_outbox_undelivered",
        table_name="outbox",
        schema="cp",
        postgresql_where=sa.text("delivered_at IS NULL"),
    )
    op.drop_table("outbox", schema="cp")
    op.drop_index("ix_assignment_attempts_task", table_name="assignment_attempts", schema="cp")
    op.drop_table("assignment_attempts", schema="cp")
    op.drop_index("ix_assignment_batches_decided_at", table_name="assignment_batches", schema="cp")
    op.drop_table("assignment_batches", schema="cp")
