"""What a backtest found, as a document: written as JSON, shown as a page."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Document):
    """One way to decide, judged on tasks that it was not trained on.

    Attributes:
        name: of the model, the sequence or the setting.
        accuracy: share of tasks whose work was good; cost_usd: mean per task, of all stages that ran.
        budget_usd: mean per task that was allowed; None where nothing limited it.
        plans: how often each plan was chosen, as shares, the most frequent first.
    """

    name: str
    accuracy: float
    cost_usd: float
    budget_usd: float | None = None
    plans: dict[str, float] = {}


class Curve(_Document):
    """A way to decide at several budgets.

    Attributes:
        aiq: mean height of the non-decreasing hull from the cheapest point to the dearest.
        aiq_shared: the same between the costs of the cheapest and the dearest single model, for every curve alike.
        cost_at_best_single: least cost at which the hull reaches the best single model's accuracy; None if never.
        cost_ratio_at_best_single: that cost over the best single model's own.
    """

    name: str
    points: tuple[Point, ...]
    aiq: float
    aiq_shared: float
    cost_at_best_single: float | None
    cost_ratio_at_best_single: float | None


class Pair(_Document):
    """RouteLLM's measures for two models, see `cp_core.learning.routing.pair_metrics`."""

    strong: str
    weak: str
    apgr: float
    cpt_50: float
    cpt_80: float
    strong_percent: tuple[float, ...]
    accuracy: tuple[float, ...]


class Bin(_Document):
    """Predictions of about one size: their mean, what came of them, how many there are."""

    predicted: float
    happened: float
    rows: int


class SuccessError(_Document):
    """How well success was predicted, over all observed pairs.

    Attributes:
        auc: chance that a success was given more than a failure; None if all came out alike.
        brier: mean squared error; brier_of_rates: that of each model's training rate, for comparison.
        calibration_error: mean distance between predicted and happened over ten bins, by their rows.
    """

    rows: int
    auc: float | None
    brier: float
    brier_of_rates: float
    calibration_error: float
    calibration: tuple[Bin, ...]


class AmountError(_Document):
    """How well tokens or costs were predicted, over all pairs for which they are known.

    Attributes:
        median_error: median of |predicted - actual| / actual, of the prediction for one task.
        total_ratio: sum of the predicted means over the sum of what was used.
        share_within_30: share of predictions within 30 % of what was used.
        coverage: share of the 80 % intervals that hold what was used.
    """

    rows: int
    median_error: float
    total_ratio: float
    share_within_30: float
    coverage: float


class BacktestReport(_Document):
    """The whole.

    Attributes:
        tasks, tested: tasks with outcomes, and those in a test part.
        split: how training and test parts were made.
        share_observed: share of pairs of task and model whose outcome is known.
        best_single: the single model of the highest accuracy, the cheaper of equals.
        accurate_sequence: the sequence of the highest accuracy in training, judged on the test part.
        frugal_sequence: the cheapest one that was as accurate in training as the best single model there.
        notes: what a reader must know about this run.
    """

    tasks: int
    tested: int
    models: tuple[str, ...]
    split: str
    share_observed: float
    sensitivity: float
    specificity: float
    seed: int
    singles: tuple[Point, ...]
    best_single: str
    random: Point
    tiered: Point
    tiers: dict[str, str]
    oracle: Point
    accurate_sequence: Point
    frugal_sequence: Point
    zero_router: Curve
    ours: Curve
    ours_with_escalation: Curve
    best_fixed_sequence: Curve
    pair: Pair | None
    success: SuccessError
    cost: AmountError | None
    input_tokens: AmountError | None
    output_tokens: AmountError | None
    loadings: dict[str, float]
    notes: tuple[str, ...]
