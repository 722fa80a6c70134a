"""What the documents say of the code stands there: tables, tests, commands, and the pages that they lead to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from cp_cli.main import app
from cp_resources import schema

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_the_architecture_names_every_table_and_no_other() -> None:
    _, section = ARCHITECTURE.split("| table | a row is | written by |")
    rows = section.split("\n\n")[0].splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {table.name for table in schema.metadata.sorted_tables}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_leads_only_to_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    files = re.findall(r"`((?:tests|benchmarks|cp_\w+|config|deploy)/[\w/.-]+\.\w+)`", text)
    missing = [link for link in linked if not (page.parent / link).exists()]
    missing += [file for file in files if not (ROOT / file).exists() and "NNNN" not in file]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_commands_that_there_are(page: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    named = re.findall(r"(?m)(?:^\s*|[`/]|\| )control-panel ([a-z][a-z-]+)", page.read_text(encoding="utf-8"))
    assert set(named) <= set(commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_benchmarks_that_there_are(page: Path) -> None:
    named = re.findall(r"python -m benchmarks\.([a-z_]+)", page.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / "benchmarks" / f"{name}.py").exists()]
