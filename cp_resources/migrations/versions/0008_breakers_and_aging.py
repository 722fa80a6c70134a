"""breakers, and claims in the order of value with aging

Revision: 0008
Follows: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "breakers",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False, comment="'*' for everything that the provider serves"),
        sa.Column("state", sa.Text(), server_default="closed", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True)),
        sa.Column("retry_at", sa.DateTime(timezone=True)),
        sa.Column("openings", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="in a row"),
        sa.Column(
            "recent",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="last attempts, oldest first: . answered, x failed",
        ),
        sa.Column("heard_at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.Text(), comment="reason code of the failure that opened it last"),
        sa.CheckConstraint("state IN ('closed', 'half-open', 'open')", name=op.f("ck_breakers_state")),
        sa.CheckConstraint("(state = 'closed') = (retry_at IS NULL)", name=op.f("ck_breakers_retry_at")),
        sa.PrimaryKeyConstraint("provider", "model", name=op.f("pk_breakers")),
        schema="cp",
    )
    op.drop_index("ix_tasks_claimable", table_name="tasks", schema="cp")
    _index_claimable("(value_score - date_part('epoch', timezone('UTC', submitted_at)) / 600) DESC")


def downgrade() -> None:
    op.drop_index("ix_tasks_claimable", table_name="tasks", schema="cp")
    _index_claimable("value_score DESC")
    op.drop_table("breakers", schema="cp")


def _index_claimable(order: str) -> None:
    op.create_index(
        "ix_tasks_claimable",
        "tasks",
        ["submission_day", "model", sa.text(order), "id"],
        schema="cp",
        postgresql_where=sa.text("state = 'assigned'"),
    )
