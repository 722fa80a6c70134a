"""Settings of this installation, read from the environment (prefix CP_)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cp_resources.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class SettingsError(UserError):
    """A variable of the environment holds what cannot be used. The text names it."""


class Settings(BaseSettings):
    """Where the platform keeps its data, its configuration and its database.

    Every field is set by the environment variable CP_<FIELD>, in upper case.

    Raises:
        SettingsError: a field's value cannot be used.
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
    redis_url: SecretStr | None = Field(
        default=None,
        description="redis://:password@host:port/0. With it, runs are executed by `control-panel worker`.",
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

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            raise SettingsError(
                "\n".join(
                    f"CP_{str(problem['loc'][0]).upper()}: {problem['msg'].removeprefix('Value error, ')}"
                    for problem in problems
                )
            ) from None

    @field_validator("home", "config_dir", "inbox_dir", "dbt_project_dir")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        """Other processes, with working folders of their own, are told these paths."""
        try:
            return folder and folder.expanduser().resolve()
        except RuntimeError:
            raise ValueError(f"{folder} names no folder: there is no such user") from None

    @field_validator("simulator_url")
    @classmethod
    def _web_address(cls, url: str | None) -> str | None:
        if url is not None and not (urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname):
            raise ValueError(f"{url!r} is no address of a simulator, such as http://127.0.0.1:8790")
        return url

    @field_validator("timezone")
    @classmethod
    def _known_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name!r} is no time zone, such as UTC or Europe/Berlin") from None
        return name

    @property
    def inbox(self) -> Path:
        """The folder that task_inbox_sensor watches."""
        return self.inbox_dir or self.home / "inbox"

    @property
    def dagster_home(self) -> Path:
        """DAGSTER_HOME of processes started by `control-panel up`."""
        return self.home / "dagster"
