"""What the command line asks of a running Dagster webserver, over its GraphQL API.

The command line never imports Dagster: what needs it runs as its own process, and is spoken to from here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import httpx

from cp_resources.errors import UserError

FINISHED_RUN_STATES = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
_LOCATION = {"repositoryLocationName": "cp_definitions", "repositoryName": "__repository__"}

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on UnauthorizedError { message }
    ... on InvalidSubsetError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
_BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PartitionSetNotFoundError { message }
    ... on PartitionKeysNotFoundError { message }
    ... on UnauthorizedError { message }
    ... on PythonError { message }
  }
}
"""
_RUNS = """
query Runs {
  runsOrError(limit: 500) {
    ... on Runs { results { runId status jobName startTime endTime tags { key value } } }
  }
}
"""
_CHECKS = """
query Checks($run: ID!, $cursor: String) {
  logsForRun(runId: $run, afterCursor: $cursor, limit: 500) {
    ... on EventConnection {
      cursor
      hasMore
      events {
        ... on AssetCheckEvaluationEvent { evaluation { checkName success severity assetKey { path } } }
      }
    }
  }
}
"""

_DAEMONS = """
query Daemons {
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
}
"""

_LOCATIONS = """
query Locations {
  workspaceOrError {
    ... on Workspace { locationEntries { locationOrLoadError { ... on PythonError { ...Why } } } }
    ... on PythonError { ...Why }
  }
}
fragment Why on PythonError { message errorChain { error { message } } }
"""


@dataclass(frozen=True)
class Run:
    """One Dagster run."""

    run_id: str
    job: str
    status: str
    partition: str | None
    seconds: float | None


@dataclass(frozen=True)
class CheckResult:
    """One evaluation of an asset check."""

    asset: str
    check: str
    passed: bool
    severity: str


class DagsterApi:
    """A client of one Dagster webserver.

    Args:
        url: address of the webserver, such as `http://127.0.0.1:3000`.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 60) -> None:
        self._client = httpx.Client(base_url=url, timeout=timeout_seconds)

    def launch(self, job: str, day: date) -> str:
        """Launch `job` for the partition of `day` and return the run's id.

        Raises:
            UserError: Dagster refused, with its own words.
        """
        params = {
            "selector": {**_LOCATION, "jobName": job},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": day.isoformat()}]},
        }
        answer = self._ask(_LAUNCH, {"params": params})["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise UserError(f"Dagster did not launch {job} for {day}: {answer}")
        return str(answer["run"]["runId"])

    def backfill(self, job: str, days: Sequence[date]) -> str:
        """Launch a backfill of `job`, a run a day, and return its id.

        Raises:
            UserError: Dagster refused, with its own words.
        """
        params = {
            "selector": {"repositorySelector": _LOCATION, "partitionSetName": f"{job}_partition_set"},
            "partitionNames": [day.isoformat() for day in days],
        }
        answer = self._ask(_BACKFILL, {"params": params})["launchPartitionBackfill"]
        if answer["__typename"] != "LaunchBackfillSuccess":
            raise UserError(f"Dagster did not backfill {job}: {answer.get('message', answer['__typename'])}")
        return str(answer["backfillId"])

    def load_error(self) -> str | None:
        """The first cause of the code location not loading, or None when it loads."""
        workspace = self._ask(_LOCATIONS)["workspaceOrError"]
        entries = [entry["locationOrLoadError"] or {} for entry in workspace.get("locationEntries", ())]
        for error in [workspace, *entries]:
            if "message" in error:
                causes = [cause["error"]["message"] for cause in error["errorChain"]]
                return str([error["message"], *causes][-1]).strip()
        return None

    def unhealthy_daemons(self) -> list[str]:
        """Daemons that this instance needs and that have not beaten for too long."""
        statuses = self._ask(_DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
        return sorted(row["daemonType"] for row in statuses if row["required"] and not row["healthy"])

    def runs(self) -> list[Run]:
        """The newest 500 runs, newest first."""
        return [
            Run(
                run_id=row["runId"],
                job=row["jobName"],
                status=row["status"],
                partition=_tag(row, "dagster/partition"),
                seconds=row["endTime"] - row["startTime"] if row["endTime"] and row["startTime"] else None,
            )
            for row in self._ask(_RUNS)["runsOrError"]["results"]
        ]

    def wait_for(self, run_ids: set[str], *, seconds: float) -> list[Run]:
        """Wait until the runs have ended, and return them.

        Raises:
            UserError: some have not ended within `seconds`.
        """
        give_up = time.monotonic() + seconds
        while True:
            runs = [run for run in self.runs() if run.run_id in run_ids]
            waiting = [run for run in runs if run.status not in FINISHED_RUN_STATES]
            if len(runs) == len(run_ids) and not waiting:
                return runs
            if time.monotonic() > give_up:
                names = ", ".join(f"{run.job} {run.partition} ({run.status})" for run in waiting)
                raise UserError(f"these runs have not ended within {seconds:.0f} s: {names}")
            time.sleep(0.5)

    def check_results(self, run_id: str) -> Iterator[CheckResult]:
        """Every asset check evaluated in a run."""
        cursor: str | None = None
        while True:
            page = self._ask(_CHECKS, {"run": run_id, "cursor": cursor})["logsForRun"]
            for event in page["events"]:
                if evaluation := event.get("evaluation"):
                    yield CheckResult(
                        asset="/".join(evaluation["assetKey"]["path"]),
                        check=evaluation["checkName"],
                        passed=evaluation["success"],
                        severity=evaluation["severity"],
                    )
            if not page["hasMore"]:
                return
            cursor = page["cursor"]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, query: str, variables: dict[str, object] | None = None) -> dict[str, Any]:
        response = self._client.post("/graphql", json={"query": query, "variables": variables or {}})
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        if answer.get("errors"):
            raise UserError(f"Dagster's API answered: {answer['errors'][0]['message']}")
        data: dict[str, Any] = answer["data"]
        return data


def _tag(row: dict[str, Any], key: str) -> str | None:
    return next((tag["value"] for tag in row["tags"] if tag["key"] == key), None)
