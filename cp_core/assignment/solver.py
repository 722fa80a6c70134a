"""The solver: which plan each task gets, so that the whole batch is worth most within every account.

The problem, over tasks i, plans k and accounts a::

    maximise    sum_ik value_ik x_ik
    subject to  sum_k x_ik <= 1                        for each task
                sum_ik draw_ika x_ik <= capacity_a     for each account
                x_ik in {0, 1}

A million tasks share a dozen accounts, so the Lagrangian dual over accounts has a dozen variables: the prices. It is
minimised by projected BFGS; large batches start from the prices of a sample. (SciPy's L-BFGS-B would do, but its calls
into LAPACK for a dozen variables wake as many threads as there are cores, which costs a second on a busy machine.) At
those prices each task takes its best plan; the few tasks for which two plans are nearly equal then absorb what is over
or left. The dual value bounds every assignment from above, so the gap reported is a proof, not an estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Indices = NDArray[np.intp]
Part = TypeVar("Part")

NO_PLAN = -1
"""The choice of a task that gets no plan in this batch."""

_BLOCK = 32_768  # tasks evaluated at once: the working arrays of a block stay in the processor's cache
_SAMPLES = (1_000, 20_000)  # tasks among which prices are searched first, where a batch is much larger
_LEAST_FACTOR = 4  # how much larger
_MOST_LOOKS = 100  # passes over a batch or a sample that the search for prices may take
_MOST_LOOKS_AFTER_SAMPLE = 24
_DUAL_TOLERANCE = 1e-7  # relative; the least gain of a step of the search that is still worth a look
_IDLE_STEPS = 3  # steps without such a gain that end a search
_FIRST_STEP = 0.1  # length of the first step of a search, in scaled prices
_WOLFE_DESCENT, _WOLFE_CURVATURE = 1e-4, 0.9
_SHORTEST_STEP = 1e-4
_TIE_BREAK = 1e-4
_MOVES_A_ROUND = 64
_CORE_PER_ACCOUNT = 40  # closest decisions that rounding looks at again, per account


@dataclass(frozen=True)
class Problem:
    """One batch of tasks, their plans, and the accounts that limit them.

    A plan draws on accounts through one or more charges (a stage of an escalation is a charge of its own): charge r
    belongs to plan `charge_plan[r]`, has a size per task, and takes `draws[r, a]` of account a per unit of that size.

    Attributes:
        values: objective of each plan for each task, shape (plans, tasks); -inf where the pair is not eligible.
        charges: size of each charge for each task, shape (charges, tasks), >= 0; in tokens, for instance.
        charge_plan: plan of each charge, shape (charges,), ascending, naming every plan at least once.
        draws: units of each account per unit of each charge, shape (charges, accounts), >= 0.
        capacity: what remains of each account, shape (accounts,), >= 0; inf where nothing limits it.
    """

    values: Floats
    charges: Floats
    charge_plan: Indices
    draws: Doubles
    capacity: Doubles

    def __post_init__(self) -> None:
        plans, tasks = self.values.shape
        charges, accounts = self.draws.shape
        if self.charges.shape != (charges, tasks) or self.charge_plan.shape != (charges,):
            raise ValueError(
                f"shapes do not fit: values {self.values.shape}, charges {self.charges.shape}, "
                f"charge_plan {self.charge_plan.shape}, draws {self.draws.shape}"
            )
        if self.capacity.shape != (accounts,):
            raise ValueError(f"capacity has shape {self.capacity.shape}, but draws name {accounts} accounts")
        if not np.array_equal(np.unique(self.charge_plan), np.arange(plans)) or np.any(
            np.diff(self.charge_plan) < 0
        ):
            raise ValueError(
                f"charge_plan must be ascending and name each of {plans} plans, got {self.charge_plan}"
            )
        _refuse(np.isnan(self.values) | (self.values == np.inf), self.values, "values", "a number or -inf")
        _refuse(
            ~((self.charges >= 0) & np.isfinite(self.charges)), self.charges, "charges", "finite and >= 0"
        )
        _refuse(~((self.draws >= 0) & np.isfinite(self.draws)), self.draws, "draws", "finite and >= 0")
        _refuse(~(self.capacity >= 0), self.capacity, "capacity", ">= 0")

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return int(self.values.shape[1])

    @cached_property
    def charges_of(self) -> tuple[Indices, ...]:
        """The charges of each plan."""
        return tuple(np.flatnonzero(self.charge_plan == plan) for plan in range(self.values.shape[0]))

    def use_of(self, choice: NDArray[np.integer]) -> Doubles:
        """Units that `choice` (a plan or `NO_PLAN` per task) takes of each account, shape (accounts,)."""
        sizes = np.zeros(len(self.charges))
        for plan, charges in enumerate(self.charges_of):
            taken = choice == plan
            for charge in charges:
                sizes[charge] = self.charges[charge].sum(where=taken, dtype=np.float64)
        return sizes @ self.draws

    def worth_of(self, choice: NDArray[np.integer]) -> float:
        """Objective of `choice`."""
        return float(
            sum(values.sum(where=choice == plan, dtype=np.float64) for plan, values in enumerate(self.values))
        )


@dataclass(frozen=True)
class Solution:
    """What the solver found.

    Attributes:
        choice: plan of each task or `NO_PLAN`, shape (tasks,).
        prices: value of one more unit of each account, shape (accounts,), >= 0; 0 where the account does not limit
            this batch, and for an account with nothing left, which has no price: nothing that draws on it is eligible.
        objective: worth of `choice`.
        bound: no assignment is worth more than this.
        use: units taken of each account, shape (accounts,); never above capacity.
        evaluations: passes over the whole batch.
    """

    choice: NDArray[np.int16]
    prices: Doubles
    objective: float
    bound: float
    use: Doubles
    evaluations: int

    @property
    def gap(self) -> float:
        """Fraction of the bound that was not reached, >= 0."""
        return max(0.0, 1.0 - self.objective / self.bound) if self.bound > 0 else 0.0


def solve(problem: Problem, *, seed: int, start: Doubles | None = None, threads: int = 1) -> Solution:
    """Assign plans to tasks.

    Args:
        problem: the batch.
        seed: draws the sample that starts large batches; the same seed gives the same solution.
        start: prices to start from, shape (accounts,); those of the batch before are a good choice.
        threads: threads that share one pass; the result does not depend on their number.
    """
    if not problem.tasks:
        return _nothing_to_do(problem)
    priced = np.isfinite(problem.capacity) & (problem.capacity > 0) & (problem.draws > 0).any(axis=0)
    reduced = _over_accounts(_without_pairs_that_never_fit(problem), priced)
    rng = np.random.default_rng(seed)
    prices = np.zeros(len(problem.capacity)) if start is None else np.array(start, dtype=np.float64)
    with _Dual(_without_ties(reduced, rng), threads) as dual:
        search, looks = _Search(prices[priced]), _MOST_LOOKS
        for size in _SAMPLES:
            if problem.tasks >= _LEAST_FACTOR * size:
                search, looks = _search_sample(dual.problem, search, size, rng), _MOST_LOOKS_AFTER_SAMPLE
        found = _minimise(dual, search, looks).prices
        choice = _round(dual, found)
    with _Dual(reduced, threads) as true:
        bound = true.look(found).bound
    prices[priced], prices[~priced] = found, 0.0
    objective = problem.worth_of(choice)
    return Solution(
        choice=choice,
        prices=prices,
        objective=objective,
        bound=max(bound, objective),
        use=problem.use_of(choice),
        evaluations=dual.evaluations,
    )


def _nothing_to_do(problem: Problem) -> Solution:
    nothing = np.zeros(len(problem.capacity))
    return Solution(np.empty(0, np.int16), nothing, 0.0, 0.0, nothing.copy(), 0)


class _Pass(NamedTuple):
    """What one look at the whole batch, at given prices, gives."""

    bound: float
    use: Doubles
    choice: NDArray[np.int16]


class _Dual:
    """The dual function of a problem, evaluated block by block so that working arrays stay in cache."""

    def __init__(self, problem: Problem, threads: int) -> None:
        self.problem = problem
        self.evaluations = 0
        self._blocks = [
            slice(start, min(problem.tasks, start + _BLOCK)) for start in range(0, problem.tasks, _BLOCK)
        ]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 and len(self._blocks) > 1 else None

    def __enter__(self) -> _Dual:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown()

    def look(self, prices: Doubles) -> _Pass:
        """Each task's best plan at `prices`, what these plans take, and the dual value."""
        self.evaluations += 1
        rates = self._rates(prices)
        parts = self._over_blocks(lambda block: self._best_in(block, rates))
        use = np.sum([part[1] for part in parts], axis=0) @ self.problem.draws
        return _Pass(
            bound=sum(part[0] for part in parts) + float(prices @ self.problem.capacity),
            use=use,
            choice=np.concatenate([part[2] for part in parts]),
        )

    def regrets(self, prices: Doubles) -> Floats:
        """How much each task prefers its best choice to its second, shape (tasks,); no plan is a choice too."""
        rates = self._rates(prices)
        return np.concatenate(self._over_blocks(lambda block: self._regret_in(block, rates)))

    def _rates(self, prices: Doubles) -> Floats:
        return (self.problem.draws @ prices).astype(self.problem.values.dtype)

    def _over_blocks(self, work: Callable[[slice], Part]) -> list[Part]:
        return list(self._pool.map(work, self._blocks) if self._pool else map(work, self._blocks))

    def _priced(self, plan: int, block: slice, rates: Floats, out: Floats, scratch: Floats) -> None:
        """Write the value of `plan` less the price of what it draws into `out`."""
        first, *others = self.problem.charges_of[plan]
        np.multiply(self.problem.charges[first, block], -rates[first], out=out)
        np.add(out, self.problem.values[plan, block], out=out)
        for charge in others:
            np.multiply(self.problem.charges[charge, block], rates[charge], out=scratch)
            np.subtract(out, scratch, out=out)

    def _best_in(self, block: slice, rates: Floats) -> tuple[float, Doubles, NDArray[np.int16]]:
        size, kind = block.stop - block.start, self.problem.values.dtype
        best, worth, scratch = np.zeros(size, kind), np.empty(size, kind), np.empty(size, kind)
        choice, better = np.full(size, NO_PLAN, np.int16), np.empty(size, bool)
        for plan in range(len(self.problem.values)):
            self._priced(plan, block, rates, worth, scratch)
            np.greater(worth, best, out=better)
            np.copyto(best, worth, where=better)
            np.copyto(choice, np.int16(plan), where=better)
        taken = np.empty(len(self.problem.charges))
        for plan, charges in enumerate(self.problem.charges_of):
            np.equal(choice, plan, out=better)
            np.copyto(scratch, better, casting="unsafe")
            for charge in charges:
                # not np.dot: BLAS would start threads of its own within each of ours
                taken[charge] = np.einsum("i,i->", self.problem.charges[charge, block], scratch)
        return float(best.sum(dtype=np.float64)), taken, choice

    def _regret_in(self, block: slice, rates: Floats) -> Floats:
        size, kind = block.stop - block.start, self.problem.values.dtype
        best, worth, scratch = np.zeros(size, kind), np.empty(size, kind), np.empty(size, kind)
        second = np.full(size, -np.inf, kind)
        for plan in range(len(self.problem.values)):
            self._priced(plan, block, rates, worth, scratch)
            np.maximum(second, np.minimum(best, worth, out=scratch), out=second)
            np.maximum(best, worth, out=best)
        return best - second


class _Search(NamedTuple):
    """Prices, and the curvature of the dual around them in scaled prices; None before anything is known of it."""

    prices: Doubles
    curvature: Doubles | None = None


def _minimise(dual: _Dual, start: _Search, most_looks: int) -> _Search:
    """Prices of the least dual value found within `most_looks`.

    Each price is scaled by its account's capacity, so that a step means as much for tokens as for dollars. A dual of
    finitely many tasks has kinks: BFGS with a weak Wolfe search copes with them (Lewis and Overton 2013). Prices that
    would turn negative are held at zero (Bertsekas 1982).
    """
    capacity = dual.problem.capacity
    scale = dual.look(start.prices).bound
    if not len(capacity) or scale <= 0:
        return start

    def value_and_slope(scaled: Doubles) -> tuple[float, Doubles]:
        seen = dual.look(scaled * scale / capacity)
        return seen.bound / scale, 1.0 - seen.use / capacity

    descent = _Descent(value_and_slope, start.prices * capacity / scale, start.curvature)
    descent.run(most_looks)
    return _Search(descent.best * scale / capacity, descent.curvature)


class _Descent:
    """Projected BFGS over variables that are at least 0."""

    def __init__(
        self, function: Callable[[Doubles], tuple[float, Doubles]], start: Doubles, curvature: Doubles | None
    ) -> None:
        self._function = function
        self._point = start
        self._value, self._slope = function(start)
        self._looks = 1
        self._least = self._value
        self.best = start
        self.curvature = curvature

    def run(self, most_looks: int) -> None:
        """Descend until nothing is gained any more, three times over, or the looks are used up."""
        idle = 0
        while self._looks < most_looks and idle < _IDLE_STEPS:
            before = self._value
            direction = self._direction()
            if direction is None:
                return
            if not self._step(direction, most_looks):
                self.curvature = None
            idle = idle + 1 if before - self._value < _DUAL_TOLERANCE else 0

    def _direction(self) -> Doubles | None:
        """Where to go among the variables that are free to; None where none is."""
        free = (self._point > 0) | (self._slope < 0)
        if not free.any():
            return None
        direction = np.zeros_like(self._point)
        slope = self._slope[free]
        if self.curvature is not None:
            with suppress(np.linalg.LinAlgError):
                direction[free] = -np.linalg.solve(self.curvature[np.ix_(free, free)], slope)
                if self._slope @ direction < 0:
                    return direction
            self.curvature = None
        direction[free] = -slope * (_FIRST_STEP / max(float(np.linalg.norm(slope)), 1e-300))
        return direction

    def _step(self, direction: Doubles, most_looks: int) -> bool:
        """Move along `direction` and learn the curvature there; False where no lower point was found."""
        begun, slope = self._point, self._slope
        near, far, length = 0.0, np.inf, 1.0
        while True:
            point = np.maximum(begun + length * direction, 0.0)
            value, slope_there = self._function(point)
            self._looks += 1
            if value < self._least:
                self._least, self.best = value, point
            if value > self._value + _WOLFE_DESCENT * (slope @ (point - begun)):
                far = length
            elif slope_there @ direction < _WOLFE_CURVATURE * (slope @ direction):
                near = length
            else:
                break
            if self._looks >= most_looks or far - near < _SHORTEST_STEP:
                break
            length = 2 * length if far == np.inf else (near + far) / 2
        if value > self._value:
            return False
        self._learn(point - begun, slope_there - slope)
        self._point, self._value, self._slope = point, value, slope_there
        return True

    def _learn(self, step: Doubles, change: Doubles) -> None:
        curved = float(step @ change)
        if curved <= 1e-12 * float(np.linalg.norm(step) * np.linalg.norm(change)):
            return
        if self.curvature is None:
            self.curvature = np.eye(len(step)) * (float(change @ change) / curved)
        along = self.curvature @ step
        self.curvature = (
            self.curvature - np.outer(along, along) / float(step @ along) + np.outer(change, change) / curved
        )


def _search_sample(problem: Problem, start: _Search, size: int, rng: np.random.Generator) -> _Search:
    """Search among a random sample of tasks that shares the capacity in proportion."""
    drawn = np.sort(rng.choice(problem.tasks, size, replace=False))
    sample = Problem(
        values=np.ascontiguousarray(problem.values[:, drawn]),
        charges=np.ascontiguousarray(problem.charges[:, drawn]),
        charge_plan=problem.charge_plan,
        draws=problem.draws,
        capacity=problem.capacity * (size / problem.tasks),
    )
    return _minimise(_Dual(sample, threads=1), start, _MOST_LOOKS)


def _without_pairs_that_never_fit(problem: Problem) -> Problem:
    """The problem without the pairs that alone take more than an account has.

    Such a pair is in no assignment, so leaving it out keeps every solution and tightens the bound.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.where(problem.draws > 0, problem.capacity / problem.draws, np.inf).min(
            axis=1, initial=np.inf
        )
    too_large = problem.charges > largest[:, None]
    if not too_large.any():
        return problem
    values = problem.values.copy()
    for charge, plan in enumerate(problem.charge_plan):
        values[plan, too_large[charge]] = -np.inf
    return replace(problem, values=values)


def _without_ties(problem: Problem, rng: np.random.Generator) -> Problem:
    """The problem with each value lowered by a random share of at most `_TIE_BREAK`.

    Plans that are worth the same to many tasks would change hands all at once as prices move, and no price would share
    the accounts between them.
    """
    shares = rng.random(problem.values.shape, dtype=np.float32)
    shares *= -_TIE_BREAK
    shares += 1
    return replace(problem, values=problem.values * shares)


def _over_accounts(problem: Problem, kept: NDArray[np.bool_]) -> Problem:
    return replace(problem, draws=problem.draws[:, kept], capacity=problem.capacity[kept])


def _round(dual: _Dual, prices: Doubles) -> NDArray[np.int16]:
    """An assignment within every account, near the best plans at `prices`.

    Only the tasks with the least regret (the core) are looked at again, more of them when those do not suffice.
    """
    seen = dual.look(prices)
    slack = dual.problem.capacity - dual.problem.use_of(seen.choice)
    regrets = dual.regrets(prices)
    size = max(400, _CORE_PER_ACCOUNT * len(slack))
    while True:
        tasks = _closest(dual.problem, seen.choice, regrets, slack < 0, size)
        core = _Core(dual.problem, tasks, seen.choice[tasks], prices, slack)
        if core.repair() or len(tasks) == dual.problem.tasks:
            core.improve()
            choice = seen.choice.copy()
            choice[tasks] = core.choice
            return choice
        size = 4 * size


def _closest(
    problem: Problem, choice: NDArray[np.int16], regrets: Floats, overdrawn: NDArray[np.bool_], size: int
) -> Indices:
    """The `size` tasks of least regret, and as many again of those that draw on each overdrawn account.

    Where two models are all but equal, nearly every task has little regret, and few of them could relieve an account.
    """
    draws = np.zeros((len(problem.values) + 1, len(overdrawn)), bool)  # the last row is that of NO_PLAN
    np.logical_or.at(draws, problem.charge_plan, problem.draws > 0)
    groups = [np.arange(problem.tasks)]
    groups += [np.flatnonzero(draws[choice, account]) for account in np.flatnonzero(overdrawn)]
    return np.unique(np.concatenate([_least(regrets, group, size) for group in groups]))


def _least(regrets: Floats, tasks: Indices, size: int) -> Indices:
    if len(tasks) <= size:
        return tasks
    return tasks[np.argpartition(regrets[tasks], size - 1)[:size]]


class _Core:
    """The tasks whose choice rounding may change, with every plan's worth and draw; no plan is the last column."""

    def __init__(
        self, problem: Problem, tasks: Indices, choice: NDArray[np.int16], prices: Doubles, slack: Doubles
    ) -> None:
        plans, accounts = len(problem.values), len(slack)
        self._none = plans
        self._rows = np.arange(len(tasks))
        self._chosen = np.where(choice == NO_PLAN, plans, choice).astype(np.intp)
        self._worth = np.zeros((len(tasks), plans + 1))
        self._worth[:, :plans] = problem.values[:, tasks].T
        self._draw = np.zeros((len(tasks), plans + 1, accounts))
        for charge, plan in enumerate(problem.charge_plan):
            self._draw[:, plan] += np.multiply.outer(
                problem.charges[charge, tasks].astype(np.float64), problem.draws[charge]
            )
        self._reduced = self._worth - self._draw @ prices
        self._slack = slack
        self._capacity = problem.capacity

    @property
    def choice(self) -> NDArray[np.int16]:
        """The plan of each task of the core, or `NO_PLAN`."""
        return np.where(self._chosen == self._none, NO_PLAN, self._chosen).astype(np.int16)

    def repair(self) -> bool:
        """Take plans away, least regret per unit of what is overdrawn first, until no account is overdrawn.

        Returns whether that was possible within the core.
        """
        while (self._slack < 0).any():
            missing = np.maximum(-self._slack, 0.0)
            drawn = self._draw[self._rows, self._chosen]
            relief = (np.minimum(drawn, missing) / self._capacity).sum(axis=1)
            candidates = np.flatnonzero(relief > 0)
            if not len(candidates):
                return False
            regret = np.maximum(self._reduced[candidates, self._chosen[candidates]], 0.0)
            order = candidates[np.argsort(regret / relief[candidates], kind="stable")]
            covered = (np.cumsum(drawn[order], axis=0) >= missing).all(axis=1)
            enough = int(np.argmax(covered)) + 1 if covered.any() else len(order)
            given_up = order[: (enough + 1) // 2]  # half at a time: what is missing changes as plans go
            self._slack = self._slack + drawn[given_up].sum(axis=0)
            self._chosen[given_up] = self._none
        return True

    def improve(self) -> None:
        """Give tasks better plans out of what is left, smallest loss at the prices first, until none fits."""
        while True:
            gain = self._worth - self._worth[self._rows, self._chosen][:, None]
            extra = self._draw - self._draw[self._rows, self._chosen][:, None, :]
            possible = (gain > 0) & (extra <= self._slack).all(axis=2)
            if not possible.any():
                return
            preference = np.where(
                possible, self._reduced - self._reduced[self._rows, self._chosen][:, None], -np.inf
            )
            best = preference.argmax(axis=1)
            order = np.argsort(-preference[self._rows, best], kind="stable")[:_MOVES_A_ROUND]
            for task in order[np.isfinite(preference[order, best[order]])]:
                step = extra[task, best[task]]
                if (step <= self._slack).all():
                    self._slack = self._slack - step
                    self._chosen[task] = best[task]


def _refuse(wrong: NDArray[np.bool_], values: Floats, name: str, allowed: str) -> None:
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(f"{name}{list(place)} is {values[place]}; {allowed} is allowed")
