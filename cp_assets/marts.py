"""Group `marts`: the dbt models over what the assets wrote, with dbt's tests as their asset checks."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dagster import AssetCheckSpec, AssetExecutionContext, AssetsDefinition, AssetSpec, ResourceParam
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)

from cp_assets.partitions import ONE_DAY_A_RUN, SUBMISSION_DAYS, day_of
from cp_resources.database import Database
from cp_resources.dbt import credentials, one_at_a_time
from cp_resources.errors import UserError
from cp_resources.settings import Settings


class ManifestMissingError(UserError):
    """The dbt project has not been parsed."""


class MartTranslator(DagsterDbtTranslator):
    """How a dbt model becomes an asset: keyed by schema and name, in one group."""

    def __init__(self) -> None:
        super().__init__(
            # Two tables of the platform may be written by one asset.
            DagsterDbtTranslatorSettings(enable_asset_checks=True, enable_duplicate_source_asset_keys=True)
        )

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> AssetSpec:
        """dagster-dbt's own spec, with the group, the kinds and the bare description."""
        properties = self.get_resource_props(manifest, unique_id)
        materialized = properties.get("config", {}).get("materialized")
        return (
            super()
            .get_asset_spec(manifest, unique_id, project)
            .replace_attributes(
                group_name="marts",
                description=properties.get("description"),
                kinds={"dbt", "postgres", "view" if materialized == "view" else "table"},
            )
        )

    def get_asset_check_spec(
        self,
        asset_spec: AssetSpec,
        manifest: Mapping[str, Any],
        unique_id: str,
        project: DbtProject | None,
    ) -> AssetCheckSpec | None:
        """dagster-dbt's own spec, with the description that the test has in dbt."""
        spec = super().get_asset_check_spec(asset_spec, manifest, unique_id, project)
        if spec is None:
            return None
        return AssetCheckSpec(
            spec.name,
            asset=spec.asset_key,
            description=self.get_resource_props(manifest, unique_id)["description"],
            additional_deps=spec.additional_deps,
            blocking=spec.blocking,
            metadata=spec.metadata,
        )


def build_marts(settings: Settings) -> AssetsDefinition:
    """The marts, from the manifest that `make` prepares. Nothing is parsed here.

    Raises:
        ManifestMissingError: there is no manifest.
    """
    manifest = settings.dbt_project_dir / "target" / "manifest.json"
    if not manifest.exists():
        raise ManifestMissingError(
            f"{manifest} does not exist: run `make setup`, which parses the dbt project, and load again"
        )

    @dbt_assets(
        manifest=manifest,
        name="marts",
        dagster_dbt_translator=MartTranslator(),
        partitions_def=SUBMISSION_DAYS,
        backfill_policy=ONE_DAY_A_RUN,
    )
    def marts(
        context: AssetExecutionContext, dbt: ResourceParam[DbtCliResource], database: ResourceParam[Database]
    ) -> Iterator[Any]:
        """Rewrite one day of every mart, and test it."""
        day = day_of(context)
        arguments = ["build", "--vars", json.dumps({"day": day.isoformat()})]
        with one_at_a_time(database), TemporaryDirectory(prefix="dbt-") as target:
            with credentials(database):
                started = dbt.cli(arguments, context=context, target_path=Path(target))
            yield from started.stream()

    return marts
