"""The night's candidate, and the gates that it has to pass before it may decide anything."""

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetDep,
    AssetExecutionContext,
    MaterializeResult,
    ResourceParam,
    TimeWindowPartitionMapping,
    asset,
)

from cp_assets.learning.cost_effectiveness import cost_effectiveness
from cp_assets.learning.experiments import experiment_results
from cp_assets.learning.performance import performance_metrics
from cp_assets.learning.success import success_model
from cp_assets.learning.token_calibration import token_calibration
from cp_assets.learning.value_calibration import value_calibration
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, table
from cp_core.learning.gates.verdict import REQUIRED
from cp_core.learning.policy import LearningPolicy
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.observations import Observations

if TYPE_CHECKING:
    from cp_core.learning.gates.verdict import Verdict

WINDOW = TimeWindowPartitionMapping(
    start_offset=1 - LearningPolicy().window_days, allow_nonexistent_upstream_partitions=True
)
"""The days that learning looks back on, by default."""


@asset(
    deps=[
        AssetDep(performance_metrics, partition_mapping=WINDOW),
        success_model,
        token_calibration,
        value_calibration,
        cost_effectiveness,
        experiment_results,
    ],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="learning",
    kinds={"python", "postgres"},
    check_specs=[
        AssetCheckSpec(gate, asset="candidate_config", description=what, blocking=True)
        for gate, what in REQUIRED.items()
    ],
    description="What would be in force if the outcomes of earlier days were heeded, each number moved by no more than "
    "a night may move it, and what every gate finds of it on the latest days.",
)
def candidate_config(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
    observations: ResourceParam[Observations],
) -> Iterator[MaterializeResult[None]]:
    """Make the candidate, judge it, and keep both under its content hash.

    A gate that fails is an ordinary outcome: a warning here, and no promotion. It does not fail the run.
    """
    from cp_core.learning.gates.judge import judge
    from cp_resources.candidates import Candidates
    from cp_resources.champion import ConfigurationStore
    from cp_resources.gate_results import GateResults

    day = day_of(context)
    store = ConfigurationStore(database)
    in_force = store.in_force_before(day, configuration.files)
    candidates = Candidates(database)
    outcomes = observations.window(day, in_force.policies.learning.window_days)
    evidence = candidates.make(day, in_force, outcomes)
    changes = evidence.candidate.changes
    candidate = in_force.files.with_learned(evidence.candidate.learned) if changes else in_force
    store.remember(in_force)
    version = store.remember(candidate)
    verdicts = judge(evidence, in_force.content_hash)
    candidates.write(day, version, in_force.content_hash, changes, context.run_id)
    if changes:
        store.challenge(version)
        GateResults(database).write(version, day, verdicts, context.run_id)
    largest = sorted(changes, key=lambda change: change.share, reverse=True)[:20]
    yield MaterializeResult(
        metadata={
            "dagster/row_count": len(changes),
            "configuration": version,
            "in force": in_force.content_hash,
            "outcomes learned from": len(evidence.earlier),
            "outcomes judged by": len(evidence.later),
            "gates": table(
                ["gate", "passed", "finding"],
                [(each.gate, "yes" if each.has_passed else "NO", each.says) for each in verdicts],
            ),
            "largest changes": table(
                ["number", "before", "found", "after"],
                [(change.key, change.before, change.found, change.after) for change in largest],
            ),
            "changes": bars(
                {change.key: 100 * change.share for change in largest[:12]},
                title="Largest changes",
                axis="% of the number",
            ),
        },
        check_results=[_result(each, day) for each in verdicts],
    )


def _result(verdict: "Verdict", day: date) -> AssetCheckResult:
    return AssetCheckResult(
        check_name=verdict.gate,
        asset_key="candidate_config",
        passed=verdict.has_passed,
        severity=AssetCheckSeverity.WARN,
        metadata={"finding": verdict.says, "against": verdict.against, "looked at": str(day)},
    )
