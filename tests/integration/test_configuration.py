"""Configuration files: what a person is told when one is wrong, and which versions are remembered."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cp_core.models.registry import ModelRegistry
from cp_core.policy.policies import Policies
from cp_core.scoring.config import ScoringConfig
from cp_resources.configuration import ConfigurationError, load_configuration
from cp_resources.database import Database

SHIPPED = Path(__file__).parents[2] / "config"


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    """A copy of the shipped configuration."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "config"))


def _edit(path: Path, old: str, new: str) -> int:
    """Replace the first `old` and return its line."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def _error(config_dir: Path) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_configuration(config_dir)
    return str(raised.value)


def test_a_misspelt_key_is_named_with_file_line_path_and_the_right_spelling(config_dir: Path) -> None:
    line = _edit(config_dir / "models.yaml", "    tier: premium", "    teir: premium")
    error = _error(config_dir)
    assert f"{config_dir / 'models.yaml'}:{line}: models.claude-opus-5-5.teir: unknown key" in error
    assert "did you mean 'tier'?" in error
    assert "models.claude-opus-5-5.tier: this key is needed and is missing" in error


@pytest.mark.parametrize(
    ("file", "old", "new", "path", "says"),
    [
        (
            "models.yaml",
            "provider: anthropic",
            "provider: antropic",
            "models.claude-opus-5-5.provider",
            "'anthropic'?",
        ),
        (
            "models.yaml",
            "input_usd_per_million: 4\n",
            "input_usd_per_million: -4\n",
            "models.claude-opus-5-5.input_usd_per_million",
            "(seen: -4)",
        ),
        (
            "models.yaml",
            "tokens: 30_000_000",
            "tokens: lots",
            "subscriptions.claude-max.windows[0].tokens",
            "(seen: 'lots')",
        ),
        (
            "models.yaml",
            "infrastructure: 0.80",
            "infrastucture: 0.80",
            "models.claude-opus-5-5.capability.infrastucture",
            "'infrastructure'",
        ),
        ("policies.yaml", "strategy: tiered", "strategy: tierd", "assignment.strategy", "'tiered'"),
        (
            "policies.yaml",
            "strategy: tiered",
            "stratgy: tiered",
            "assignment.stratgy",
            "did you mean 'strategy'?",
        ),
        ("policies.yaml", "execution:", "exekution:", "exekution", "did you mean 'execution'?"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_path_and_what_is_allowed(
    config_dir: Path, file: str, old: str, new: str, path: str, says: str
) -> None:
    line = _edit(config_dir / file, old, new)
    error = _error(config_dir)
    assert f"{config_dir / file}:{line}: {path}: " in error
    assert says in error


def test_a_key_that_stands_twice_is_refused_where_yaml_would_keep_the_last(config_dir: Path) -> None:
    path = config_dir / "models.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "\nbudgets:\n  api: {window: daily, usd: 1}\n")
    line = len(path.read_text(encoding="utf-8").splitlines()) - 1
    assert f"{path}:{line}: budgets: this key stands here a second time" in _error(config_dir)


def test_a_key_in_the_wrong_place_never_shows_its_value(config_dir: Path) -> None:
    _edit(config_dir / "models.yaml", "api_key_env: ANTHROPIC_API_KEY", "api_key_env: sk-ant-secret")
    error = _error(config_dir)
    assert "providers.anthropic.api_key_env: the NAME of an environment variable" in error
    assert "sk-ant-secret" not in error
    _edit(config_dir / "models.yaml", "api_key_env: sk-ant-secret", "api_key: sk-ant-secret")
    error = _error(config_dir)
    assert "unknown key: did you mean 'api_key_env'?" in error
    assert "sk-ant-secret" not in error


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "the whole file: a mapping of keys is needed"),
        ("providers: [\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("providers: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(config_dir: Path, content: str, says: str) -> None:
    (config_dir / "models.yaml").write_text(content)
    error = _error(config_dir)
    assert error.startswith(str(config_dir / "models.yaml"))
    assert says in error


def test_a_file_that_is_not_text_is_refused(config_dir: Path) -> None:
    (config_dir / "scoring.yaml").write_bytes(b"a: \xff\n")
    assert "scoring.yaml is not UTF-8 text (byte 3)" in _error(config_dir)


@pytest.mark.parametrize("file", ["models.yaml", "scoring.yaml", "policies.yaml"])
def test_a_missing_file_is_named_with_the_setting_that_says_where_to_look(
    config_dir: Path, file: str
) -> None:
    (config_dir / file).unlink()
    error = _error(config_dir)
    assert str(config_dir / file) in error
    assert "CP_CONFIG_DIR" in error


def test_the_hash_follows_what_is_said_and_not_how_it_is_written(config_dir: Path) -> None:
    shipped = load_configuration(SHIPPED)
    models = config_dir / "models.yaml"
    models.write_text("# another comment\n" + models.read_text(encoding="utf-8"), encoding="utf-8")
    _edit(models, "input_usd_per_million: 4\n", "input_usd_per_million: 4.00\n")
    assert load_configuration(config_dir).content_hash == shipped.content_hash
    _edit(models, "input_usd_per_million: 4.00\n", "input_usd_per_million: 4.01\n")
    assert load_configuration(config_dir).content_hash != shipped.content_hash


def test_the_hash_is_the_same_in_every_process() -> None:
    program = (
        "from pathlib import Path; from cp_resources.configuration import load_configuration;"
        f"print(load_configuration(Path({str(SHIPPED)!r})).content_hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {load_configuration(SHIPPED).content_hash}


def test_a_version_is_remembered_once_and_can_be_read_back(database: Database) -> None:
    configuration = load_configuration(SHIPPED)
    for _ in range(2):
        with database.transaction() as connection:
            assert configuration.remember(connection) == configuration.content_hash
    [(content_hash, content)] = database.fetch("SELECT config_hash, content FROM config_versions")
    assert content_hash == configuration.content_hash
    assert ModelRegistry.model_validate(content["models"]) == configuration.registry
    assert ScoringConfig.model_validate(content["scoring"]) == configuration.scoring
    assert Policies.model_validate(content["policies"]) == configuration.policies
