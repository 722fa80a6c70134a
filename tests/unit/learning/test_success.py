"""The success model: what it makes of categories and texts, of little, and of rows that are missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cp_core.learning.success import SuccessModel


def tasks_of(domains: list[str], texts: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {"title": "", "description": texts or "", "domain": domains},
        index=[f"t{number}" for number in range(len(domains))],
    )


def outcomes_of(tasks: pd.DataFrame, success: dict[str, list[float]]) -> pd.DataFrame:
    return pd.concat(
        [
            pd.DataFrame({"task": tasks.index, "model": model, "success": outcomes})
            for model, outcomes in success.items()
        ]
    )


def test_each_model_is_preferred_in_the_domain_where_it_does_well():
    tasks = tasks_of(["law"] * 60 + ["physics"] * 60)
    outcomes = outcomes_of(
        tasks,
        {
            "jurist": ([1] * 9 + [0]) * 6 + ([0] * 9 + [1]) * 6,
            "engineer": ([0] * 9 + [1]) * 6 + ([1] * 9 + [0]) * 6,
        },
    )

    found = SuccessModel.fit(tasks, outcomes, seed=1).predict(tasks_of(["law", "physics"]))

    assert list(found.columns) == ["engineer", "jurist"]
    assert found.loc["t0", "jurist"] > 0.75 > 0.25 > found.loc["t0", "engineer"]
    assert found.loc["t1", "engineer"] > 0.75 > 0.25 > found.loc["t1", "jurist"]


def test_words_tell_hard_tasks_where_no_category_does():
    rng = np.random.default_rng(4)
    fillers = rng.choice(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"], size=(240, 5))
    hard = np.arange(240) % 2 == 0
    texts = [
        " ".join([*words, "deadlock" if one else "typo"]) for words, one in zip(fillers, hard, strict=True)
    ]
    tasks = tasks_of(["all"] * 240, texts)
    success = np.where(hard, rng.random(240) < 0.2, rng.random(240) < 0.9).astype(float)
    known, new = tasks[:200], tasks[200:]

    model = SuccessModel.fit(known, outcomes_of(known, {"m": list(success[:200])}), seed=1)
    found = model.predict(new)["m"].groupby(hard[200:]).mean()

    assert found[True] < 0.4
    assert found[False] > 0.7


def test_a_model_with_a_handful_of_outcomes_stays_near_the_rate_of_all():
    tasks = tasks_of(["x"] * 100)
    many = outcomes_of(tasks, {"known": ([1] * 7 + [0] * 3) * 10})
    few = pd.DataFrame({"task": ["t0", "t1"], "model": "new", "success": [0.0, 0.0]})

    found = SuccessModel.fit(tasks, pd.concat([many, few]), seed=1).predict(tasks_of(["x"]))

    assert found.loc["t0", "known"] == pytest.approx(0.7, abs=0.05)
    assert 0.15 < found.loc["t0", "new"] < 0.6


def test_one_outcome_is_enough_to_predict_for_any_task():
    tasks = tasks_of(["x"])
    model = SuccessModel.fit(tasks, outcomes_of(tasks, {"m": [1.0]}), seed=1)

    found = model.predict(tasks_of(["never met", "x"], ["anything", ""]))

    assert ((found > 0.5) & (found < 1)).all().all()


def test_predictions_neither_depend_on_the_order_of_rows_nor_on_what_is_predicted_beside_them():
    rng = np.random.default_rng(7)
    tasks = tasks_of(list(rng.choice(["a", "b"], 50)), [f"text number {number}" for number in range(50)])
    outcomes = outcomes_of(tasks, {"m": list(rng.integers(0, 2, 50)), "n": list(rng.integers(0, 2, 50))})
    model = SuccessModel.fit(tasks, outcomes, seed=1)
    shuffled = SuccessModel.fit(tasks, outcomes.sample(frac=1, random_state=3), seed=1)

    assert np.allclose(model.predict(tasks), shuffled.predict(tasks), atol=1e-6)
    assert np.allclose(model.predict(tasks).loc[["t7"]], model.predict(tasks.loc[["t7"]]))


def test_an_outcome_of_an_unknown_task_is_refused_by_its_name():
    tasks = tasks_of(["x"])
    with pytest.raises(ValueError, match="'elsewhere'"):
        SuccessModel.fit(
            tasks, pd.DataFrame({"task": ["elsewhere"], "model": ["m"], "success": [1.0]}), seed=1
        )


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="no outcome"):
        SuccessModel.fit(tasks_of(["x"]), pd.DataFrame({"task": [], "model": [], "success": []}), seed=1)
