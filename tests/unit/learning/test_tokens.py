"""Tokens judged by texts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cp_core.learning.tokens import TokenModel, TokenPredictions

SUBJECTS = ("explain the parser", "summarise the ledger", "list the sensors")


def simulated(n: int, seed: int, *, spread: float = 0.3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tasks whose input grows with their text, whose output hangs on their subject, log-normal around both."""
    draw = np.random.default_rng(seed)
    subject = draw.integers(0, len(SUBJECTS), n)
    words = draw.integers(5, 200, n)
    tasks = pd.DataFrame(
        {
            "title": [SUBJECTS[each] for each in subject],
            "description": ["word " * count for count in words],
        },
        index=[f"t{number}" for number in range(n)],
    )
    usage = [
        pd.DataFrame(
            {
                "task": tasks.index,
                "model": model,
                "input_tokens": (words + 20) * factor * np.exp(draw.normal(0, 0.05, n)),
                "output_tokens": (100 * 3.0**subject) * factor * np.exp(draw.normal(0, spread, n)),
            }
        )
        for model, factor in (("terse", 1.0), ("wordy", 2.5))
    ]
    return tasks, pd.concat(usage, ignore_index=True)


@pytest.fixture(scope="module")
def judged() -> tuple[TokenPredictions, pd.DataFrame, pd.DataFrame]:
    """Predictions for 600 unseen tasks, and what they took: input and output."""
    tasks, usage = simulated(1000, 1)
    learned, unseen = tasks.iloc[:400], tasks.iloc[400:]
    model = TokenModel.fit(learned, usage[usage["task"].isin(learned.index)], seed=0)
    wide = usage.pivot(index="task", columns="model").loc[unseen.index]
    return model.predict(unseen), wide["input_tokens"], wide["output_tokens"]


def test_totals_of_means_agree_with_what_is_used(judged):
    predictions, used_input, used_output = judged

    assert (predictions.input.mean.sum() / used_input.sum()).to_list() == pytest.approx([1, 1], abs=0.03)
    assert (predictions.output.mean.sum() / used_output.sum()).to_list() == pytest.approx([1, 1], abs=0.05)


def test_half_of_unseen_tasks_take_more_than_the_median(judged):
    predictions, _, used_output = judged

    assert (used_output > predictions.output.median).mean().to_list() == pytest.approx([0.5, 0.5], abs=0.08)


def test_intervals_hold_four_of_five_unseen_tasks(judged):
    predictions, _, used_output = judged
    inside = (used_output >= predictions.output.low) & (used_output <= predictions.output.high)

    # 600 draws have a standard error of 1.6 %, the quantiles of 400 learned residuals another 2 %
    assert inside.mean().to_list() == pytest.approx([0.8, 0.8], abs=0.075)


def test_subjects_are_told_apart(judged):
    predictions, _, used_output = judged
    error = np.log(predictions.output.median / used_output)

    # the subjects alone spread the logarithm by 0.9, what cannot be known by 0.3
    assert error.std().max() < 0.36


def test_what_was_cut_off_does_not_make_outputs_look_smaller():
    tasks, usage = simulated(1500, 2, spread=0.6)
    limit = 500.0
    cut = usage.assign(
        is_censored=usage["output_tokens"] > limit, output_tokens=usage["output_tokens"].clip(upper=limit)
    )
    subject = (
        tasks["title"] == SUBJECTS[1]
    )  # about 300 tokens of the terse model: a fifth of its answers are cut off

    def factor(taken: pd.DataFrame) -> float:
        model = TokenModel.fit(tasks, taken, seed=0)
        return float(model.predict(tasks[subject]).output.mean["terse"].mean())

    truth = 300 * np.exp(0.6**2 / 2)
    assert factor(cut) > factor(cut.drop(columns="is_censored"))
    assert factor(cut.drop(columns="is_censored")) < 0.92 * truth


def test_a_model_that_did_few_tasks_borrows_from_those_that_did_many():
    tasks, usage = simulated(600, 3)
    few = set(tasks.index[:12])
    partial = usage[(usage["model"] == "terse") | usage["task"].isin(few)]

    predicted = TokenModel.fit(tasks, partial, seed=0).predict(tasks.iloc[100:]).output.median["wordy"]

    actual = usage[usage["model"] == "wordy"].set_index("task")["output_tokens"].loc[predicted.index]
    assert np.log(predicted / actual).abs().median() < 0.45


def test_the_same_seed_gives_the_same_predictions():
    tasks, usage = simulated(120, 4)

    first, second = (TokenModel.fit(tasks, usage, seed=7).predict(tasks).output.mean for _ in range(2))

    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_handful_of_attempts_is_enough():
    tasks, usage = simulated(3, 5)

    predicted = TokenModel.fit(tasks, usage, seed=0).predict(tasks).output

    assert (predicted.low <= predicted.median).all(axis=None)
    assert (predicted.median <= predicted.high).all(axis=None)
    assert np.isfinite(predicted.mean.to_numpy()).all()


def test_usage_of_an_unknown_task_is_refused():
    tasks, usage = simulated(3, 6)

    with pytest.raises(ValueError, match="usage of task 't2', which is not among the tasks"):
        TokenModel.fit(tasks.iloc[:2], usage, seed=0)


def test_no_usage_teaches_nothing():
    tasks, usage = simulated(3, 6)

    with pytest.raises(ValueError, match="no usage"):
        TokenModel.fit(tasks, usage.iloc[:0], seed=0)
