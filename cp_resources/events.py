"""Table events: what happened, for whoever wants to know. Never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from cp_core.execution.scrubbing import strike_from_record
from cp_resources.secrets import known_secrets


def announce(
    connection: psycopg.Connection, kind: str, subject: str | None, payload: Mapping[str, Any]
) -> None:
    """Add an event in the caller's transaction.

    Args:
        kind: such as "quality.rescored".
        subject: what it is about: a task_id, an account, a run.
    """
    connection.execute(
        "INSERT INTO cp.events (kind, subject, payload) VALUES (%s, %s, %s)",
        (kind, subject, Jsonb(strike_from_record(payload, known_secrets()))),
    )
