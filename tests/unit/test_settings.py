"""Settings as the environment gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cp_resources.settings import PROJECT_ROOT, Settings


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
