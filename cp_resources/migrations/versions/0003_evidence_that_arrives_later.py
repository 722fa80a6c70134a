"""evidence that arrives later

Revision: 0003
Follows: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# What was said stays as it was said.
TRIGGERS = (
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON cp.evidence
        FOR EACH ROW EXECUTE FUNCTION cp.refuse_change()
    """,
    """
    CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON cp.evidence
        FOR EACH STATEMENT EXECUTE FUNCTION cp.refuse_change()
    """,
)


def upgrade() -> None:
    op.create_table(
        "evidence",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("task", sa.BigInteger(), nullable=False),
        sa.Column("execution", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False, comment="ci, person or worker-reported"),
        sa.Column(
            "reported_by", sa.Text(), nullable=False, comment="login name, or whatever CI calls itself"
        ),
        sa.Column("key", sa.Text(), comment="idempotency key of the report, such as the id of a CI run"),
        sa.Column("report", JSONB(), nullable=False, comment="what was said, without what was not looked at"),
        sa.Column("evidence_before", JSONB(), comment="executions.evidence"),
        sa.Column("evidence_after", JSONB(), nullable=False),
        sa.Column("quality_before", sa.Double(), nullable=False),
        sa.Column("quality_after", sa.Double(), nullable=False),
        sa.Column("state_before", sa.Text(), nullable=False, comment="of the task"),
        sa.Column("state_after", sa.Text(), nullable=False, comment="of the task"),
        sa.CheckConstraint("source IN ('ci', 'person', 'worker-reported')", name=op.f("ck_evidence_source")),
        sa.CheckConstraint(
            "quality_before BETWEEN 0 AND 10 AND quality_after BETWEEN 0 AND 10",
            name=op.f("ck_evidence_quality"),
        ),
        sa.ForeignKeyConstraint(["task"], ["cp.tasks.id"], name=op.f("fk_evidence_task_tasks")),
        sa.ForeignKeyConstraint(
            ["execution"], ["cp.executions.id"], name=op.f("fk_evidence_execution_executions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evidence")),
        schema="cp",
    )
    op.create_index("ix_evidence_execution", "evidence", ["execution"], schema="cp")
    op.create_index(
        "uq_evidence_task_key",
        "evidence",
        ["task", "key"],
        unique=True,
        schema="cp",
        postgresql_where=sa.text("key IS NOT NULL"),
    )
    for statement in TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("evidence", schema="cp")
