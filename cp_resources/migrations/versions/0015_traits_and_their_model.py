"""which trait model saw the traits of a task, and artifacts that stay as they are

Revision: 0015
Follows: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "task_scores",
        sa.Column("trait_model", sa.Text(), comment="hash of the artifact that saw the traits"),
        schema="cp",
    )
    op.create_check_constraint(
        op.f("ck_task_scores_traits"),
        "task_scores",
        "(traits IS NULL) = (trait_model IS NULL)",
        schema="cp",
    )
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON cp.artifacts "
        "FOR EACH ROW EXECUTE FUNCTION cp.refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON cp.artifacts "
        "FOR EACH STATEMENT EXECUTE FUNCTION cp.refuse_change()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER append_only_truncate ON cp.artifacts")
    op.execute("DROP TRIGGER append_only ON cp.artifacts")
    op.drop_constraint(op.f("ck_task_scores_traits"), "task_scores", schema="cp")
    op.drop_column("task_scores", "trait_model", schema="cp")
