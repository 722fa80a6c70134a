"""What is in force after the night: the candidate, if every gate's stored result says so for its very hash."""

from dagster import AssetExecutionContext, MaterializeResult, ResourceParam, asset

from cp_assets.checks import Check, checks_of
from cp_assets.learning.candidate_config import candidate_config
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_assets.presentation import bars, table
from cp_resources.configuration import Configuration
from cp_resources.database import Database


@asset(
    deps=[candidate_config],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="learning",
    kinds={"python", "postgres"},
    description="The configuration in force after the night. The candidate is promoted only when every gate has a "
    "stored pass for its content hash against what is in force; otherwise a refusal is kept.",
)
def calibrated_config(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
) -> MaterializeResult[None]:
    """Read the stored results again, and move the pointers or keep the refusal."""
    from cp_resources.promotion import settle_night

    day = day_of(context)
    outcome = settle_night(database, configuration.files, day)
    return MaterializeResult(
        metadata={
            "dagster/row_count": outcome.changes if outcome.was_promoted else 0,
            "outcome": outcome.says,
            "in force": outcome.in_force,
            "candidate": outcome.candidate or "none",
            "gates not passed": table(["gate"], [(each,) for each in outcome.lacking]),
            "gates": bars(
                {"passed": float(outcome.passed), "not passed": float(len(outcome.lacking))},
                title="Gates of the candidate",
                axis="gates",
            ),
        }
    )


calibrated_config_checks = checks_of(
    "calibrated_config",
    [
        Check(
            name="champion_is_what_was_promoted_last",
            description="The pointer to the champion stands where the last promotion or rollback put it.",
            search="""
                SELECT pointed.config_hash AS champion, last.to_hash AS promoted_last
                FROM (SELECT config_hash FROM config_pointers WHERE name = 'champion') AS pointed
                FULL JOIN (
                    SELECT to_hash FROM promotions WHERE action IN ('promote', 'rollback') ORDER BY id DESC LIMIT 1
                ) AS last ON true
                WHERE pointed.config_hash IS DISTINCT FROM last.to_hash
            """,
        ),
        Check(
            name="nothing_was_promoted_past_a_gate",
            description="Every night's promotion has a stored pass of every gate for exactly the version it promoted.",
            search="""
                SELECT p.id, p.to_hash, p.promoted_at, g.gate
                FROM promotions p JOIN gate_results g ON g.config_hash = p.to_hash
                WHERE p.action = 'promote' AND p."by" = 'calibrated_config' AND NOT g.has_passed
                  AND g.judged_at <= p.promoted_at
                  AND NOT EXISTS (
                      SELECT FROM gate_results later
                      WHERE later.config_hash = g.config_hash AND later.gate = g.gate AND later.id > g.id
                        AND later.judged_at <= p.promoted_at
                  )
            """,
        ),
    ],
)
