"""One task decided at once: the plan of most worth at the prices of the latest batch, that fits into what is left.

The batch and this share rules, market and explanations; only the prices are not found here but given. Nothing is real
until the ledger has reserved for it (`cp_resources.planner`).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cp_core.assignment import tiered, verdicts
from cp_core.assignment.batch import NOT_ALLOWED, Batch, lay_out
from cp_core.assignment.cache import PlannerCache
from cp_core.assignment.capacity import Capacity
from cp_core.assignment.clearing import Cleared
from cp_core.assignment.decision import Decision, Outcome
from cp_core.assignment.eligibility import CODES, ELIGIBLE
from cp_core.assignment.exploration import Drawn
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.market import Catalogue, Market, lapsing_of, market_of
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.precheck import REASONS, Precheck
from cp_core.assignment.solver import NO_PLAN, Solution
from cp_core.assignment.strategies import Strategy
from cp_core.models.registry import ModelRegistry
from cp_core.quota.account import Account, AccountTerms, Unit
from cp_core.scoring.config import Complexity, Domain
from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]

MOST_TOKENS = 1e12
"""No estimate is larger: one that is was not made by the scoring."""

_TOKENS = ("input_mean", "input_median", "input_high", "output_mean", "output_median", "output_high")
_NAMES = ("domain", "complexity")
_LISTS = ("failed_models", "dependencies_failed", "dependencies_pending")
_LACKS = (Reason.INSUFFICIENT_GLOBAL_CAPACITY, Reason.INSUFFICIENT_TIER_CAPACITY)


class InlinePolicy(BaseModel):
    """Section `inline` of policies.yaml: decisions for tasks that come alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    deadline_seconds: float = Field(default=2.0, gt=0, description="Longest time that a decision may take.")
    most_replans: int = Field(
        default=3, ge=0, le=10, description="How often it is made anew when others take the quota first."
    )
    cache_ttl_seconds: float = Field(
        default=30.0, gt=0, description="How long a process remembers a decision for equal tasks."
    )
    cache_entries: int = Field(default=10_000, ge=1, description="Most decisions remembered at once.")


@dataclass(frozen=True)
class Circumstances:
    """What a decision depends on beside the task and the configuration.

    Attributes:
        accounts: what every account holds. One that is missing here is closed: it holds nothing.
        now: the database's time.
        prices: value points of one more token or dollar, by account; an account without one is free.
        prices_of: the batch that found them; None for no batch yet.
        tiers_either_side: how far the policy of `tiered` is relaxed, see `policy.relaxed`.
        open_breakers: models that are not to be called now.
        has_room: whether the task's workspace may have another task.
    """

    accounts: Sequence[Account]
    now: datetime
    prices: Mapping[str, float] = field(default_factory=dict)
    prices_of: Hashable = None
    tiers_either_side: int = 0
    open_breakers: Collection[str] = ()
    has_room: bool = True


class Answer(NamedTuple):
    """A decision, and how it was come by.

    Attributes:
        considered: pairs of task and plan that were considered; 0 for a remembered decision.
        pruned: those that were ruled out before any search, by reason.
    """

    decision: Decision
    considered: int
    pruned: dict[str, int]
    is_cached: bool = False


class Desk:
    """Decides one task at a time under one configuration. Made once; safe to share between threads.

    Args:
        config_hash: of the configuration that the rest was read from.
        cache: what the process remembers; None for nothing.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        catalogue: Catalogue,
        policy: AssignmentPolicy,
        fairness: FairnessPolicy,
        config_hash: str,
        cache: PlannerCache[Answer] | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._policy = policy
        self._fairness = fairness
        self._config_hash = config_hash
        self._cache = cache
        self._terms = registry.accounts()
        options = catalogue.options
        self._option_draws = np.array(
            [[account in option.funding.accounts for account in catalogue.accounts] for option in options],
            dtype=bool,
        ).reshape(len(options), len(catalogue.accounts))
        self._ample = _Ample(catalogue)

    def decide(self, task: Mapping[str, Any], now_at: Circumstances, *, tick: float) -> Answer:
        """Decide.

        Args:
            task: task, task_id, value_score, domain, complexity, risk, the means, medians and upper ends of its tokens,
                traits (if there are any), deadline (or None), waiting_hours, failed_models, dependencies_failed and
                dependencies_pending (lists or None).
            tick: seconds of a clock that never goes back, for the cache.

        Raises:
            ValueError: a price is negative or not finite.
        """
        problem = _problem(task)
        if problem is not None:
            return Answer(_unusable(task, problem), 0, {})
        task = {**task, "waiting_hours": float(max(0.0, task["waiting_hours"]) // 1)}
        now_at = replace(now_at, accounts=self._with_closed(now_at.accounts))
        if self._cache is None or any(task[name] for name in _LISTS[1:]):
            return self._decide(task, now_at)
        key = self._key(task, now_at)
        known = self._cache.get(key, tick)
        if known is not None:
            return Answer(_for_task(known.decision, task, now_at.accounts), 0, {}, is_cached=True)
        answer = self._decide(task, now_at)
        if answer.decision.reason is not Reason.DEADLINE_PASSED:  # what it says is this task's alone
            self._cache.put(key, answer, tick)
        return answer

    def _decide(self, task: Mapping[str, Any], now_at: Circumstances) -> Answer:
        capacity = Capacity(now_at.accounts)
        policy = self._policy
        columns = {**_columns(task), "tiers_either_side": [now_at.tiers_either_side]}
        batch = lay_out(
            columns,
            [{**task, "tiers_either_side": now_at.tiers_either_side}],
            self._catalogue.options,
            capacity,
            policy,
            now=now_at.now,
            open_breakers=now_at.open_breakers,
        )
        if policy.strategy is Strategy.TIERED:
            return self._by_policy(batch, columns, now_at, capacity)
        if batch.standing[0] is None and now_at.has_room and not self._is_plenty(task, now_at.accounts):
            check = self._precheck(batch, columns, now_at.accounts, is_tiered=False)
            code = int(check.codes()[0])
            if code:
                pairs = len(self._catalogue.book)
                return Answer(self._lacking(batch, check, code), pairs, {str(REASONS[code]): pairs})
        return self._at_prices(batch, columns, now_at)

    def _by_policy(
        self, batch: Batch, columns: Mapping[str, Any], now_at: Circumstances, capacity: Capacity
    ) -> Answer:
        rooms = {} if now_at.has_room else {batch.records[0]["workspace"]: 0}
        [decision] = tiered.serve(batch, capacity, rooms)
        if decision.reason in _LACKS:
            check = self._precheck(batch, columns, now_at.accounts, is_tiered=True)
            decision = _proven(decision, check, REASONS.index(decision.reason))
        return Answer(decision, len(self._catalogue.options), _pruned(batch.eligible.codes))

    def _at_prices(self, batch: Batch, columns: Mapping[str, Any], now_at: Circumstances) -> Answer:
        market = self._market(batch, columns, now_at)
        prices = self._prices(now_at.prices)
        worth = market.worth(self._policy.strategy)
        net = worth - market.price(prices)
        overdue = columns["waiting_hours"] >= self._fairness.overdue_hours
        choice = _best(market, net, at_any_price=bool(overdue[0])) if now_at.has_room else NO_PLAN
        chosen = np.array([choice], dtype=np.int16)
        none = np.array([NO_PLAN], dtype=np.int16)
        cleared = Cleared(
            drawn=Drawn(chosen, np.stack([chosen, none, none]), np.array([[1.0], [0.0], [0.0]])),
            late=overdue,
            overdue=overdue & (chosen != NO_PLAN),
            beyond_room=np.array([not now_at.has_room]),
            worth=worth,
            net=net,
            solution=Solution(chosen, prices, 0.0, 0.0, np.zeros_like(prices), 0),
        )
        [decision] = verdicts.Verdicts(batch, market, self._policy.strategy, cleared)
        decision = replace(decision, explanation=dict(decision.explanation))
        return Answer(decision, market.codes.size, market.pruned())

    def _market(self, batch: Batch, columns: Mapping[str, Any], now_at: Circumstances) -> Market:
        held = {account.account: account for account in now_at.accounts}
        standing = [held[name] for name in self._catalogue.accounts]
        aged = self._fairness.aged(columns["value_score"], columns["waiting_hours"])
        market = market_of(
            {**columns, "value_score": aged},
            self._catalogue,
            batch.eligible.codes_in_any_tier,
            np.array([band.required_success for band in batch.bands]),
            capacity=np.array([float(account.available) for account in standing]),
            lapsing=np.array([_lapsing(account, now_at.now) for account in standing]),
        )
        return market.without(np.array([reason is not None for reason in batch.standing]))

    def _prices(self, prices: Mapping[str, float]) -> Doubles:
        wrong = [name for name, price in prices.items() if not 0 <= price < np.inf]
        if wrong:
            raise ValueError(
                f"the price of {wrong[0]} is {prices[wrong[0]]}; allowed are finite numbers from 0 on: "
                "run the batch again"
            )
        return np.array([prices.get(name, 0.0) for name in self._catalogue.accounts], dtype=np.float64)

    def _precheck(
        self, batch: Batch, columns: Mapping[str, Any], accounts: Sequence[Account], *, is_tiered: bool
    ) -> Precheck:
        held = {account.account: float(account.available) for account in accounts}
        possible = batch.eligible.codes_in_any_tier == ELIGIBLE
        prepaid = self._catalogue.options.prepaid
        if is_tiered:
            need = np.where(prepaid, batch.need, batch.need / 1e9)
        else:
            expected = self._catalogue.predictor.predict(columns)
            need = np.where(prepaid, np.ceil(expected.tokens).T, expected.list_usd.T)
        return Precheck(
            need=need,
            possible=possible,
            in_tier=possible & (batch.tier_position < NOT_ALLOWED) if is_tiered else possible,
            draws=self._option_draws,
            available=np.array([held[name] for name in self._catalogue.accounts]),
            accounts=self._catalogue.accounts,
        )

    def _lacking(self, batch: Batch, check: Precheck, code: int) -> Decision:
        task = batch.records[0]
        decision = Decision(
            task["task"],
            task["task_id"],
            task["value_score"],
            Outcome.DEFERRED,
            REASONS[code],
            explanation={
                "strategy": self._policy.strategy.value,
                "value_score": task["value_score"],
                "aged_value": float(self._fairness.aged(task["value_score"], task["waiting_hours"])),
                "waiting_hours": task["waiting_hours"],
                "required_success": batch.bands[0].required_success,
                "risk": task["risk"],
                **{name: task[name] for name in verdicts.FEATURES},
                "excluded": {
                    reason: [
                        label
                        for label, other in zip(
                            self._labels, batch.eligible.codes_in_any_tier[0], strict=True
                        )
                        if CODES[other] == reason
                    ]
                    for reason in _pruned(batch.eligible.codes_in_any_tier)
                },
            },
        )
        return _proven(decision, check, code)

    def _is_plenty(self, task: Mapping[str, Any], accounts: Sequence[Account]) -> bool:
        plenty = self._ample.amounts(task)
        return all(account.available >= plenty[account.unit] for account in accounts)

    @property
    def _labels(self) -> list[str]:
        return [f"{option.model.name} ({option.funding.name})" for option in self._catalogue.options]

    def _with_closed(self, accounts: Sequence[Account]) -> Sequence[Account]:
        """The accounts, and those that the registry declares and nobody opened, or somebody closed: empty."""
        held = {account.account for account in accounts}
        closed = [terms for terms in self._terms if terms.account not in held]
        return [*accounts, *(_closed(terms) for terms in closed)] if closed else accounts

    def _key(self, task: Mapping[str, Any], now_at: Circumstances) -> Hashable:
        """Everything that a decision depends on. An account that holds plenty counts as plenty, whatever it holds."""
        strategy, plenty = self._policy.strategy, self._ample.amounts(task)
        return (
            self._config_hash,
            strategy,
            now_at.prices_of,
            now_at.tiers_either_side,
            now_at.has_room or task["workspace"],
            frozenset(now_at.open_breakers),
            frozenset(task["failed_models"] or ()),
            task["value_score"],
            task["domain"],
            task["complexity"],
            task["risk"],
            task["waiting_hours"],
            *(task[name] for name in _TOKENS),
            task.get("traits"),
            _time_left(task["deadline"], self._policy, now_at.now),
            tuple(
                (
                    account.account,
                    account.limit,
                    None if account.available >= plenty[account.unit] else account.available,
                    account.state if strategy is Strategy.TIERED else None,
                    _lapsing(account, now_at.now)
                    if strategy is Strategy.MAXIMIZE_SUBSCRIPTION_USAGE
                    else None,
                )
                for account in now_at.accounts
            ),
        )


def _best(market: Market, net: Doubles, *, at_any_price: bool) -> int:
    """The plan of most worth less price that fits; one worth its price, unless the task has waited too long."""
    fits = (market.need_of(0) <= market.capacity).all(axis=1)
    wanted = np.where(fits & (np.isfinite(net[:, 0]) if at_any_price else net[:, 0] > 0), net[:, 0], -np.inf)
    plan = int(wanted.argmax()) if len(wanted) else NO_PLAN
    return plan if plan != NO_PLAN and np.isfinite(wanted[plan]) else NO_PLAN


class _Problem(NamedTuple):
    column: str
    value: object
    allowed: str


def _problem(task: Mapping[str, Any]) -> _Problem | None:
    """What about the task's figures makes a decision impossible; None for nothing."""
    if not 0 <= task["value_score"] <= 100:
        return _Problem("value_score", task["value_score"], "0 to 100")
    for name in _TOKENS:
        if not 0 <= task[name] <= MOST_TOKENS:
            return _Problem(name, task[name], f"0 to {MOST_TOKENS:g} tokens")
    if not abs(task["waiting_hours"]) < np.inf:
        return _Problem("waiting_hours", task["waiting_hours"], "a finite number")
    for name, allowed in (("domain", Domain), ("complexity", Complexity)):
        if task[name] not in list(allowed):
            return _Problem(name, task[name], f"one of {', '.join(allowed)}")
    return None


def _unusable(task: Mapping[str, Any], problem: _Problem) -> Decision:
    return Decision(
        task["task"],
        task["task_id"],
        task["value_score"],
        Outcome.REJECTED,
        Reason.INVALID_REQUEST,
        explanation={
            "invalid": {
                "column": problem.column,
                "value": str(problem.value),
                "allowed": problem.allowed,
                "what_to_do": "score the task again",
            }
        },
    )


def _proven(decision: Decision, check: Precheck, code: int) -> Decision:
    """The decision with the figures that prove what is lacking."""
    return replace(decision, explanation={**decision.explanation, "lacking": check.figures(0, code)})


def _for_task(decision: Decision, task: Mapping[str, Any], accounts: Sequence[Account]) -> Decision:
    """A remembered decision as that of another, equal task; balances are told as they are now."""
    explanation = dict(decision.explanation)
    if "accounts" in explanation:
        explanation["accounts"] = Capacity(accounts).standing(explanation["accounts"])
    return replace(decision, task=task["task"], task_id=task["task_id"], explanation=explanation)


def _columns(task: Mapping[str, Any]) -> dict[str, Any]:
    """The task as arrays of one element."""
    deadline = task["deadline"]
    return {
        **{
            name: np.array([task[name]], dtype=np.float64)
            for name in ("value_score", "waiting_hours", *_TOKENS)
        },
        **{name: np.array([task[name]], dtype=object) for name in _NAMES},
        **{name: [task[name]] for name in _LISTS},
        "traits": [task.get("traits")],
        "deadline": np.array(
            [deadline and deadline.astimezone(UTC).replace(tzinfo=None)], dtype="datetime64[us]"
        ),
    }


def _pruned(codes: NDArray[np.int8]) -> dict[str, int]:
    counts = np.bincount(codes.ravel(), minlength=len(CODES)).tolist()
    return {str(CODES[code]): count for code, count in enumerate(counts) if count and code}


def _closed(terms: AccountTerms) -> Account:
    nothing = Decimal(0)
    return Account(
        terms.account, terms.kind, terms.unit, terms.window, terms.limit, nothing, nothing, nothing
    )


def _lapsing(account: Account, now: datetime) -> float:
    """How near the window is to its end, in whole hundredths, so that equal tasks a moment apart stay equal."""
    return round(lapsing_of(account, now), 2)


def _time_left(deadline: datetime | None, policy: AssignmentPolicy, now: datetime) -> str | None:
    if deadline is None or not policy.enforce_deadlines:
        return None
    left = (deadline - now).total_seconds()
    return "passed" if left <= 0 else "short" if left < policy.deadline_margin_seconds else None


class _Ample:
    """The most that any plan can draw on an account for a task: an account that holds as much refuses nothing."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._stages = max((len(plan) for plan in catalogue.book.plans), default=0)
        one = {
            **{name: np.zeros(1) for name in _TOKENS},
            "domain": [Domain.BACKEND],
            "complexity": ["simple"],
        }
        per_input = catalogue.predictor.predict({**one, "input_mean": np.ones(1)})
        per_output = catalogue.predictor.predict({**one, "output_mean": np.ones(1)})
        self._per_token = {
            Unit.TOKENS: (_most(per_input.tokens, 1.0), _most(per_output.tokens, 1.0)),
            Unit.USD: (_most(per_input.list_usd, 0.0), _most(per_output.list_usd, 0.0)),
        }

    def amounts(self, task: Mapping[str, Any]) -> dict[Unit, float]:
        """By unit; with a whole unit a stage to spare, for rounding."""
        return {
            unit: self._stages * (task["input_mean"] * of_input + task["output_mean"] * of_output + 1)
            for unit, (of_input, of_output) in self._per_token.items()
        }


def _most(values: Doubles, at_least: float) -> float:
    return float(values.max(initial=at_least))
