"""`control-panel backfill`, where there is nobody to launch anything. tests/e2e/test_daemon.py has it succeed."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cp_cli.main import app
from cp_resources.errors import UserError
from cp_resources.ports import free_port


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["process_queue", "--from", "2026-03-02"], "does not answer at http://127.0.0.1:"),
        (
            ["daily_learning", "--from", "2026-03-02", "--to", "2026-03-01"],
            "--to 2026-03-01 lies before --from 2026-03-02",
        ),
    ],
)
def test_what_cannot_be_launched_is_said_in_one_sentence(arguments, says):
    result = CliRunner().invoke(app, ["backfill", *arguments, "--port", str(free_port())])
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
