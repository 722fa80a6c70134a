"""Settings of this installation, read from the environment (prefix CP_)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Where the platform keeps its data, its configuration and its database.

    Every field is set by the environment variable CP_<FIELD>, in upper case.
    """

    model_config = SettingsConfigDict(env_prefix="CP_", env_ignore_empty=True, extra="ignore")

    home: Path = Field(
        default=PROJECT_ROOT / ".control-panel",
        description="Folder of the embedded database, Dagster's home and the task inbox.",
    )
    config_dir: Path = Field(
        default=PROJECT_ROOT / "config", description="Folder of models.yaml, scoring.yaml and policies.yaml."
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="postgresql://user:password@host:port/database. Without it the embedded server is used.",
    )
    dagster_database_url: SecretStr | None = Field(
        default=None,
        description="Dagster's own storage. Without it: database 'dagster' on the same server.",
    )
    inbox_dir: Path | None = Field(
        default=None, description="Folder that task_inbox_sensor watches. Default: <home>/inbox."
    )
    simulator_url: str | None = Field(
        default=None,
        description="Send every provider's calls to the simulator at this address instead.",
    )
    dbt_project_dir: Path = Field(
        default=PROJECT_ROOT / "dbt_project", description="The dbt project of the marts."
    )
    timezone: str = Field(
        default="UTC",
        description="Time zone of daily_learning_schedule: it runs at 02:00 there. Such as Europe/Berlin.",
    )

    @field_validator("home", "config_dir", "inbox_dir", "dbt_project_dir")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        """Other processes, with working folders of their own, are told these paths."""
        return folder and folder.expanduser().resolve()

    @property
    def inbox(self) -> Path:
        """The folder that task_inbox_sensor watches."""
        return self.inbox_dir or self.home / "inbox"

    @property
    def dagster_home(self) -> Path:
        """DAGSTER_HOME of processes started by `control-panel up`."""
        return self.home / "dagster"
