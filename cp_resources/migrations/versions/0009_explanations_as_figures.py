"""explanations of a round as figures

Revision: 0009
Follows: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

FIGURES = "numbers of the explanation, spelled out by the batch's legend"
EXPLANATION = "all of it, or what its figures do not say"
LEGEND = "what the explanations of its decisions share; null: each explanation is whole"
TRANSFERS = "pending transfers that reserve the plan"
DECISION = "idempotency key of the decision"
DECISION_AND_RESERVATION = "idempotency key of the decision, and of the reservation for its first attempt"
SCORED = "effective value score, once scored"
DECIDED = "effective value score, once decided or overridden: the order of claims"


def upgrade() -> None:
    op.add_column("assignments", sa.Column("figures", ARRAY(sa.Double()), comment=FIGURES), schema="cp")
    op.add_column("assignment_batches", sa.Column("legend", JSONB(), comment=LEGEND), schema="cp")
    op.alter_column("assignments", "explanation", comment=EXPLANATION, schema="cp")
    op.alter_column(
        "assignments",
        "decision_id",
        comment=DECISION_AND_RESERVATION,
        existing_comment=DECISION,
        schema="cp",
    )
    op.drop_column("assignments", "transfers", schema="cp")  # the ledger finds them by reservation
    op.alter_column("tasks", "value_score", comment=DECIDED, existing_comment=SCORED, schema="cp")


def downgrade() -> None:
    op.alter_column("tasks", "value_score", comment=SCORED, existing_comment=DECIDED, schema="cp")
    op.add_column(
        "assignments",
        sa.Column(
            "transfers", ARRAY(UUID(as_uuid=True)), server_default="{}", nullable=False, comment=TRANSFERS
        ),
        schema="cp",
    )
    op.execute("""
        UPDATE cp.assignments SET transfers = held.transfers
        FROM (
            SELECT reservation, array_agg(transfer_id) AS transfers FROM cp.quota_transfers
            WHERE phase = 'pending' GROUP BY reservation
        ) AS held WHERE held.reservation = decision_id
    """)
    op.alter_column("assignments", "transfers", server_default=None, schema="cp")
    op.alter_column(
        "assignments",
        "decision_id",
        comment=DECISION,
        existing_comment=DECISION_AND_RESERVATION,
        schema="cp",
    )
    op.alter_column("assignments", "explanation", comment=None, existing_comment=EXPLANATION, schema="cp")
    op.drop_column("assignment_batches", "legend", schema="cp")
    op.drop_column("assignments", "figures", schema="cp")
