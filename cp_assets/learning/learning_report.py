"""The report of a night, for whoever was not there."""

from dagster import AssetExecutionContext, MaterializeResult, MetadataValue, ResourceParam, asset

from cp_assets.checks import Check, checks_of
from cp_assets.learning.calibrated_config import calibrated_config
from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.observations import Observations


@asset(
    deps=[calibrated_config],
    partitions_def=SUBMISSION_DAYS,
    backfill_policy=ONE_DAY_A_RUN,
    group_name="learning",
    kinds={"python", "matplotlib", "postgres"},
    description="What was learned, what it would change, which gates it passed and what became of it, in plain words "
    "with plots: a page of HTML and the same as Markdown.",
)
def learning_report(
    context: AssetExecutionContext,
    database: ResourceParam[Database],
    configuration: ResourceParam[Configuration],
    observations: ResourceParam[Observations],
) -> MaterializeResult[None]:
    """Write the day's report from what is stored, in place of an earlier one."""
    from cp_resources.learning_report import LearningReports, as_markdown

    day = day_of(context)
    reports = LearningReports(database)
    outcomes = observations.window(day, configuration.policies.learning.window_days)
    sections = reports.make(day, configuration, outcomes)
    reports.write(day, sections)
    pictures = sum(len(section.pictures) for section in sections)
    return MaterializeResult(
        metadata={
            "dagster/row_count": len(sections),
            "plots": pictures,
            "open it with": f"control-panel report --day {day} --learning --html report.html",
            "report": MetadataValue.md(as_markdown(f"What was learned on {day}", sections)),
        }
    )


learning_report_checks = checks_of(
    "learning_report",
    [
        Check(
            name="the_day_has_a_report",
            description="Every day that has a candidate has a report.",
            search="""
                SELECT day FROM config_candidates WHERE day = coalesce(%(day)s, day)
                  AND NOT EXISTS (SELECT FROM learning_reports WHERE learning_reports.day = config_candidates.day)
            """,
        ),
        Check(
            name="reports_fetch_nothing",
            description="A report is whole by itself: it loads no script and nothing from elsewhere.",
            search="""
                SELECT day FROM learning_reports
                WHERE day = coalesce(%(day)s, day) AND html ~* '<script|(src|href)="https?:'
            """,
        ),
    ],
)
