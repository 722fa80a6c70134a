"""prices between the rounds, and attempts for a task that is sent back

Revision: 0010
Follows: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

QUOTES = "prices for tasks decided alone until the next round, by account"

# Whoever sends an ended task back, it is assigned anew, with as many attempts as a new one.
SENT_BACK = """
CREATE FUNCTION cp.give_attempts_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.assignment_attempts_left := 3;
    RETURN NEW;
END $$
"""
TRIGGER = """
CREATE TRIGGER sent_back BEFORE UPDATE OF state ON cp.tasks FOR EACH ROW
    WHEN (OLD.state IN ('dead', 'failed', 'cancelled') AND NEW.state = 'queued')
    EXECUTE FUNCTION cp.give_attempts_back()
"""


def upgrade() -> None:
    op.add_column("assignment_batches", sa.Column("quotes", JSONB(), comment=QUOTES), schema="cp")
    op.execute(SENT_BACK)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER sent_back ON cp.tasks")
    op.execute("DROP FUNCTION cp.give_attempts_back()")
    op.drop_column("assignment_batches", "quotes", schema="cp")
