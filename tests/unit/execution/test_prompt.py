"""What a chat model is asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.evidence import parse_evidence
from cp_core.execution.prompt import (
    EARLIER_WORK_LIMIT,
    INSTRUCTIONS,
    Prompt,
    PromptPolicy,
    chat_prompt,
    output_limit,
)


@given(st.text(), st.text(), st.text(), st.lists(st.text()))
def test_the_instructions_come_first_and_are_the_same_for_every_task(
    title: str, description: str, workspace: str, labels: list[str]
) -> None:
    prompt = chat_prompt(title, description, workspace, labels)

    assert prompt.system == INSTRUCTIONS
    assert title in prompt.user
    assert description in prompt.user


def test_the_task_is_quoted_with_all_that_is_known_of_it() -> None:
    prompt = chat_prompt("Fix login", "It loops.\nSometimes.", "acme/web", ["bug", "urgent"])

    assert prompt.user == (
        "<task>\nTitle: Fix login\nWorkspace: acme/web\nLabels: bug, urgent\n\nIt loops.\nSometimes.\n</task>"
    )


def test_what_varies_least_stands_first() -> None:
    policy = PromptPolicy(system="House rules.", workspaces={"acme/web": "Use tabs."})
    first = chat_prompt("Fix login", "It loops.", "acme/web", [], policy=policy)
    second = chat_prompt("Add logout", "None yet.", "acme/web", ["new"], policy=policy)
    elsewhere = chat_prompt("Fix login", "It loops.", "acme/api", [], policy=policy)

    assert first.prefix == second.prefix
    assert first.prefix.startswith(f"House rules.\n\n{INSTRUCTIONS}")
    assert "Use tabs." in first.shared
    assert first.stable == (first.system, first.shared)
    assert (elsewhere.system, elsewhere.shared) == (first.system, "")
    assert first.characters == len(first.system) + 2 + len(first.shared) + len(first.user)


def test_earlier_work_that_is_handed_on_stands_after_the_task_and_is_cut() -> None:
    plain = chat_prompt("Fix login", "It loops.", "acme/web", [])
    informed = chat_prompt("Fix login", "It loops.", "acme/web", [], earlier_work="x" * 30_000)

    assert informed.system == plain.system
    assert informed.user.startswith(plain.user)
    assert informed.user.endswith(f"<earlier_work>\n{'x' * EARLIER_WORK_LIMIT}\n</earlier_work>")


def test_the_instructions_show_evidence_that_the_parser_reads() -> None:
    assert parse_evidence(INSTRUCTIONS) is not None


def limit(
    expected_high: float, *, characters: int = 300, max_output: int = 8_000, context: int = 100_000
) -> int:
    return output_limit(
        Prompt("", "x" * characters),
        expected_high=expected_high,
        headroom=3.0,
        floor=4096,
        max_output_tokens=max_output,
        context_window=context,
    )


def test_the_output_limit_leaves_headroom_above_the_estimate() -> None:
    assert limit(2_000) == 6_000


def test_the_output_limit_is_never_below_the_floor_unless_the_model_is() -> None:
    assert limit(10) == 4_096
    assert limit(10, max_output=1_000) == 1_000


def test_the_output_limit_stays_within_model_and_context() -> None:
    assert limit(50_000) == 8_000
    assert (
        limit(50_000, characters=18_000, context=10_000) == 4_000
    )  # 6,000 tokens of prompt at three characters
    assert limit(50_000, characters=60_000, context=10_000) == 1
