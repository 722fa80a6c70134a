"""What holds for every batch, whatever the tasks, the models and what remains of the quota."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from math import ceil
from operator import itemgetter

from hand_made import MODELS, NOW, accounts, frame, registry, task
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_core.assignment.decision import Decision, Outcome
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.tiered import assign_tiered
from cp_core.models.registry import Funding, Model, ModelRegistry
from cp_core.quota.account import Account
from cp_core.scoring.config import Domain
from cp_core.tasks.reasons import Reason

POLICY = AssignmentPolicy()
WRITTEN_TIERS = [
    (90, ["premium"]),
    (75, ["premium", "mid-premium"]),
    (60, ["mid-premium", "mid-range"]),
    (40, ["mid-range", "budget"]),
    (0, ["budget"]),
]

scores = st.floats(0, 100) | st.sampled_from([39.999, 40, 59.999, 60, 74.999, 75, 89.999, 90, 100])
tokens = st.floats(1, 300_000)


@st.composite
def tasks(draw: st.DrawFn, *, most: int = 12) -> list[dict]:
    return [
        task(
            number,
            draw(scores),
            domain=draw(st.sampled_from([*Domain, "astrology"])),
            input_mean=draw(tokens),
            input_high=draw(tokens),
            output_mean=draw(st.floats(1, 60_000)),
            output_high=draw(st.floats(1, 60_000)),
            deadline=draw(st.none() | st.sampled_from([NOW + timedelta(seconds=s) for s in (-1, 0, 5, 99)])),
            failed_models=draw(st.none() | st.lists(st.sampled_from(sorted(MODELS)), max_size=3)),
            dependencies_failed=draw(st.sampled_from([None, None, None, ["X"]])),
            dependencies_pending=draw(st.sampled_from([None, None, None, ["Y"]])),
        )
        for number in range(1, draw(st.integers(1, most)) + 1)
    ]


@st.composite
def registries(draw: st.DrawFn) -> ModelRegistry:
    changes = {
        name: {
            "enabled": draw(st.booleans() | st.just(True)),
            "context_window": draw(st.sampled_from([60_000, 200_000, 1_000_000])),
            "capability": dict.fromkeys(Domain, draw(st.sampled_from([0.0, 0.3, 0.6, 0.9]))),
        }
        for name in MODELS
    }
    has_subscription = draw(st.booleans())
    return registry(
        subscription=has_subscription, budget=not has_subscription or draw(st.booleans()), **changes
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[dict], ModelRegistry, list[Account]]:
    models = draw(registries())
    held = {
        "five_hour": draw(st.integers(0, 1_000_000)),
        "weekly": draw(st.integers(0, 4_000_000)),
        "api": draw(st.floats(0, 100)),
    }
    return draw(tasks()), models, accounts(models, **held)


def decide(rows: list[dict], models: ModelRegistry, held: list[Account]) -> list[Decision]:
    return assign_tiered(frame(*rows), models, held, POLICY, now=NOW)


@settings(deadline=None)
@given(situations())
def test_every_assignment_conforms_to_the_written_policy_and_to_what_remains(situation):
    rows, models, held = situation
    task_by_number = {row["task"]: row for row in rows}
    remaining = {account.account: account.available for account in held}
    limit = {account.account: account.limit for account in held}
    decisions = decide(rows, models, held)
    assert sorted(decision.task for decision in decisions) == sorted(task_by_number)
    for decision in decisions:
        one = task_by_number[decision.task]
        assert (decision.outcome is Outcome.ASSIGNED) == (decision.reason is None)
        if decision.outcome is not Outcome.ASSIGNED:
            continue
        model = models.model(decision.model)
        assert str(model.tier) in allowed_tiers(one["value_score"])
        assert one["input_high"] + one["output_high"] <= 0.95 * model.context_window
        assert one["output_high"] <= model.max_output_tokens
        for account, amount in decision.amounts.items():
            assert one["value_score"] >= 90 or remaining[account] * 2 > limit[account]
            remaining[account] -= amount
            assert remaining[account] >= 0


@settings(deadline=None)
@given(situations())
def test_a_plain_reading_of_the_policy_gives_the_same_assignments(situation):
    rows, models, held = situation
    assert [
        (decision.task, decision.model, decision.funding) for decision in decide(rows, models, held)
    ] == list(plain_reading(rows, models, held))


@settings(deadline=None)
@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(situation, random):
    rows, models, held = situation
    shuffled = random.sample(rows, len(rows))
    assert decide(shuffled, models, held) == decide(rows, models, held)


@settings(deadline=None)
@given(situations())
def test_a_task_is_never_affected_by_one_that_is_served_after_it(situation):
    rows, models, held = situation
    decisions = decide(rows, models, held)
    last = decisions[-1].task
    rest = [row for row in rows if row["task"] != last]
    assert (decide(rest, models, held) if rest else []) == decisions[:-1]


@settings(deadline=None)
@given(situations())
def test_every_model_is_either_possible_or_excluded_for_a_reason(situation):
    rows, models, held = situation
    for decision in decide(rows, models, held):
        if "excluded" in decision.explanation:
            possible = {pair["model"] for pair in decision.explanation["candidates"]}
            excluded = {model for entry in decision.explanation["excluded"] for model in entry["models"]}
            assert possible | excluded == {name for name in models.models if models.fundings(name)}
            assert all(Reason(entry["reason"]) for entry in decision.explanation["excluded"])
        json.dumps(decision.explanation)


def allowed_tiers(score: float) -> list[str]:
    return next(tiers for at_least, tiers in WRITTEN_TIERS if score >= at_least)


def plain_reading(
    rows: list[dict], models: ModelRegistry, held: list[Account]
) -> Iterator[tuple[int, str | None, str | None]]:
    """The policy once more, one task and one model at a time, in dollars and tokens."""
    remaining = {account.account: account.available for account in held}
    limit = {account.account: account.limit for account in held}
    far = NOW + timedelta(days=9)
    for one in sorted(rows, key=lambda row: (-row["value_score"], row["deadline"] or far, row["task"])):
        choices = []
        for name, model in models.models.items():
            for funding in models.fundings(name) if is_possible(one, model) else ():
                price = price_usd(one, model)
                need = price if funding.unit == "usd" else ceil(one["input_mean"] + one["output_mean"])
                payable = all(
                    remaining[account] >= need
                    and (one["value_score"] >= 90 or remaining[account] * 2 > limit[account])
                    for account in funding.accounts
                )
                if payable and all(limit[account] >= need for account in funding.accounts):
                    choices.append((preference(one, model, funding, price), name, funding, need))
        if not choices:
            yield one["task"], None, None
            continue
        _, name, funding, need = min(choices, key=itemgetter(0))
        for account in funding.accounts:
            remaining[account] -= need
        yield one["task"], name, funding.name


def is_possible(one: dict, model: Model) -> bool:
    return (
        not one["dependencies_failed"]
        and not one["dependencies_pending"]
        and (one["deadline"] is None or one["deadline"] >= NOW + timedelta(seconds=30))
        and model.enabled
        and str(model.tier) in allowed_tiers(one["value_score"])
        and model.capability.get(one["domain"], 0) > 0
        and one["input_high"] + one["output_high"] <= 0.95 * model.context_window
        and one["output_high"] <= model.max_output_tokens
        and model.name not in (one["failed_models"] or [])
    )


def price_usd(one: dict, model: Model) -> Decimal:
    exact = one["input_mean"] * float(model.input_usd_per_million)
    exact += one["output_mean"] * float(model.output_usd_per_million)
    return Decimal(ceil(exact * 1000)) / 10**9


def preference(one: dict, model: Model, funding: Funding, price: Decimal) -> tuple:
    money = funding.unit == "usd"
    wants_claude = one["domain"] == "infrastructure" and one["value_score"] >= 60
    return (
        money if 75 <= one["value_score"] < 90 else 0,
        allowed_tiers(one["value_score"]).index(str(model.tier)),
        wants_claude and model.family != "claude",
        money,
        -model.capability[one["domain"]],
        price,
        model.name,
    )
