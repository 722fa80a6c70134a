"""where a running experiment stands in its layer, blocks of switchbacks, and definitions that stay as they are

Revision: 0013
Follows: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "experiments",
        sa.Column(
            "first_bucket", sa.Integer(), comment="where its range of the layer begins; none before the start"
        ),
        schema="cp",
    )
    op.create_check_constraint(
        op.f("ck_experiments_running"),
        "experiments",
        "state <> 'running' OR started_at IS NOT NULL AND first_bucket IS NOT NULL",
        schema="cp",
    )
    op.add_column(
        "exposures",
        sa.Column("block", sa.DateTime(timezone=True), comment="start of the switchback block; else none"),
        schema="cp",
    )
    op.alter_column("exposures", "unit", comment="task_id", schema="cp")
    op.create_index("ix_exposures_arm", "exposures", ["experiment", "exposed_at", "arm"], schema="cp")
    op.execute(
        """
        CREATE FUNCTION cp.keep_experiment() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'experiment % stands as it was defined: define another one', OLD.experiment
                USING ERRCODE = 'restrict_violation';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER frozen BEFORE UPDATE ON cp.experiments FOR EACH ROW
        WHEN ((OLD.experiment, OLD.layer, OLD.salt, OLD.definition)
              IS DISTINCT FROM (NEW.experiment, NEW.layer, NEW.salt, NEW.definition))
        EXECUTE FUNCTION cp.keep_experiment()
        """
    )
    op.execute(
        """
        CREATE TRIGGER kept BEFORE DELETE ON cp.experiments FOR EACH ROW EXECUTE FUNCTION cp.keep_experiment()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER kept ON cp.experiments")
    op.execute("DROP TRIGGER frozen ON cp.experiments")
    op.execute("DROP FUNCTION cp.keep_experiment()")
    op.drop_index("ix_exposures_arm", "exposures", schema="cp")
    op.alter_column("exposures", "unit", comment="task_id, or the start of a switchback block", schema="cp")
    op.drop_column("exposures", "block", schema="cp")
    op.drop_constraint(op.f("ck_experiments_running"), "experiments", schema="cp")
    op.drop_column("experiments", "first_bucket", schema="cp")
