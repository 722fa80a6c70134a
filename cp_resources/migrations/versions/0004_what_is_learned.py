"""what is learned: estimates, candidates, gates, pointers, experiments

Revision: 0004
Follows: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

APPEND_ONLY = ("gate_results", "promotions", "exposures")


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("artifact_hash", sa.Text(), nullable=False, comment="sha-256 of the content"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("artifact_hash", name=op.f("pk_artifacts")),
        schema="cp",
    )
    op.create_table(
        "experiments",
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("layer", sa.Text(), nullable=False, comment="experiments of one layer never share a unit"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column(
            "definition",
            JSONB(),
            nullable=False,
            comment="arms, frozen weights, metrics, minimum sample and time",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("conclusion", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state IN ('graduated', 'stopped')) = (ended_at IS NOT NULL)", name=op.f("ck_experiments_ended")
        ),
        sa.CheckConstraint(
            "state IN ('draft', 'running', 'graduated', 'stopped')", name=op.f("ck_experiments_state")
        ),
        sa.PrimaryKeyConstraint("experiment", name=op.f("pk_experiments")),
        schema="cp",
    )
    op.create_table(
        "gate_results",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column(
            "config_hash", sa.Text(), nullable=False, comment="the version that was judged, and no other"
        ),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("gate", sa.Text(), nullable=False),
        sa.Column("has_passed", sa.Boolean(), nullable=False),
        sa.Column("evidence", JSONB(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("judged_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gate_results")),
        schema="cp",
    )
    op.create_index(
        "ix_gate_results_config_hash", "gate_results", ["config_hash", "gate"], unique=False, schema="cp"
    )
    op.create_table(
        "learning_reports",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("html", sa.Text(), nullable=False),
        sa.Column("markdown", sa.Text(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_learning_reports")),
        schema="cp",
    )
    op.create_table(
        "learning_results",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("asset", sa.Text(), nullable=False, comment="asset of the group learning that found it"),
        sa.Column("content", JSONB(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False, comment="configuration that was in force"),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("day", "asset", name=op.f("pk_learning_results")),
        schema="cp",
    )
    op.create_table(
        "performance_estimates",
        sa.Column("day", sa.Date(), nullable=False, comment="last day of the window that was looked at"),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False, comment="'all' for every domain"),
        sa.Column("complexity", sa.Text(), nullable=False, comment="'all' for every complexity"),
        sa.Column("effective_n", sa.Double(), nullable=False, comment="attempts, each weighed by its age"),
        sa.Column(
            "measures", JSONB(), nullable=False, comment="value, low and high of each measure, by its name"
        ),
        sa.PrimaryKeyConstraint(
            "day", "model", "domain", "complexity", name=op.f("pk_performance_estimates")
        ),
        schema="cp",
    )
    op.create_table(
        "promotions",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False, comment="promote, rollback, challenge or refuse"),
        sa.Column("from_hash", sa.Text(), nullable=True, comment="champion before"),
        sa.Column(
            "to_hash", sa.Text(), nullable=False, comment="champion, or what was refused or challenges"
        ),
        sa.Column("by", sa.Text(), nullable=False, comment="login name, or the asset that did it"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", JSONB(), nullable=False),
        sa.CheckConstraint(
            "action IN ('promote', 'rollback', 'challenge', 'refuse')", name=op.f("ck_promotions_action")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
        schema="cp",
    )
    op.create_table(
        "config_candidates",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("champion_hash", sa.Text(), nullable=False, comment="version that it was made from"),
        sa.Column(
            "changes", JSONB(), nullable=False, comment="each number that differs: before, after and limit"
        ),
        sa.Column("evidence", JSONB(), nullable=False, comment="what the gates judge it by"),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["config_hash"],
            ["cp.config_versions.config_hash"],
            name=op.f("fk_config_candidates_config_hash_config_versions"),
        ),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_config_candidates")),
        schema="cp",
    )
    op.create_table(
        "config_pointers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "name IN ('champion', 'challenger', 'previous')", name=op.f("ck_config_pointers_name")
        ),
        sa.ForeignKeyConstraint(
            ["config_hash"],
            ["cp.config_versions.config_hash"],
            name=op.f("fk_config_pointers_config_hash_config_versions"),
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_config_pointers")),
        schema="cp",
    )
    op.create_table(
        "exposures",
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False, comment="task_id, or the start of a switchback block"),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("exposed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment"], ["cp.experiments.experiment"], name=op.f("fk_exposures_experiment_experiments")
        ),
        sa.PrimaryKeyConstraint("experiment", "unit", name=op.f("pk_exposures")),
        schema="cp",
    )
    op.create_index("ix_exposures_unit", "exposures", ["unit"], unique=False, schema="cp")
    op.add_column(
        "task_scores",
        sa.Column(
            "traits",
            sa.ARRAY(sa.REAL()),
            nullable=True,
            comment="what the trait model saw in the text; null: none was in force",
        ),
        schema="cp",
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON cp.{table} "
            "FOR EACH ROW EXECUTE FUNCTION cp.refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON cp.{table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION cp.refuse_change()"
        )


def downgrade() -> None:
    op.drop_column("task_scores", "traits", schema="cp")
    op.drop_table("exposures", schema="cp")
    op.drop_table("config_pointers", schema="cp")
    op.drop_table("config_candidates", schema="cp")
    op.drop_table("promotions", schema="cp")
    op.drop_table("performance_estimates", schema="cp")
    op.drop_table("learning_results", schema="cp")
    op.drop_table("learning_reports", schema="cp")
    op.drop_table("gate_results", schema="cp")
    op.drop_table("experiments", schema="cp")
    op.drop_table("artifacts", schema="cp")
