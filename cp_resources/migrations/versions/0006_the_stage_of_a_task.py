"""the stage that a task's plan stands at

Revision: 0006
Follows: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MODEL_COMMENT = "model of the current stage of the current assignment"
MODEL_COMMENT_BEFORE = "model of the current assignment"


def upgrade() -> None:
    op.add_column(
        "tasks",
        sa.Column(
            "stage",
            sa.SmallInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="where the current assignment's plan stands, from 0",
        ),
        schema="cp",
    )
    op.create_check_constraint(op.f("ck_tasks_stage"), "tasks", "stage BETWEEN 0 AND 2", schema="cp")
    op.alter_column(
        "tasks", "model", comment=MODEL_COMMENT, existing_comment=MODEL_COMMENT_BEFORE, schema="cp"
    )


def downgrade() -> None:
    op.alter_column(
        "tasks", "model", comment=MODEL_COMMENT_BEFORE, existing_comment=MODEL_COMMENT, schema="cp"
    )
    op.drop_constraint(op.f("ck_tasks_stage"), "tasks", schema="cp")
    op.drop_column("tasks", "stage", schema="cp")
