"""The command line as a person meets it: what it lists, how it answers mistakes, how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cp_cli.main import COMMANDS, load


def control_panel(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cp_cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment},
    )


def test_help_lists_every_command_with_what_it_does() -> None:
    shown = control_panel("--help").stdout

    for name, command in COMMANDS.items():
        assert f" {name} " in shown
        assert command.help in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_can_be_loaded(name: str) -> None:
    command = load(name)

    assert command.name == name
    assert command.get_short_help_str()


def test_help_imports_nothing_that_takes_long() -> None:
    probe = (
        "import sys\n"
        "sys.argv = ['control-panel', '--help']\n"
        "from cp_cli.main import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "print('loaded:', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    loaded = shown.rsplit("loaded:", 1)[1].split()

    slow = {"dagster", "pandas", "numpy", "scipy", "sqlalchemy", "alembic", "psycopg", "httpx", "matplotlib"}
    assert not slow & set(loaded)


def test_a_misspelt_command_is_answered_with_the_right_one() -> None:
    done = control_panel("sumbit")

    assert done.returncode == 2
    assert "Did you mean 'submit'?" in done.stderr


def test_an_error_that_a_person_can_mend_is_one_sentence_and_exit_code_2() -> None:
    done = control_panel(
        "db", "current", CP_DATABASE_URL="postgresql://someone:hidden-password@127.0.0.1:1/nothing"
    )

    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot reach the database at 127.0.0.1:1/nothing")
    assert "Traceback" not in done.stderr
    assert "hidden-password" not in done.stderr


def test_a_terminated_command_cleans_up_as_after_an_interrupt() -> None:
    probe = (
        "import cp_cli.main as main, os, signal\n"
        "def ends(*_, **__):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally: print('cleaned up')\n"
        "main.app = ends\n"
        "main.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)

    assert done.stdout == "cleaned up\n"
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
