"""The hidden truth behind the simulator's answers, and what a learner can find in it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.evidence import Evidence, parse_evidence
from cp_core.execution.quality import quality_score
from cp_resources.simulator.answers import answer_text
from cp_resources.simulator.truth import (
    DOMAINS,
    Draws,
    attempt_truth,
    model_truth,
    read_domain,
    read_size,
    success_probability,
    task_truth,
)

TASKS = [
    f"Title: Case {i}\n\nThe export of report {i} fails when the customer has no address." for i in range(600)
]


def _share(model: str, seed: int = 7) -> float:
    return statistics.mean(attempt_truth(seed, model, text, "1").succeeded for text in TASKS)


def test_an_attempt_is_the_same_whatever_was_drawn_before() -> None:
    first = attempt_truth(7, "claude-sonnet-4-6", TASKS[0], "1")
    for text in reversed(TASKS[:50]):
        attempt_truth(7, "gpt-5.4", text, "2")
    assert attempt_truth(7, "claude-sonnet-4-6", TASKS[0], "1") == first


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    program = (
        "from cp_resources.simulator.truth import attempt_truth\n"
        "print([attempt_truth(7, 'gpt-5.4', f'Fix bug {i} 🐛', '1') for i in range(20)])"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [attempt_truth(7, "gpt-5.4", f"Fix bug {i} 🐛", "1") for i in range(20)]
    assert elsewhere.stdout.strip() == str(here)


@pytest.mark.parametrize(
    ("seed", "model", "text", "attempt"),
    [
        (8, "gpt-5.4", "a task", "1"),
        (7, "gpt-5.5", "a task", "1"),
        (7, "gpt-5.4", "a Task", "1"),
        (7, "gpt-5.4", "a task", "2"),
    ],
)
def test_seed_model_text_and_attempt_each_change_the_result(
    seed: int, model: str, text: str, attempt: str
) -> None:
    base = attempt_truth(7, "gpt-5.4", "a task", "1")
    assert attempt_truth(seed, model, text, attempt).input_tokens != base.input_tokens


def test_success_probability_is_the_logistic_of_the_gap() -> None:
    assert success_probability(0.5, 0.5) == 0.5
    assert success_probability(1.0, 0.0) == pytest.approx(0.802184, abs=1e-6)  # 1 / (1 + e^-1.4)
    assert success_probability(0.0, 1.0) == pytest.approx(0.197816, abs=1e-6)


def test_attempts_succeed_as_often_as_their_probability_says() -> None:
    truths = [attempt_truth(7, "claude-haiku-4-5", text, "1") for text in TASKS]
    expected = statistics.mean(truth.probability for truth in truths)
    deviation = (expected * (1 - expected) / len(truths)) ** 0.5
    assert abs(statistics.mean(truth.succeeded for truth in truths) - expected) < 4 * deviation


def test_higher_tiers_succeed_more_often_under_any_seed() -> None:
    tiers = {
        "premium": ("claude-opus-5-5", "gpt-6-astra"),
        "mid": ("gemini-3.8-flash", "deepseek-v4-pro"),
        "budget": ("gpt-6-luna", "claude-haiku-5-5"),
    }
    rates = {
        tier: statistics.mean(_share(model, seed) for model in models for seed in range(5))
        for tier, models in tiers.items()
    }
    assert rates["premium"] > rates["mid"] + 0.05
    assert rates["mid"] > rates["budget"] + 0.05


def test_a_model_can_be_better_in_one_domain_than_a_higher_tier() -> None:
    budget = ["gpt-6-luna", "claude-haiku-5-5", "gemini-3.5-flash-lite", "qwen3.8-flash"]
    middle = ["gpt-6.1-terra", "gemini-3.8-flash", "deepseek-v4-pro", "qwen3.8-max"]
    upsets = [
        (low, high, domain)
        for domain in DOMAINS
        for low in budget
        for high in middle
        if model_truth(7, low).skill[domain] > model_truth(7, high).skill[domain]
    ]
    assert 0 < len(upsets) < len(DOMAINS) * len(budget) * len(middle) / 2


def test_a_name_nobody_has_heard_of_has_a_skill_of_its_own() -> None:
    assert model_truth(7, "acme-1").skill == model_truth(7, "acme-1").skill
    assert model_truth(7, "acme-1").skill != model_truth(7, "acme-2").skill


def test_a_retry_of_the_same_model_helps_less_than_a_fresh_start_would() -> None:
    firsts = [attempt_truth(7, "gpt-6-luna", text, "1") for text in TASKS]
    seconds = [attempt_truth(7, "gpt-6-luna", text, "2") for text in TASKS]
    after_failure = [b.succeeded for a, b in zip(firsts, seconds, strict=True) if not a.succeeded]
    assert 0 < statistics.mean(after_failure) < statistics.mean(b.succeeded for b in seconds) - 0.1


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Roll out the Helm chart to the Kubernetes cluster and raise the ingress limits", "infrastructure"),
        ("The webhook handler must be idempotent; retries create a second invoice", "backend"),
        ("The modal covers the button on narrow screens in Safari", "frontend"),
        ("Retrain the ranker with the new embeddings and compare NDCG", "ml"),
        ("Flaky Playwright test: replace the fixed wait in the fixture", "testing"),
        ("Fix typos in the quickstart guide and the README", "documentation"),
        ("Something else entirely", "backend"),
    ],
)
def test_the_domain_is_read_from_the_words(text: str, domain: str) -> None:
    assert read_domain(text) == domain


def test_words_and_stated_files_move_the_size() -> None:
    small = "Fix a typo in the readme"
    plain = "Return an error when the order has no lines"
    large = "Redesign the architecture and migrate all consumers to the new protocol"
    assert read_size(small) < read_size(plain) < read_size(large)
    assert read_size(f"{plain}. About 25 files.") > read_size(plain) > read_size(f"{plain}. Files: 1")


def test_larger_tasks_are_harder_and_take_more_tokens() -> None:
    def typical(text: str) -> tuple[float, float]:
        truths = [attempt_truth(7, "gpt-5.4", f"{text} Case {i}.", "1") for i in range(200)]
        return (
            statistics.median(truth.input_tokens for truth in truths),
            statistics.mean(truth.task.difficulty for truth in truths),
        )

    small = typical("Fix a typo in the readme.")
    large = typical("Redesign the architecture and migrate all distributed consumers.")
    assert large[0] > 4 * small[0]
    assert large[1] > small[1] + 0.8


def test_tokens_have_a_heavy_tail() -> None:
    tokens = [attempt_truth(7, "gpt-5.4", text, "1").input_tokens for text in TASKS]
    assert 1.2 < statistics.mean(tokens) / statistics.median(tokens) < 1.9


def test_models_differ_in_how_many_tokens_the_same_work_takes_them() -> None:
    medians = [
        statistics.median(attempt_truth(7, model, text, "1").input_tokens for text in TASKS)
        for model in ("gpt-5.4", "claude-opus-5-5", "gemini-3.8-flash", "gpt-6-luna")
    ]
    assert max(medians) > 1.2 * min(medians)


def test_evidence_of_good_work_is_good_enough_and_of_failed_work_is_not() -> None:
    for model in ("claude-opus-5-5", "gpt-6-luna"):
        for text in TASKS:
            truth = attempt_truth(7, model, text, "1")
            quality = quality_score(Evidence(**asdict(truth.evidence)))
            assert (quality >= 6.0) == truth.succeeded


def test_the_answer_carries_the_evidence_unless_it_is_malformed() -> None:
    malformed = 0
    for text in TASKS:
        truth = attempt_truth(7, "gpt-5.4", text, "1")
        parsed = parse_evidence(answer_text(truth, "gpt-5.4", "1"))
        if truth.malformed:
            malformed += 1
            assert parsed is None
        else:
            assert parsed == Evidence(**asdict(truth.evidence))
    assert 0 < malformed < 0.05 * len(TASKS)


@given(st.text(max_size=400), st.text(max_size=30), st.integers(-(2**70), 2**70))
def test_any_text_model_and_seed_has_a_truth(text: str, model: str, seed: int) -> None:
    truth = attempt_truth(seed, model, text, "1")
    assert 0 < truth.probability < 1
    assert truth.input_tokens > 0
    assert truth.output_tokens > 0
    assert truth.task == task_truth(seed, text)
    assert answer_text(truth, model, "1")


@given(st.integers(), st.text(max_size=20))
def test_draws_lie_strictly_between_0_and_1(seed: int, key: str) -> None:
    draws = Draws(seed, key)
    assert all(0 < draws.uniform() < 1 for _ in range(40))


def test_draws_are_spread_evenly() -> None:
    draws = Draws(1, "even")
    numbers = [draws.uniform() for _ in range(4000)]
    tenths = [sum(i / 10 <= number < (i + 1) / 10 for number in numbers) for i in range(10)]
    assert all(320 < tenth < 480 for tenth in tenths)  # 400 +- 4.2 standard deviations
