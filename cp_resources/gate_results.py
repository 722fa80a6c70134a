"""What each gate found of each candidate, bound to the candidate's content hash, and never changed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import LiteralString

from psycopg.types.json import Jsonb

from cp_core.learning.gates.verdict import Verdict
from cp_resources.database import Database


class GateResults:
    """Table gate_results, append only: the latest row of a gate counts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, version: str, day: date, verdicts: Iterable[Verdict], run_id: str | None = None) -> None:
        """Add what gates found of a version; what they found the last time already is not repeated."""
        with self._database.transaction() as connection:
            for verdict in verdicts:
                connection.execute(
                    _ADD,
                    {
                        "version": version,
                        "day": day,
                        "gate": verdict.gate,
                        "has_passed": verdict.has_passed,
                        "evidence": Jsonb(
                            {
                                "against": verdict.against,
                                "says": verdict.says,
                                "figures": dict(verdict.evidence),
                            }
                        ),
                        "run_id": run_id,
                    },
                )

    def latest(self, version: str, day: date | None = None) -> dict[str, Verdict]:
        """What each gate found last of exactly this version, by gate; of one day's judging, or of any."""
        rows = self._database.fetch(_LATEST, {"version": version, "day": day})
        return {
            gate: Verdict(
                gate=gate,
                has_passed=has_passed,
                against=evidence["against"],
                says=evidence["says"],
                evidence=evidence["figures"],
            )
            for gate, has_passed, evidence in rows
        }


_ADD: LiteralString = """
    INSERT INTO gate_results (config_hash, day, gate, has_passed, evidence, run_id)
    SELECT %(version)s, %(day)s, %(gate)s, %(has_passed)s, %(evidence)s, %(run_id)s
    WHERE (%(has_passed)s, %(evidence)s::jsonb) IS DISTINCT FROM (
        SELECT (has_passed, evidence) FROM gate_results
        WHERE config_hash = %(version)s AND day = %(day)s AND gate = %(gate)s ORDER BY id DESC LIMIT 1
    )
"""
_LATEST: LiteralString = """
    SELECT DISTINCT ON (gate) gate, has_passed, evidence FROM gate_results
    WHERE config_hash = %(version)s AND day = coalesce(%(day)s, day) ORDER BY gate, id DESC
"""
