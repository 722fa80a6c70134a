"""What each learning asset found on each day, as documents in PostgreSQL."""

from __future__ import annotations

from datetime import date
from typing import Any

from psycopg.types.json import Jsonb
from pydantic import BaseModel

from cp_resources.database import Database


class LearningResults:
    """Table learning_results: one document a day and asset; a repeat replaces it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(
        self, day: date, asset: str, found: BaseModel, *, config_hash: str, run_id: str | None = None
    ) -> None:
        """Put what was found in place of whatever is stored for the day.

        Args:
            found: the asset's own document.
            config_hash: configuration that was in force.
        """
        with self._database.transaction() as connection:
            connection.execute(
                """
                INSERT INTO learning_results (day, asset, content, config_hash, run_id) VALUES (%s, %s, %s, %s, %s)
                ON CONFLICT (day, asset) DO UPDATE SET
                    content = excluded.content, config_hash = excluded.config_hash, run_id = excluded.run_id,
                    made_at = now()
                """,
                [day, asset, Jsonb(found.model_dump(mode="json")), config_hash, run_id],
            )

    def read(self, day: date, asset: str) -> dict[str, Any] | None:
        """The document of a day; None when the asset has none for it."""
        found = self._database.fetch(
            "SELECT content FROM learning_results WHERE day = %s AND asset = %s", [day, asset]
        )
        return found[0][0] if found else None

    def history(self, asset: str, first: date, last: date) -> dict[date, dict[str, Any]]:
        """The documents of the days from `first` to `last`, both included, in order of day."""
        return dict(
            self._database.fetch(
                "SELECT day, content FROM learning_results WHERE asset = %s AND day BETWEEN %s AND %s ORDER BY day",
                [asset, first, last],
            )
        )
