"""Claim: the daily learning job takes at most a minute and 2 GB for 1,000,000 outcomes.

The outcomes lie in an embedded PostgreSQL server of their own, see `_outcomes`. The whole job `daily_learning` runs as
Dagster runs it, in a process of its own: marts with their tests, every learning asset with its checks, the candidate
with all gates, promotion, and the report. The night before has been worked through, so that the marts are there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.learning_claims._outcomes import fill
from benchmarks.pipeline import cpu_seconds, server_of
from benchmarks.report import note, report
from cp_resources import migrate
from cp_resources.database import Database
from cp_resources.embedded_postgres import EmbeddedPostgres

OUTCOMES = 1_000_000


def measure() -> None:
    """Fill a database, work through one night, and measure the next."""
    with tempfile.TemporaryDirectory(prefix="control-panel-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # under root the server runs as another account
        with EmbeddedPostgres(home) as server:
            name = f"bench_{uuid4().hex}"
            server.create_database(name)
            migrate.upgrade(server.url(name))
            database = Database(server.url(name), silent_seconds=3600)
            day = fill(database, OUTCOMES)
            [(outcomes,)] = database.fetch("SELECT count(*) FROM executions")
            _night(database, day - timedelta(days=1), home)
            used = cpu_seconds(server_of(database))
            took = _night(database, day, home)
            used = cpu_seconds(server_of(database)) - used
            database.close()
    case = f"daily_learning on {outcomes:,} outcomes"
    report("learning", case, "seconds_1m_outcomes", took["seconds"], "s", "<= 60")
    report("learning", case, "memory", max(took["memory_gb"], took["started_memory_gb"]), "GB", "<= 2")
    report("learning", case, "python_cpu_seconds", took["python_cpu_seconds"], "s")
    report("learning", case, "dbt_cpu_seconds", took["started_cpu_seconds"], "s")
    report("learning", case, "postgres_cpu_seconds", used, "s")
    note(f"{case}: seconds by step {took['steps']}; checks that did not pass {took['warnings']}")


def _night(database: Database, day: date, folder: Path) -> Any:
    """What `_whole_night` says of a day."""
    said = folder / "night.json"
    finished = subprocess.run(
        [sys.executable, "-m", f"{__package__}._whole_night", database.url, day.isoformat(), str(said)],
        env={**os.environ, "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise SystemExit(f"the night of {day} failed:\n{finished.stderr[-3000:]}")
    return json.loads(said.read_text("utf-8"))
