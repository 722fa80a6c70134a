"""What a model's name tells the simulator."""

from __future__ import annotations

import pytest

from cp_resources.configuration import load_configuration
from cp_resources.settings import PROJECT_ROOT
from cp_resources.simulator.catalogue import (
    BUDGET,
    MID_PREMIUM,
    MID_RANGE,
    PREMIUM,
    is_openai_reasoning,
    known_model,
)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("claude-opus-4-6", PREMIUM),
        ("gpt-5.5", PREMIUM),
        ("claude-sonnet-4-5-20250929", MID_PREMIUM),
        ("gpt-5.4", MID_PREMIUM),
        ("gemini-2.5-pro", MID_PREMIUM),
        ("o3", MID_PREMIUM),
        ("claude-haiku-4-5", MID_RANGE),
        ("gpt-5.4-mini", MID_RANGE),
        ("gpt-4o", MID_RANGE),
        ("gemini-2.5-flash", MID_RANGE),
        ("gpt-4o-mini", BUDGET),
        ("gpt-5.4-nano", BUDGET),
        ("gemini-2.5-flash-lite", BUDGET),
        ("meta/llama-8b", BUDGET),
        ("acme-1", None),
    ],
)
def test_the_level_follows_the_family(name: str, level: float | None) -> None:
    assert known_model(name).level == level


def test_windows_are_those_of_the_providers() -> None:
    assert known_model("gpt-4o").context_window == 128_000
    assert known_model("claude-sonnet-4-5").context_window == 200_000
    assert known_model("claude-haiku-4-5").max_output_tokens == 64_000


def test_no_bundled_model_is_held_to_less_than_its_registry_says() -> None:
    for model in load_configuration(PROJECT_ROOT / "config").registry.models.values():
        known = known_model(model.api_name)
        assert known.level is not None
        assert known.context_window >= model.context_window
        assert known.max_output_tokens >= model.max_output_tokens


@pytest.mark.parametrize(
    ("name", "reasons"),
    [("gpt-5.4-mini", True), ("o3", True), ("gpt-6.1-sol", True), ("gpt-4o", False), ("gpt-5-chat", False)],
)
def test_openai_reasoning_models_are_known_by_name(name: str, reasons: bool) -> None:
    assert is_openai_reasoning(name) is reasons
