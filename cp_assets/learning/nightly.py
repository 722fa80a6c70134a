"""What learning assets share: when they run, what they look back on, and where they keep the document of a day."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dagster import AssetDep, AssetExecutionContext, AssetsDefinition, MaterializeResult, asset

from cp_assets.checks import Scope
from cp_assets.learning.performance import performance_metrics
from cp_assets.partitions import LOOKS_BACK, ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_resources.configuration import Configuration
from cp_resources.database import Database

if TYPE_CHECKING:
    from pydantic import BaseModel

    Document = TypeVar("Document", bound=BaseModel)


def nightly(
    name: str, *, kinds: set[str], description: str
) -> Callable[[Callable[..., MaterializeResult[None]]], AssetsDefinition]:
    """An asset that learns from the outcomes of the window that ends with a day."""
    return asset(
        name=name,
        deps=[AssetDep(performance_metrics, partition_mapping=LOOKS_BACK)],
        partitions_def=SUBMISSION_DAYS,
        backfill_policy=ONE_DAY_A_RUN,
        group_name="learning",
        kinds=kinds,
        description=description,
    )


def keep(
    context: AssetExecutionContext, database: Database, configuration: Configuration, found: "BaseModel"
) -> None:
    """Store what an asset found in place of what is stored for its day."""
    from cp_resources.learning_results import LearningResults

    LearningResults(database).write(
        day_of(context),
        context.asset_key.to_user_string(),
        found,
        config_hash=configuration.content_hash,
        run_id=context.run_id,
    )


def kept(scope: Scope, asset: str, document: "type[Document]") -> "Document | None":
    """What an asset found for the day that a check looks at; None where there is nothing, or no one day."""
    from cp_resources.learning_results import LearningResults

    content = scope.day and LearningResults(scope.database).read(scope.day, asset)
    return document.model_validate(content) if content else None
