"""Settings as the environment gives them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cp_cli.demo import demo_settings
from cp_resources.settings import PROJECT_ROOT, Settings, SettingsError


def test_a_relative_home_is_the_same_folder_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CP_HOME", "data")

    assert Settings().home == tmp_path / "data"
    assert Settings().dagster_home == tmp_path / "data" / "dagster"
    assert Settings().inbox == tmp_path / "data" / "inbox"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CP_DATABASE_URL", "")

    assert Settings().database_url is None


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CP_DATABASE_URL", "postgresql://user:secret@host/database")

    assert "secret" not in repr(Settings())


def test_without_any_variable_everything_is_in_the_projects_folder() -> None:
    assert Settings().home == PROJECT_ROOT / ".control-panel"
    assert Settings().config_dir == PROJECT_ROOT / "config"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CP_TIMEZONE", "Mars/Olympus", "CP_TIMEZONE: 'Mars/Olympus' is no time zone"),
        ("CP_TIMEZONE", "../../etc/passwd", "CP_TIMEZONE: '../../etc/passwd' is no time zone"),
        ("CP_SIMULATOR_URL", "localhost:8790", "CP_SIMULATOR_URL: 'localhost:8790' is no address"),
        ("CP_HOME", "~no-such-user/data", "CP_HOME: ~no-such-user/data names no folder"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError, match=f"^{re.escape(said)}"):
        Settings()


def test_the_demo_touches_neither_the_database_nor_the_inbox_of_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CP_HOME", str(tmp_path))
    monkeypatch.setenv("CP_INBOX_DIR", str(tmp_path / "inbox of others"))
    monkeypatch.setenv("CP_DATABASE_URL", "postgresql://user:secret@host/database")
    monkeypatch.setenv("CP_DAGSTER_DATABASE_URL", "postgresql://user:secret@host/dagster")

    settings = demo_settings()

    assert settings.inbox == tmp_path / "demo" / "inbox"
    assert settings.database_url is settings.dagster_database_url is None
