"""The thin Dagster resource beside each plain class: what an asset, a check or a sensor asks for by name.

A resource reads the settings when it is used, never when it is defined, so that loading the code location
needs no database, no secret and no network. Nothing else in `cp_resources` imports Dagster.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster import ConfigurableResource, InitResourceContext, ResourceDependency
from dagster_dbt import DbtCliResource

from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.observations import Observations
from cp_resources.settings import Settings


class SettingsResource(ConfigurableResource[Settings]):
    """Settings of this installation, from the environment."""

    def create_resource(self, context: InitResourceContext) -> Settings:
        """Read the environment."""
        return Settings()


class DatabaseResource(ConfigurableResource[Database]):
    """The platform's PostgreSQL database, migrated; the embedded server when none is configured."""

    @contextmanager
    def yield_for_execution(self, context: InitResourceContext) -> Iterator[Database]:
        """Lend the database, and close its connections afterwards."""
        from cp_resources import connect  # loads the migrations: not when the code location is loaded

        with connect.database(Settings()) as database:
            yield database


class ConfigurationResource(ConfigurableResource[Configuration]):
    """What is in force, read once a run: a run keeps what it started with.

    Attributes:
        database: where the champion stands, whose learned numbers lie over what the files say.
    """

    database: ResourceDependency[Database]

    def create_resource(self, context: InitResourceContext) -> Configuration:
        """Read and validate the three files, and lay the champion over them."""
        from cp_resources.champion import ConfigurationStore

        return ConfigurationStore(self.database).in_force(load_configuration(Settings().config_dir))


class ObservationsResource(ConfigurableResource[Observations]):
    """What came of executions: read once a run, so that all assets of it look at the same outcomes."""

    database: ResourceDependency[Database]

    def create_resource(self, context: InitResourceContext) -> Observations:
        """Nothing is read before it is asked for."""
        return Observations(self.database)


def dbt_resource(settings: Settings) -> DbtCliResource:
    """dbt's command line, the one installed beside this Python, on the marts' project."""
    return DbtCliResource(
        project_dir=str(settings.dbt_project_dir),
        profiles_dir=str(settings.dbt_project_dir),
        dbt_executable=str(Path(sys.executable).with_name("dbt")),
    )
