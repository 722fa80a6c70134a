"""shares of the limits that all workers have in common

Revision: 0011
Follows: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "worker_shares",
        sa.Column(
            "scope",
            sa.Text(),
            nullable=False,
            comment="such as model:NAME, all, tokens:provider:NAME",
        ),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("held", sa.Integer(), nullable=False),
        sa.Column("paused_until", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("wanted >= 0 AND held >= 0", name=op.f("ck_worker_shares_amounts")),
        sa.PrimaryKeyConstraint("scope", "worker", name=op.f("pk_worker_shares")),
        schema="cp",
    )


def downgrade() -> None:
    op.drop_table("worker_shares", schema="cp")
