"""The command line of an agent: filled in without a shell, and its exit codes and usage understood."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.command import (
    UnsafeArgumentError,
    command_line,
    exit_reason,
    reported_usage,
    takes_prompt_file,
)
from cp_core.execution.cost import Usage
from cp_core.tasks.reasons import TRANSIENT, Reason

VALUES = {"prompt_file": "/t/prompt.md", "workspace": "/srv/web", "model": "large-1", "task_id": "t-1"}


def test_placeholders_are_filled_in_as_a_word_and_within_one() -> None:
    template = ("agent", "--in={prompt_file}", "{workspace}", "-m", "{model}", '{"id": "{task_id}"}')

    assert command_line(template, VALUES) == [
        "agent",
        "--in=/t/prompt.md",
        "/srv/web",
        "-m",
        "large-1",
        '{"id": "t-1"}',
    ]


@given(st.text(max_size=40).filter(lambda text: not text.startswith("-")))
def test_whatever_a_value_holds_it_stays_one_word(task_id: str) -> None:
    words = command_line(("agent", "{task_id}", "end"), {**VALUES, "task_id": task_id})

    assert words == ["agent", task_id, "end"]


def test_a_value_is_not_searched_for_placeholders() -> None:
    words = command_line(("agent", "{task_id}"), {**VALUES, "task_id": "{prompt_file}"})

    assert words == ["agent", "{prompt_file}"]


def test_a_value_cannot_become_an_option() -> None:
    with pytest.raises(UnsafeArgumentError, match="--dangerous"):
        command_line(("agent", "{task_id}"), {**VALUES, "task_id": "--dangerous"})
    assert command_line(("agent", "--id={task_id}"), {**VALUES, "task_id": "--x"}) == ["agent", "--id=--x"]


def test_a_template_takes_the_prompt_as_a_file_or_not() -> None:
    assert takes_prompt_file(("agent", "--in={prompt_file}"))
    assert not takes_prompt_file(("agent", "-p"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, None),
        (1, Reason.SERVER_ERROR),
        (64, Reason.INVALID_REQUEST),
        (75, Reason.OVERLOADED),
        (77, Reason.AUTH_FAILED),
        (124, Reason.TIMEOUT),
        (126, Reason.INVALID_REQUEST),
        (127, Reason.INVALID_REQUEST),
        (137, Reason.SERVER_ERROR),
        (-signal.SIGKILL, Reason.SERVER_ERROR),
    ],
)
def test_an_exit_code_says_why(code: int, reason: Reason | None) -> None:
    assert exit_reason(code) is reason


@given(st.integers(-64, -1))
def test_a_command_that_a_signal_ended_may_be_tried_again(code: int) -> None:
    assert exit_reason(code) in TRANSIENT


COUNTS = '{"usage": {"input_tokens": 900, "cached_input_tokens": 400, "output_tokens": 50}}'


@pytest.mark.parametrize(
    "output",
    [
        f"Done.\n{COUNTS}\n\n",
        COUNTS,
        f"Done.\n```usage\n{COUNTS}\n```\n```evidence\n{{}}\n```\n",
        f'```usage\n{{"usage": {{"input_tokens": 1, "output_tokens": 1}}}}\n```\nmore\n```usage\n{COUNTS}\n```',
    ],
)
def test_usage_is_read_from_the_last_line_or_the_last_block(output: str) -> None:
    assert reported_usage(output) == Usage(900, 400, 0, 50)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "Done.",
        f"{COUNTS}\nand one line more",
        '{"usage": {"input_tokens": -1, "output_tokens": 2}}',
        '{"usage": {"input_tokens": 5}}',
        '{"usage": 7}',
        "[1]",
        "[" * 5000,
        '{"usage": {"input_tokens": 1, "output_tokens": 1}, "x": "' + "y" * 10_000 + '"}',
    ],
)
def test_without_a_readable_report_there_is_no_usage(output: str) -> None:
    assert reported_usage(output) is None
