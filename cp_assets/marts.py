"""Group `marts`: the dbt models over what the assets wrote, with dbt's tests as their asset checks."""

import json
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dagster import (
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    Output,
    ResourceParam,
)
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)
from psycopg.sql import SQL, Identifier

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
        """Rewrite one day of the selected marts, and test it. A test that is run alone looks at every day."""
        arguments = ["build"]
        if context.has_partition_key:
            arguments += ["--vars", json.dumps({"day": day_of(context).isoformat()})]
        with one_at_a_time(database), TemporaryDirectory(prefix="dbt-") as target:
            with credentials(database):
                started = dbt.cli(arguments, context=context, target_path=Path(target))
            for event in started.stream():
                if isinstance(event, Output) and context.has_partition_key:
                    key = context.asset_key_for_output(event.output_name)
                    rows = _rows_of_day(database, key, day_of(context))
                    context.add_output_metadata({"dagster/row_count": rows}, event.output_name)
                yield event

    return marts


def _rows_of_day(database: Database, key: AssetKey, day: date) -> int:
    """Rows that a mart or a staging view, keyed by schema and name, has for a day."""
    query = SQL("SELECT count(*) FROM {} WHERE submission_day = %s").format(Identifier(*key.path))
    with database.transaction() as connection:
        [(rows,)] = connection.execute(query, [day]).fetchall()
    return int(rows)
