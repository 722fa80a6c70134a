"""Texts that decide what succeeds are found out at night, promoted, seen when tasks are scored, and weighed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta

import numpy as np
import psycopg
import pytest
from dagster import AssetKey, ExecuteInProcessResult
from worked_day import DAY, run, submit

from cp_core.assignment.calibration import Calibration, TraitWeights
from cp_core.assignment.predict import Predictor
from cp_core.assignment.strategies import Strategy
from cp_core.learning.learned import Learned
from cp_core.learning.success_cells import SuccessFound
from cp_core.learning.trait_model import TRAITS, TraitModel
from cp_definitions import build_defs
from cp_resources.artifacts import ArtifactError, Artifacts
from cp_resources.assigner import Assigner
from cp_resources.assignment_replay import Replay
from cp_resources.champion import ConfigurationStore
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.database import Database
from cp_resources.learning_results import LearningResults
from cp_resources.ledger import Ledger
from cp_resources.planner import Planner
from cp_resources.scores import ScoreStore
from cp_resources.settings import PROJECT_ROOT, Settings
from cp_resources.trait_models import KIND, TraitModels, bytes_of

FILES = load_configuration(PROJECT_ROOT / "config")
NIGHT = [AssetKey("success_model"), AssetKey("candidate_config"), AssetKey("calibrated_config")]
A_DAY = 300
DAYS = [DAY + timedelta(days=number) for number in range(8)]
MODEL = "claude-haiku-5-5"
EASY, HARD = "rename the button", "untangle the deadlock"
FILLER = ("in the shop", "for the customers", "before the release", "as agreed", "once more", "with care")

Outcome = Callable[[str, np.random.Generator], bool]


def by_text(title: str, generator: np.random.Generator) -> bool:
    """Good work in 95 of 100 easy tasks, and in 30 of 100 hard ones."""
    return bool(generator.random() < (0.95 if EASY in title else 0.30))


def add_day(database: Database, day: date, folder, outcome: Outcome = by_text) -> None:
    """A day of tasks, each scored under what is in force and tried once by one model that does well what is easy."""
    generator = np.random.default_rng(day.toordinal())
    titles = [" ".join([(EASY, HARD)[number % 2], *generator.choice(FILLER, 3)]) for number in range(A_DAY)]
    submit(
        database,
        [
            {
                "id": f"{day}-{number}",
                "title": title,
                "description": "",
                "priority": "P2",
                "labels": ["backend"],
                "workspace": "acme/shop",
                "submitted_at": f"{day}T08:00:00Z",
            }
            for number, title in enumerate(titles)
        ],
        folder,
    )
    ScoreStore(database).score_day(day, in_force(database))
    with database.transaction() as connection:
        for number, title in enumerate(titles):
            good = outcome(title, generator)
            connection.execute(
                _TRIED,
                {
                    "task_id": f"{day}-{number}",
                    "model": MODEL,
                    "state": "succeeded" if good else "failed",
                    "reason": None if good else "LOW_QUALITY",
                    "config_hash": FILES.content_hash,
                },
            )


def in_force(database: Database) -> Configuration:
    return ConfigurationStore(database).in_force(FILES)


def night(database: Database, day: date, folder) -> ExecuteInProcessResult:
    settings = Settings(home=folder)
    defs = build_defs(database=database, settings=settings, configuration=in_force(database))
    return run(defs, "daily_learning", day, asset_selection=NIGHT)


def chances(database: Database, configuration: Configuration) -> dict[str, float]:
    """Success that is predicted of the latest easy and hard tasks, from what was stored with their scores."""
    rows = database.fetch(
        "SELECT p.title, s.domain, s.complexity, s.traits FROM task_scores s JOIN task_payloads p USING (task) "
        "WHERE s.trait_model = %s ORDER BY s.task DESC LIMIT 100",
        [configuration.learned.calibration.trait_model],
    )
    columns = {
        "domain": [row[1] for row in rows],
        "complexity": [row[2] for row in rows],
        "traits": [row[3] for row in rows],
        **{
            f"{kind}_{which}": [100.0] * len(rows)
            for kind in ("input", "output")
            for which in ("mean", "median")
        },
    }
    predictor = Predictor(
        [configuration.registry.models[MODEL]],
        configuration.policies.prediction,
        configuration.learned.calibration,
    )
    found = predictor.predict(columns).success[0]
    return {
        text: float(np.mean([p for p, row in zip(found, rows, strict=True) if text in row[0]]))
        for text in (EASY, HARD)
    }


@pytest.fixture
def remembered(database: Database) -> Database:
    """A database that knows the files."""
    ConfigurationStore(database).remember(FILES)
    return database


def test_texts_that_decide_are_promoted_seen_in_the_next_tasks_and_weighed(remembered, tmp_path):
    for day in DAYS:
        add_day(remembered, day, tmp_path)
        assert night(remembered, day, tmp_path).success
    store = ConfigurationStore(remembered)
    champion = in_force(remembered)
    eye = champion.learned.calibration.trait_model
    assert eye is not None, [line.reason for line in store.history()]
    assert Artifacts(remembered).has(eye)

    seen = dict(
        remembered.fetch(
            "SELECT submission_day, count(*) FILTER (WHERE trait_model IS NOT NULL) FROM task_scores GROUP BY 1"
        )
    )
    assert seen[DAYS[0]] == 0
    assert seen[DAYS[-1]] == A_DAY
    chance = chances(remembered, champion)
    assert chance[EASY] > chance[HARD] + 0.1

    day = DAYS[-1] + timedelta(days=1)
    add_day(remembered, day, tmp_path)
    before = remembered.fetch("SELECT day, config_hash FROM config_candidates ORDER BY day")
    night(remembered, DAYS[-1], tmp_path)
    found = LearningResults(remembered).read(DAYS[-1], "success_model")
    assert SuccessFound.model_validate(found).texts.trait_model == eye
    assert remembered.fetch("SELECT day, config_hash FROM config_candidates ORDER BY day") == before

    store.roll_back(by="a person", reason="to see")
    assert in_force(remembered) != champion
    store.roll_back(by="a person", reason="and back")
    assert in_force(remembered) == champion
    assert bytes_of(TraitModels(remembered).load(eye)) == Artifacts(remembered).get(eye, KIND)


def test_nothing_of_the_days_that_judge_is_learned(remembered, tmp_path):
    """On the days that judge, each of them new words, a text decides that decided nothing before."""

    def by_chance(title: str, generator: np.random.Generator) -> bool:
        return bool(generator.random() < 0.6)

    def planted(title: str, generator: np.random.Generator) -> bool:
        return EASY in title

    for day in DAYS[:-2]:
        add_day(remembered, day, tmp_path, by_chance)
    for day in DAYS[-2:]:
        add_day(remembered, day, tmp_path, planted)
    assert night(remembered, DAYS[-1], tmp_path).success
    with_plant = LearningResults(remembered).read(DAYS[-1], "success_model")["texts"]
    candidate = remembered.fetch("SELECT config_hash FROM config_candidates")
    remembered.fetch(
        "UPDATE executions SET state = 'failed', reason = 'LOW_QUALITY' WHERE submission_day >= %s RETURNING id",
        [DAYS[-2]],
    )
    night(remembered, DAYS[-1], tmp_path)
    assert LearningResults(remembered).read(DAYS[-1], "success_model")["texts"] == with_plant
    assert remembered.fetch("SELECT config_hash FROM config_candidates") == candidate
    assert with_plant["trait_model"] is None


@pytest.fixture
def eye(database: Database) -> str:
    """A stored trait model."""
    texts = [f"{(EASY, HARD)[n % 2]} {FILLER[n % 6]} {FILLER[n % 5]}" for n in range(200)]
    model = TraitModel.learn(texts, ["backend/simple"] * 200, day=DAY, seed=1)
    return TraitModels(database).keep(model)


def with_texts(eye: str, size: float = 1.0, **of_assignment) -> Configuration:
    """The files, and texts that speak for one model."""
    weights = TraitWeights(success={MODEL: (size,) * TRAITS})
    learned = Learned(calibration=Calibration(trait_model=eye, traits=weights))
    policies = FILES.policies.model_copy(
        update={"assignment": FILES.policies.assignment.model_copy(update=of_assignment)}
    )
    return Configuration(FILES.registry, FILES.scoring, policies).with_learned(learned)


def scored(database: Database, configuration: Configuration, folder, count: int = 4) -> None:
    submit(
        database,
        [
            {
                "id": f"T{n}",
                "title": (EASY, HARD)[n % 2],
                "priority": "P2",
                "workspace": "w",
                "submitted_at": f"{DAY}T08:00:00Z",
            }
            for n in range(count)
        ],
        folder,
    )
    ScoreStore(database).score_day(DAY, configuration)


class TestScoring:
    def test_each_score_says_what_was_seen_and_by_which_eye(self, database, eye, tmp_path):
        scored(database, with_texts(eye), tmp_path)
        rows = database.fetch(
            "SELECT title, traits, trait_model FROM task_scores JOIN task_payloads USING (task)"
        )
        model = TraitModels(database).load(eye)
        for title, traits, trait_model in rows:
            assert trait_model == eye
            [(domain, complexity)] = database.fetch("SELECT DISTINCT domain, complexity FROM task_scores")
            [expected] = model.traits_of([f"{title} \n"], [f"{domain}/{complexity}"])
            assert traits == pytest.approx(expected.tolist(), rel=1e-6)

    def test_one_task_scored_by_itself_is_seen_alike(self, database, eye, tmp_path):
        scored(database, with_texts(eye), tmp_path)
        before = database.fetch("SELECT traits, trait_model FROM task_scores ORDER BY task")
        for n in range(4):
            ScoreStore(database).score_now(f"T{n}", with_texts(eye))
        assert database.fetch("SELECT traits, trait_model FROM task_scores ORDER BY task") == before

    def test_without_an_eye_nothing_is_seen(self, database, tmp_path):
        scored(database, FILES, tmp_path)
        assert database.fetch("SELECT DISTINCT traits, trait_model FROM task_scores") == [(None, None)]


class TestAssignment:
    def decided(self, database: Database, configuration: Configuration) -> dict[str, dict]:
        Assigner(database, Ledger(database), configuration).assign_day(DAY)
        return {
            task: Replay(database).plan(decision)
            for task, decision in database.fetch(
                "SELECT t.task_id, a.decision_id FROM assignments a JOIN tasks t ON t.id = a.task"
            )
        }

    def test_a_decision_weighs_traits_and_can_be_made_again(self, database, eye, tmp_path):
        configuration = with_texts(eye, strategy=Strategy.MAXIMIZE_VALUE)
        scored(database, configuration, tmp_path)
        again = self.decided(database, configuration)
        rows = database.fetch(
            "SELECT t.task_id, s.traits, a.figures, b.legend, a.plan FROM assignments a "
            "JOIN tasks t ON t.id = a.task JOIN task_scores s ON s.task = t.id "
            "JOIN assignment_batches b ON b.id = a.batch ORDER BY 1"
        )
        assert len(rows) == 4
        for task, traits, figures, _, plan in rows:
            assert figures[-TRAITS:] == pytest.approx(traits, rel=1e-6)
            assert again[task] is not None
            assert plan[0]["model"] in again[task]

    def test_traits_of_another_eye_are_not_read(self, database, eye, tmp_path):
        scored(database, with_texts(eye), tmp_path)
        other = with_texts("0" * 64, strategy=Strategy.MAXIMIZE_VALUE)
        self.decided(database, other)
        rows = database.fetch("SELECT figures FROM assignments")
        assert all(set(figures[-TRAITS:]) == {0.0} for (figures,) in rows)

    def test_a_task_that_comes_alone_is_decided_with_its_traits(self, database, eye, tmp_path):
        configuration = with_texts(eye, strategy=Strategy.MAXIMIZE_VALUE)
        scored(database, configuration, tmp_path)
        made = Planner(database, Ledger(database), configuration).decide("T0")
        [(traits,)] = database.fetch(
            "SELECT s.traits FROM task_scores s JOIN tasks t ON t.id = s.task WHERE t.task_id = 'T0'"
        )
        assert made.explanation["traits"] == pytest.approx(traits, rel=1e-6)

    def test_no_decision_loads_a_trait_model_or_looks_at_a_text(self, database, eye, tmp_path, monkeypatch):
        configuration = with_texts(eye, strategy=Strategy.MAXIMIZE_VALUE)
        scored(database, configuration, tmp_path)

        def refuse(*_: object) -> None:
            raise AssertionError("a decision looked at a text")

        monkeypatch.setattr(TraitModels, "load", refuse)
        monkeypatch.setattr(TraitModel, "traits_of", refuse)
        assert Planner(database, Ledger(database), configuration).decide("T1").explanation["traits"]
        assert Assigner(database, Ledger(database), configuration).assign_day(DAY).decided == 3


class TestArtifacts:
    def test_a_process_loads_a_trait_model_once(self, database, eye):
        assert TraitModels(database).load(eye) is TraitModels(database).load(eye)

    def test_equal_bytes_are_kept_once_under_their_hash(self, database):
        first, second = (Artifacts(database).put("test", b"abc") for _ in range(2))
        # of the test vectors of FIPS 180-4
        assert first == second == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert Artifacts(database).get(first, "test") == b"abc"

    def test_what_is_stored_stays_as_it_is(self, database):
        name = Artifacts(database).put("test", b"abc")
        for statement in (
            "UPDATE artifacts SET content = 'x'",
            "DELETE FROM artifacts",
            "TRUNCATE artifacts",
        ):
            with pytest.raises(psycopg.Error, match="append"), database.transaction() as connection:
                connection.execute(statement)
        assert Artifacts(database).get(name, "test") == b"abc"

    def test_bytes_that_are_not_what_their_hash_says_are_refused(self, database, tmp_path):
        name = "f" * 64
        database.fetch(
            "INSERT INTO artifacts (artifact_hash, kind, content) VALUES (%s, %s, 'tampered') RETURNING 1",
            [name, KIND],
        )
        with pytest.raises(ArtifactError, match="is not what was stored"):
            scored(database, with_texts(name), tmp_path)

    def test_one_that_is_missing_or_of_another_kind_is_named(self, database):
        with pytest.raises(ArtifactError, match="is not stored"):
            TraitModels(database).load("a" * 64)
        name = Artifacts(database).put("test", b"abc")
        with pytest.raises(ArtifactError, match="is a test, not a trait_model"):
            TraitModels(database).load(name)

    def test_a_champion_without_its_artifact_decides_without_texts_and_says_so(self, database):
        store = ConfigurationStore(database)
        version = store.remember(with_texts("a" * 64))
        store.promote(
            version, instead_of=None, base=store.remember(FILES), by="a person", reason="test", evidence={}
        )
        assert in_force(database).learned == Learned()
        [(said,)] = database.fetch(
            "SELECT payload ->> 'left_out' FROM events WHERE kind = 'learned.left_out'"
        )
        assert "is not stored" in said


_TRIED = """
    WITH task AS (SELECT id, submission_day FROM tasks WHERE task_id = %(task_id)s),
    moved AS (UPDATE tasks SET state = 'succeeded' WHERE id = (SELECT id FROM task)),
    decided AS (
        INSERT INTO assignments (decision_id, task, submission_day, strategy, outcome, model, funding, plan,
            explanation, config_hash, path)
        SELECT gen_random_uuid(), id, submission_day, 'tiered', 'assigned', %(model)s, 'budget:test', '[]', '{}',
            %(config_hash)s, 'batch' FROM task
        RETURNING id, task, submission_day
    )
    INSERT INTO executions (task, assignment, submission_day, attempt, model, provider, funding, worker, state, reason,
        started_at, finished_at)
    SELECT task, id, submission_day, 1, %(model)s, 'test', 'budget:test', 'test', %(state)s, %(reason)s, now(), now()
    FROM decided
"""
