"""Experiments against a real PostgreSQL: arms take effect, and exposures are stored with what they led to."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from test_assigner import DAY, NOON, TOKENS, add_task, configuration
from test_assigner_strategies import market
from typer.testing import CliRunner

from cp_cli.main import app
from cp_core.learning.experiments.definition import ExperimentDefinition
from cp_core.learning.experiments.verdict import Verdict
from cp_core.learning.learned import Learned
from cp_resources.assigner import Assigner
from cp_resources.configuration import Configuration, ConfigurationError, load_file
from cp_resources.database import Database
from cp_resources.experiments import ExperimentError, Experiments
from cp_resources.ledger import Ledger
from cp_resources.planner import Planner
from cp_resources.scores import ScoreStore
from cp_resources.settings import PROJECT_ROOT

WEIGHT = "policies.objective.money_weight"


def definition(**changes: Any) -> ExperimentDefinition:
    return ExperimentDefinition.model_validate(
        {
            "experiment": "trial",
            "hypothesis": "more succeed",
            "arms": [
                {"name": "control"},
                {"name": "new", "overrides": {"policies.assignment.strategy": "minimize_cost"}},
            ],
            "metrics": [{"measure": "success"}],
            "planned_units_per_arm": 100,
            "least_units_per_arm": 10,
            "least_days": 1,
            **changes,
        }
    )


def running(
    database: Database, config: Configuration, one: ExperimentDefinition | None = None
) -> Experiments:
    """An experiment that began before the tasks of these tests were submitted."""
    experiments, one = Experiments(database), one or definition()
    experiments.create(one, "ada")
    experiments.start(one.experiment, config, "ada")
    with database.transaction() as connection:
        connection.execute("UPDATE experiments SET started_at = %s", [NOON - timedelta(hours=1)])
    return experiments


def arms(database: Database) -> dict[str, str]:
    return dict(database.fetch("SELECT unit, arm FROM exposures"))


def decided(database: Database) -> dict[str, tuple[str, str]]:
    """Strategy and configuration of each task's decision."""
    rows = database.fetch(
        "SELECT task_id, strategy, config_hash FROM assignments a JOIN tasks t ON t.id = a.task"
    )
    return {task: (strategy, config) for task, strategy, config in rows}


def test_each_task_of_a_batch_is_decided_under_its_arm(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    running(database, config)
    for number in range(40):
        add_task(database, f"T{number}", 50 + number / 2)
    assert Assigner(database, Ledger(database), config).assign_day(DAY).outcomes == {"assigned": 40}
    given, made = arms(database), decided(database)
    assert set(given) == set(made) == {f"T{number}" for number in range(40)}
    assert set(given.values()) == {"control", "new"}
    for task, arm in given.items():
        strategy, config_hash = made[task]
        assert strategy == ("minimize_cost" if arm == "new" else "maximize_value")
        assert (config_hash == config.content_hash) == (arm == "control")
    [(rounds,)] = database.fetch("SELECT count(*) FROM assignment_batches")
    assert rounds == 2
    kept = {row[0] for row in database.fetch("SELECT config_hash FROM config_versions")}
    assert {config_hash for _, config_hash in made.values()} <= kept
    assert Ledger(database).verify().balanced


def test_no_arm_takes_the_quota_of_another(database: Database) -> None:
    arms_alike = [{"name": "control"}, {"name": "new", "overrides": {"policies.exploration.below": 80}}]
    config = market(tokens=20 * TOKENS, usd=0.001)
    running(database, config, definition(arms=arms_alike))
    for number in range(60):
        add_task(database, f"T{number}", 70)
    Assigner(database, Ledger(database), config).assign_day(DAY)
    given = arms(database)
    rows = database.fetch("SELECT task_id FROM tasks WHERE state = 'assigned'")
    for arm in ("control", "new"):
        members = [task for task, its in given.items() if its == arm]
        assigned = sum(task in members for (task,) in rows)
        assert abs(assigned - 20 * len(members) / 60) <= 1
    assert len(rows) >= 19


def test_the_written_policy_gives_each_arm_its_share_too(database: Database) -> None:
    config = configuration(tokens=20 * TOKENS, usd=0.001, batch_size=7)
    one = definition(
        arms=[{"name": "control"}, {"name": "new", "overrides": {"policies.assignment.most_gap": 0.1}}]
    )
    running(database, config, one)
    for number in range(60):
        add_task(database, f"T{number}", 95)
    Assigner(database, Ledger(database), config).assign_day(DAY)
    given = arms(database)
    assigned = {task for (task,) in database.fetch("SELECT task_id FROM tasks WHERE state = 'assigned'")}
    for arm in ("control", "new"):
        members = {task for task, its in given.items() if its == arm}
        assert abs(len(assigned & members) - 20 * len(members) / 60) <= 2


def test_a_task_that_comes_alone_is_decided_under_its_arm(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    running(database, config)
    planner = Planner(database, Ledger(database), config)
    for number in range(12):
        add_task(database, f"T{number}", 70)
        foreseen = planner.rehearse(f"T{number}")
        assert f"T{number}" not in arms(database)  # a rehearsal exposes nobody
        assert planner.decide(f"T{number}").config_hash == foreseen.config_hash
    given, made = arms(database), decided(database)
    assert set(given.values()) == {"control", "new"}
    assert {task: its == "new" for task, its in given.items()} == {
        task: strategy == "minimize_cost" for task, (strategy, _) in made.items()
    }


def test_batch_and_inline_give_a_task_the_same_arm(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    experiments = running(database, config)
    stored = experiments.get("trial").running
    for number in range(10):
        add_task(database, f"T{number}", 70)
    Planner(database, Ledger(database), config).decide("T0")
    Assigner(database, Ledger(database), config).assign_day(DAY)
    assert stored is not None
    for task, arm in arms(database).items():
        expected = stored.arm_of(task, NOON, NOON)
        assert expected is not None
        assert arm == expected.name


def test_tasks_outside_the_traffic_or_from_before_the_start_are_not_touched(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    running(database, config, definition(traffic=0.3))
    for number in range(60):
        add_task(database, f"T{number}", 70)
    with database.transaction() as connection:
        connection.execute(
            "UPDATE tasks SET submitted_at = %s WHERE task_id < 'T2'", [NOON - timedelta(hours=2)]
        )
    Assigner(database, Ledger(database), config).assign_day(DAY)
    given, made = arms(database), decided(database)
    assert 0 < len(given) < 40
    assert not {task for task in given if task < "T2"}
    outside = {made[task] for task in made if task not in given}
    assert outside == {("maximize_value", config.content_hash)}


def test_a_decision_that_is_undone_exposes_nobody(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    running(database, config)
    add_task(database, "T1", 70)

    class BrokenLedger(Ledger):
        def reserve(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("the machine stopped")

        hold_all = reserve

    with pytest.raises(RuntimeError, match="stopped"):
        Assigner(database, BrokenLedger(database), config).assign_day(DAY)
    assert arms(database) == {}


def test_tasks_are_scored_under_their_arms(database: Database) -> None:
    config = configuration()
    one = definition(
        arms=[{"name": "control"}, {"name": "new", "overrides": {"scoring.priority_points.P0": 45}}]
    )
    running(database, config, one)
    for number in range(30):
        add_task(database, f"T{number}", None)
    assert ScoreStore(database).score_day(DAY, config) == 30
    given = arms(database)
    assert set(given.values()) == {"control", "new"}
    points = dict(
        database.fetch("SELECT task_id, priority_points FROM task_scores s JOIN tasks t ON t.id = s.task")
    )
    normal = config.scoring.model_dump(mode="json")["priority_points"]["P0"]
    assert points == {task: 45 if arm == "new" else normal for task, arm in given.items()}
    hashes = dict(
        database.fetch("SELECT task_id, config_hash FROM task_scores s JOIN tasks t ON t.id = s.task")
    )
    assert all((hashes[task] == config.content_hash) == (arm == "control") for task, arm in given.items())


def test_an_experiment_about_decisions_exposes_nobody_by_scoring(database: Database) -> None:
    config = configuration()
    running(database, config)
    add_task(database, "T1", None)
    ScoreStore(database).score_now("T1", config)
    assert arms(database) == {}


def test_an_arm_may_have_what_another_version_learned(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    better = config.with_learned(Learned(scoring={"priority_points.P0": 42}))
    with database.transaction() as connection:
        better.remember(connection)
    learned = definition(arms=[{"name": "control"}, {"name": "new", "learned_from": better.content_hash}])
    running(database, config, learned)
    for number in range(12):
        add_task(database, f"T{number}", 70)
    Assigner(database, Ledger(database), config).assign_day(DAY)
    hashes = {arms(database)[task]: config_hash for task, (_, config_hash) in decided(database).items()}
    assert hashes == {"control": config.content_hash, "new": better.content_hash}


def test_a_switchback_block_decides_everything_alike_and_is_stored(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    one = definition(unit="switchback", block_hours=2)
    experiments = running(database, config, one)
    for number in range(6):
        add_task(database, f"T{number}", 70)
    Assigner(database, Ledger(database), config).assign_day(DAY)
    [(arm, block, decided_at)] = database.fetch(
        """SELECT DISTINCT x.arm, x.block, a.decided_at FROM exposures x JOIN tasks t ON t.task_id = x.unit
           JOIN assignments a ON a.task = t.id"""
    )
    stored = experiments.get("trial").running
    assert stored is not None
    expected = stored.arm_of("whichever", NOON, block)
    assert expected is not None
    assert arm == expected.name
    assert block <= decided_at < block + timedelta(hours=4)  # the block in which it was read


def test_a_block_does_not_expose_what_still_waits(database: Database) -> None:
    config = market(tokens=2 * TOKENS, usd=0.001)
    running(database, config, definition(unit="switchback", block_hours=2))
    for number in range(5):
        add_task(database, f"T{number}", 70)
    Assigner(database, Ledger(database), config).assign_day(DAY)
    assigned = {task for (task,) in database.fetch("SELECT task_id FROM tasks WHERE state = 'assigned'")}
    assert set(arms(database)) == assigned
    assert len(assigned) == 2


def test_a_stopped_experiment_has_no_say_any_more(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    experiments = running(database, config)
    experiments.stop("trial", "enough", "ada")
    for number in range(5):
        add_task(database, f"T{number}", 70)
    Assigner(database, Ledger(database), config).assign_day(DAY)
    assert arms(database) == {}
    assert {config_hash for _, config_hash in decided(database).values()} == {config.content_hash}


def test_exposures_and_definitions_never_change(database: Database) -> None:
    config = market(tokens=1_000 * TOKENS)
    running(database, config)
    add_task(database, "T1", 70)
    Assigner(database, Ledger(database), config).assign_day(DAY)
    for statement in (
        "UPDATE exposures SET arm = 'other'",
        "DELETE FROM exposures",
        "UPDATE experiments SET definition = definition || '{\"alpha\": 0.2}'",
        "UPDATE experiments SET salt = 'another'",
        "DELETE FROM experiments",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation), database.transaction() as connection:
            connection.execute(statement)


def test_every_step_is_told_with_who_and_why(database: Database) -> None:
    experiments = running(database, configuration())
    experiments.graduate("trial", "new", "it saves money", "bob")
    rows = database.fetch("SELECT kind, payload ->> 'by', payload ->> 'reason' FROM events ORDER BY id")
    assert [row for row in rows if row[0].startswith("experiment.")] == [
        ("experiment.created", "ada", None),
        ("experiment.started", "ada", None),
        ("experiment.graduated", "bob", "it saves money"),
    ]
    assert experiments.get("trial").state == "graduated"


def test_experiments_of_a_layer_share_its_units_out_and_then_it_is_full(database: Database) -> None:
    config, experiments = configuration(), Experiments(database)
    for number, traffic in enumerate((0.6, 0.4, 0.1)):
        experiments.create(definition(experiment=f"trial-{number}", traffic=traffic), "ada")
    first = experiments.start("trial-0", config, "ada").first_bucket
    second = experiments.start("trial-1", config, "ada").first_bucket
    assert (first, second) == (0, 6_000)
    with pytest.raises(ExperimentError, match=r"no room for 10% .* trial-0 \(60%\), trial-1 \(40%\)"):
        experiments.start("trial-2", config, "ada")
    experiments.stop("trial-0", "enough", "ada")
    assert experiments.start("trial-2", config, "ada").first_bucket == 0


def test_two_layers_must_not_change_the_same(database: Database) -> None:
    config, experiments = configuration(), Experiments(database)
    experiments.create(definition(), "ada")
    experiments.create(definition(experiment="other", layer="second"), "ada")
    experiments.start("trial", config, "ada")
    with pytest.raises(ExperimentError, match=r"policies\.assignment\.strategy too"):
        experiments.start("other", config, "ada")


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"overrides": {"policies.exploration.speed": 1}}, "has no policies.exploration.speed"),
        ({"overrides": {"policies.exploration.rate": 0.9}}, "does not fit"),
        ({"learned_from": "0" * 64}, "no configuration version"),
    ],
    ids=["unknown key", "value not allowed", "unknown version"],
)
def test_an_arm_that_does_not_fit_the_configuration_cannot_start(
    database: Database, arm: dict[str, Any], message: str
) -> None:
    experiments = Experiments(database)
    experiments.create(definition(arms=[{"name": "control"}, {"name": "new", **arm}]), "ada")
    with pytest.raises(ConfigurationError, match=message):
        experiments.start("trial", configuration(), "ada")
    assert experiments.get("trial").state == "draft"


def test_steps_out_of_turn_are_refused(database: Database) -> None:
    experiments = Experiments(database)
    experiments.create(definition(), "ada")
    assert not experiments.create(definition(), "ada")
    with pytest.raises(ExperimentError, match="another experiment"):
        experiments.create(definition(alpha=0.1), "ada")
    with pytest.raises(ExperimentError, match="it must be running"):
        experiments.graduate("trial", "new", "why not", "ada")
    with pytest.raises(ExperimentError, match="no arm 'best'"):
        experiments.graduate("trial", "best", "why not", "ada")
    with pytest.raises(ExperimentError, match="--reason"):
        experiments.stop("trial", " ", "ada")
    experiments.stop("trial", "a mistake", "ada")
    with pytest.raises(ExperimentError, match="only a draft"):
        experiments.start("trial", configuration(), "ada")
    with pytest.raises(ExperimentError, match="no experiment 'missing'"):
        experiments.get("missing")


def ended(database: Database, successes: dict[str, int], *, a_day: int, days: int) -> None:
    """Tasks of both arms that ended on the days from DAY on, at noon; so many a day succeeded."""
    with database.transaction() as connection:
        for day in range(days):
            at = NOON + timedelta(days=day)
            for arm, won in successes.items():
                for number in range(a_day):
                    task_id, state = f"{arm}-{day}-{number}", "succeeded" if number < won else "failed"
                    [(task,)] = connection.execute(
                        """INSERT INTO tasks (task_id, submitted_at, priority, workspace, state, state_changed_at)
                           VALUES (%s, %s, 2, 'here', %s, %s) RETURNING id""",
                        [task_id, at, state, at],
                    ).fetchall()
                    connection.execute(_SCORE, [task, at.date()])
                    connection.execute(
                        "INSERT INTO exposures (experiment, unit, arm, exposed_at) VALUES ('trial', %s, %s, %s)",
                        [task_id, arm, at],
                    )


_SCORE = """INSERT INTO task_scores (task, submission_day, files, lines, size_source, complexity, complexity_factor,
       priority_points, time_bonus, time_bonus_reason, domain, domain_factor, domain_source, risk, risk_factor, score,
       input_mean, input_median, input_low, input_high, output_mean, output_median, output_low, output_high,
       config_hash)
   VALUES (%s, %s, 1, 1, 'given', 'simple', 1, 1, 0, 'none', 'backend', 1, 'default', 'development', 1, 50, 20000,
       20000, 10000, 40000, 2000, 2000, 1000, 4000, 'hash')"""


def test_a_look_sees_what_had_ended_by_then_and_no_more(database: Database) -> None:
    experiments = running(database, configuration())
    ended(database, {"control": 4, "new": 16}, a_day=20, days=3)
    first = experiments.look("trial", DAY)
    assert first.exposed == {"control": 20, "new": 20}
    assert first.comparisons[0].difference == pytest.approx(0.6)
    last = experiments.look("trial", DAY + timedelta(days=2))
    assert (last.exposed, last.days) == ({"control": 60, "new": 60}, 3)
    assert (last.verdict, last.arm) == (Verdict.GRADUATE, "new")
    assert [point.day for point in last.comparisons[0].sequence] == [
        DAY + timedelta(days=n) for n in range(3)
    ]
    assert experiments.look("trial", DAY) == first
    with pytest.raises(ExperimentError, match="had not started"):
        experiments.look("trial", DAY - timedelta(days=1))


def test_a_day_without_experiments_has_an_empty_result(database: Database) -> None:
    assert Experiments(database).results(DAY).experiments == ()


def test_the_example_is_sound_and_fits_the_shipped_configuration(database: Database) -> None:
    from cp_resources.configuration import load_configuration

    for file in (PROJECT_ROOT / "config" / "experiments").glob("*.yaml"):
        example = load_file(file, ExperimentDefinition)
        experiments = Experiments(database)
        experiments.create(example, "ada")
        experiments.start(example.experiment, load_configuration(PROJECT_ROOT / "config"), "ada")


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("CP_DATABASE_URL", database_url)
    return lambda *arguments: CliRunner().invoke(app, ["experiment", *arguments])


def test_the_command_takes_an_experiment_from_draft_to_conclusion(
    database: Database, command: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(yaml.safe_dump(definition().model_dump(mode="json")))
    assert "is a draft" in command("create", str(file), "--by", "ada").output
    assert "there already" in command("create", str(file), "--by", "ada").output
    assert "100% of layer default" in command("start", "trial", "--by", "ada").output
    with database.transaction() as connection:
        connection.execute("UPDATE experiments SET started_at = %s", [NOON - timedelta(hours=1)])
    ended(database, {"control": 4, "new": 16}, a_day=20, days=3)
    [listed] = json.loads(command("list", "--json").output)
    assert (listed["experiment"], listed["state"]) == ("trial", "running")
    assert yaml.safe_load(command("show", "trial").output)["hypothesis"] == "more succeed"
    result = json.loads(command("results", "trial", "--day", "2026-03-06", "--json").output)
    assert result["verdict"] == "graduate"
    assert "graduate: new is better in success" in command("results", "trial", "--day", "2026-03-06").output
    done = command("graduate", "trial", "--arm", "new", "--reason", "it is better", "--by", "ada")
    assert "write into policies.yaml: assignment.strategy: minimize_cost" in done.output
    assert "graduated" in command("list").output


def test_the_command_says_what_is_wrong_with_a_file(command: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    content = definition().model_dump(mode="json")
    content["arms"] = content["arms"][:1]
    file.write_text(yaml.safe_dump(content))
    failed = command("create", str(file))
    assert failed.exit_code != 0
    assert "arms" in str(failed.exception)
