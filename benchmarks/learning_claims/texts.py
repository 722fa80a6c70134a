"""Claim: what texts say of success makes predictions better than kinds alone, for little time a task and a night.

Real questions with the outcomes of two models each (RouteLLM's MMLU, RouterArena), through the functions of production:
the scoring rules say the kind of each task, a trait model is learned from the earlier days' texts, effects are
fitted, and taken only where they prove themselves on later days; those that they are then judged by were never seen.
Days are drawn, for the data has none. Mean of five seeds, fixed beforehand.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from benchmarks.report import note, report
from cp_core.learning.candidate import Examples, Found, Ground, make_candidate
from cp_core.learning.corrections import correct, sums, weights_of
from cp_core.learning.expectations import KINDS, Expectations, cells_of
from cp_core.learning.gates.changes import change_caps, something_changed
from cp_core.learning.gates.evidence import Evidence
from cp_core.learning.gates.holdout import forward_holdout
from cp_core.learning.gates.placebo import placebo
from cp_core.learning.gates.samples import enough_outcomes
from cp_core.learning.learned import Learned
from cp_core.learning.policy import LearningPolicy
from cp_core.learning.prediction_quality import auc, brier
from cp_core.learning.texts import learn_texts
from cp_core.learning.trait_model import TRAITS, TraitModel, text_of
from cp_core.learning.traits_seen import TraitsSeen
from cp_core.scoring.score import score_tasks
from cp_resources.configuration import load_configuration
from cp_resources.settings import PROJECT_ROOT
from cp_resources.trait_models import bytes_of

DATA = Path(os.environ.get("CP_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SEEDS = range(5)
DAYS = 10
EYE = "e" * 64


class Case(NamedTuple):
    """Tasks with title, description, domain and complexity; outcomes, a column a model; how many are learned from."""

    tasks: pd.DataFrame
    outcomes: pd.DataFrame
    learned_from: int


def measure() -> None:
    """Report both predictions on unseen questions, and what looking and learning take."""
    with threadpool_limits(1):
        for name, case in {
            "mmlu": _mmlu(1_531),
            "mmlu, 5,000": _mmlu(5_000),
            "routerarena": _arena(),
        }.items():
            found = pd.DataFrame([_judged(case, seed) for seed in SEEDS]).mean()
            note(
                f"texts, {name}: {len(case.tasks):,} questions, {case.learned_from:,} learned from; taken in "
                f"{found['taken']:.0%} of splits; AUC {found['auc_kind']:.4f} of kinds, {found['auc_text']:.4f} with "
                f"texts; Brier score {found['brier_kind']:.5f} and {found['brier_text']:.5f}"
            )
            report(
                "learning", name, "auc_gain_of_texts", found["auc_text"] - found["auc_kind"], "AUC", ">= 0.01"
            )
            report(
                "learning",
                name,
                "brier_with_texts_over_kinds",
                found["brier_text"] / found["brier_kind"],
                "ratio",
                "<= 0.99",
            )
        _costs()
        _nights()


def _judged(case: Case, seed: int) -> dict[str, float]:
    policy = LearningPolicy()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(case.tasks))
    age = np.full(len(order), -1.0)
    age[order[: case.learned_from]] = policy.holdout_days + generator.integers(0, DAYS, case.learned_from)
    models = tuple(sorted(case.outcomes.columns))
    rows = pd.concat(
        [
            case.tasks[["domain", "complexity"]].assign(
                task=np.arange(len(order)), model=model, age_days=age, has_succeeded=case.outcomes[model]
            )
            for model in models
        ],
        ignore_index=True,
    )
    earlier, later = rows[rows["age_days"] >= 0], rows[rows["age_days"] < 0]
    texts = [text_of(*parts) for parts in zip(case.tasks["title"], case.tasks["description"], strict=True)]
    kinds = (case.tasks["domain"] + "/" + case.tasks["complexity"]).tolist()
    known = np.flatnonzero(age >= 2 * policy.holdout_days)
    eye = TraitModel.learn(
        [texts[at] for at in known], [kinds[at] for at in known], day=date(2026, 1, 1), seed=seed
    )
    seen = TraitsSeen.of(np.arange(len(texts)), eye.traits_of(texts, kinds))
    half = np.full((len(models), len(KINDS)), 0.5)
    expected = Expectations(models, half, half, half)
    found = learn_texts(earlier, expected, EYE, seen, policy, seed=seed)
    won = earlier["has_succeeded"].to_numpy(dtype=float)
    table = correct(half, *sums(cells_of(earlier, models), weights_of(earlier), won, half.shape))
    kind = logit(np.clip(table.ravel()[cells_of(later, models)], 1e-3, 1 - 1e-3))
    nothing = (0.0,) * seen.traits.shape[1]
    weights = np.array([found.success.get(model, nothing) for model in models])
    of = pd.Index(models).get_indexer(pd.Index(later["model"]))
    shift = np.einsum("nk,nk->n", seen.traits[seen.places(later["task"])], weights[of])
    came = later["has_succeeded"].to_numpy(dtype=float)
    return {
        "taken": float(found.trait_model is not None),
        "auc_kind": auc(kind, came) or 0.5,
        "auc_text": auc(kind + shift, came) or 0.5,
        "brier_kind": brier(expit(kind), came),
        "brier_text": brier(expit(kind + shift), came),
    }


def _costs() -> None:
    """CPU time of looking at texts, and of all that a night does with 10,000 of them before it judges a candidate."""
    case = _mmlu(10_000)
    texts = [text_of(*parts) for parts in zip(case.tasks["title"], case.tasks["description"], strict=True)]
    texts, kinds = texts[:10_000], ["general/simple"] * 10_000
    began = time.process_time()
    eye = TraitModel.learn(texts, kinds, day=date(2026, 1, 1), seed=1)
    learned = time.process_time()
    eye.traits_of(texts, kinds)
    looked = time.process_time()
    for at in range(200):
        eye.traits_of(texts[at : at + 1], kinds[:1])
    alone = time.process_time()
    characters = float(np.mean([len(text) for text in texts]))
    note(
        f"texts: questions of {characters:,.0f} characters on average; a trait model has {len(bytes_of(eye)):,} bytes"
    )
    report("learning", "texts", "ms_a_task_scored", 1e3 * (looked - learned) / len(texts), "ms", "<= 0.5")
    report("learning", "texts", "ms_a_task_scored_alone", 1e3 * (alone - looked) / 200, "ms", "<= 5")
    report("learning", "texts", "cpu_seconds_of_a_trait_model", learned - began, "s", "<= 4")
    generator = np.random.default_rng(1)
    traits = np.clip(generator.normal(size=(10_000, TRAITS)), -3, 3)
    half = np.full((20, len(KINDS)), 0.5)
    expected = Expectations(tuple(f"m{at:02}" for at in range(20)), half, half, half)
    rows = pd.DataFrame(
        {
            "task": np.arange(1_000_000) % 500_000,
            "model": np.array(expected.models)[generator.integers(0, 20, 1_000_000)],
            "domain": "backend",
            "complexity": "simple",
            "age_days": generator.integers(2, 60, 1_000_000).astype(float),
            "has_succeeded": generator.random(1_000_000) < 0.6,
        }
    )
    began = time.process_time()
    learn_texts(rows, expected, EYE, TraitsSeen.of(np.arange(10_000), traits), LearningPolicy(), seed=1)
    report("learning", "texts", "cpu_seconds_of_1m_outcomes", time.process_time() - began, "s", "<= 8")


def _nights() -> None:
    """Nights of 600 tasks a day, with texts that say nothing and with some that move log-odds by a half."""
    for case, size, nights in (("texts say nothing", 0.0, 200), ("texts say something", 0.5, 50)):
        found = [_night(size, seed) for seed in range(nights)]
        taken, promoted = (sum(each) / nights for each in zip(*found, strict=True))
        note(f"texts, {case}: taken on {taken:.1%} of {nights} nights, and past the gates on {promoted:.1%}")
        goal = ">= 0.9" if size else "<= 0.01"
        report("learning", case, "nights_past_gates", promoted, "share", goal)


def _night(size: float, seed: int) -> tuple[bool, bool]:
    """Whether texts are taken, and whether a candidate that changes nothing else passes the gates on outcomes."""
    generator, policy = np.random.default_rng(seed), LearningPolicy(placebos=100)
    shipped = load_configuration(PROJECT_ROOT / "config")
    ground = Ground(shipped.registry, shipped.policies.prediction, shipped.scoring, Learned())
    expected = ground.expectations()
    tasks, able = 600 * 12, np.flatnonzero((expected.success > 0).all(axis=1))[:4]
    kind, model = generator.integers(0, len(KINDS), tasks), able[generator.integers(0, len(able), tasks)]
    traits = np.clip(generator.normal(size=(tasks, TRAITS)), -3, 3)
    weights = np.random.default_rng(99).normal(size=TRAITS)
    shift = traits @ (size * weights / np.linalg.norm(weights))
    chance = expit(logit(np.clip(expected.success[model, kind], 0.01, 0.99)) + shift)
    rows = pd.DataFrame(
        {
            "task": np.arange(tasks),
            "model": np.array(expected.models)[model],
            "domain": [KINDS[each][0].value for each in kind],
            "complexity": [KINDS[each][1].value for each in kind],
            "age_days": np.arange(tasks) // 600,
            "has_succeeded": generator.random(tasks) < chance,
            "is_censored": False,
        }
    )
    earlier, later = (rows[chosen] for chosen in (rows["age_days"] >= 2, rows["age_days"] < 2))
    seen = {EYE: TraitsSeen.of(np.arange(tasks), traits)}
    found = learn_texts(earlier, expected, EYE, seen[EYE], policy, seed=seed)
    if found.trait_model is None:
        return False, False
    candidate = make_candidate(Found(texts=found), ground, policy.max_change, Examples(earlier, seen))
    evidence = Evidence(
        ground, candidate, policy, earlier, later, decided=len(later), ended=len(later), seed=seed, seen=seen
    )
    gates = (something_changed, enough_outcomes, forward_holdout, change_caps, placebo)
    return True, all(gate(evidence).has_passed for gate in gates)


def _mmlu(learned_from: int) -> Case:
    rows = _read("routellm_mmlu.csv.gz")
    rows = rows[rows["contaminated"] == 0].reset_index(drop=True)
    return Case(_scored(rows["prompt"]), rows[["gpt4_1106", "mixtral_8x7b"]], learned_from)


def _arena() -> Case:
    rows = _read("routerarena_sub10.csv.gz")
    scores = rows.pivot(index="global_index", columns="model", values="score") >= 0.5
    questions = rows.groupby("global_index")["question"].first().loc[scores.index]
    return Case(_scored(questions.reset_index(drop=True)), scores.reset_index(drop=True), 650)


def _scored(questions: pd.Series[str]) -> pd.DataFrame:
    tasks = pd.DataFrame({"title": "", "description": questions, "priority": 2, "workspace": "w"})
    tasks["labels"] = [[] for _ in range(len(tasks))]
    for name in ("estimated_files", "estimated_lines", "workspace_files", "deadline"):
        tasks[name] = None
    tasks["deadline"] = pd.to_datetime(tasks["deadline"], utc=True)
    tasks["submitted_at"], tasks["blocks_others"] = datetime(2026, 1, 1, tzinfo=UTC), False
    scores = score_tasks(tasks, load_configuration(PROJECT_ROOT / "config").scoring)
    return tasks.assign(domain=scores["domain"].astype(str), complexity=scores["complexity"].astype(str))


def _read(name: str) -> pd.DataFrame:
    path = DATA / name
    if not path.exists():
        raise SystemExit(f"{path} is missing; CP_SHARED_DATA may name the folder that holds {name}")
    return pd.read_csv(path)
