"""retries of a day

Revision: 0012
Follows: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_executions_retries",
        "executions",
        ["started_at"],
        schema="cp",
        postgresql_where=sa.text("attempt > 1"),
    )


def downgrade() -> None:
    op.drop_index("ix_executions_retries", table_name="executions", schema="cp")
