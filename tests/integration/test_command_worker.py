"""The command worker with real processes: what is run, with what, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
from claimed_tasks import claimed, registry
from stub_provider import evidence_block

from cp_core.execution.cost import Usage
from cp_core.execution.outcome import AttemptResult
from cp_core.execution.policy import ExecutionPolicy
from cp_core.tasks.reasons import Reason
from cp_resources.executions import ClaimedTask
from cp_resources.settings import Settings
from cp_resources.worker_kinds import CutOffError, command
from cp_resources.worker_kinds.command import CommandWorker

POLICY = ExecutionPolicy(response_limit_bytes=4096)
INF = float("inf")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "a workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def agent(tmp_path: Path) -> Callable[[str], list[str]]:
    """Words that run a Python program."""

    def write(program: str) -> list[str]:
        path = tmp_path / "agent.py"
        path.write_text(dedent(program))
        return [sys.executable, "-I", str(path)]

    return write


def worker(
    words: list[str], workspace: Path, *, environ: dict[str, str] | None = None, **provider: Any
) -> CommandWorker:
    given = {"wire": "command", "command": words, "workspaces": {"acme/web": str(workspace)}, **provider}
    settings = Settings(home=workspace.parent / "home")
    return CommandWorker(registry(given), POLICY, settings, os.environ if environ is None else environ)


def attempt(kind: CommandWorker, task: ClaimedTask | None = None, *, seconds: float = INF) -> AttemptResult:
    async def run() -> AttemptResult:
        async with kind:
            return await kind.attempt(task or claimed(), seconds=seconds)

    return asyncio.run(run())


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    ends_at = time.monotonic() + seconds
    while not true():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


GOOD = f"print('Done.'); print({evidence_block()!r})"


def test_a_command_does_the_task_in_its_workspace(workspace: Path, agent: Callable[[str], list[str]]) -> None:
    words = agent(
        f"""
        import json, os, stat, sys
        path = sys.argv[1]
        seen = {{
            "argv": sys.argv[2:],
            "cwd": os.getcwd(),
            "prompt": open(path).read(),
            "mode": stat.S_IMODE(os.stat(path).st_mode),
            "folder mode": stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode),
            "path": path,
            "stdin": sys.stdin.read(),
        }}
        json.dump(seen, open("seen.json", "w"))
        {GOOD}
        print(json.dumps({{"usage": {{"input_tokens": 2000, "output_tokens": 500}}}}))
        """
    )
    result = attempt(
        worker([*words, "{prompt_file}", "--model={model}", "{workspace}", "{task_id}"], workspace)
    )
    seen = json.loads((workspace / "seen.json").read_text())

    assert (result.reason, result.quality, result.error) == (None, 10.0, None)
    assert result.usage == Usage(2000, 0, 0, 500)
    assert result.cost_usd == Decimal("0.004")  # 2,000 at 1 dollar and 500 at 4 dollars a million
    assert seen["argv"] == ["--model=agent-1", str(workspace), "t-1"]
    assert Path(seen["cwd"]) == workspace.resolve()
    assert "Title: A title" in seen["prompt"]
    assert "What to do" in seen["prompt"]
    assert (seen["mode"], seen["folder mode"], seen["stdin"]) == (0o600, 0o700, "")
    assert not Path(seen["path"]).parent.exists()


def test_without_a_prompt_file_the_prompt_is_the_standard_input(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    words = agent(f"import sys; text = sys.stdin.read(); assert 'What to do' in text\n{GOOD}")
    result = attempt(worker(words, workspace))

    assert result.reason is None
    # Nobody reported usage: the prompt and the 110 characters or so of the answer, at 3 a token.
    assert result.output is not None
    assert result.usage.output_tokens == len(result.output) // 3
    assert result.usage.input_tokens > 300


HOSTILE = [
    "; touch {marker}",
    "$(touch {marker})",
    "`touch {marker}`",
    "| touch {marker}",
    "--marker={marker}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_task_says_is_never_executed_nor_an_option(
    workspace: Path, agent: Callable[[str], list[str]], tmp_path: Path, text: str
) -> None:
    marker = tmp_path / "marker"
    text = text.format(marker=marker)
    words = agent(f"import json, sys; json.dump(sys.argv[1:], open('argv.json', 'w'))\n{GOOD}")
    kind = worker([*words, "{prompt_file}", "--task={task_id}"], workspace)
    task = claimed(task_id=text, title=text, description=text, labels=[text])

    assert attempt(kind, task).reason is None
    prompt, flag = json.loads((workspace / "argv.json").read_text())
    assert flag == f"--task={text}"
    assert text not in prompt
    assert not marker.exists()


def test_a_task_id_that_would_be_an_option_is_refused(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    words = agent("open('started', 'w')")
    result = attempt(worker([*words, "{task_id}"], workspace), claimed(task_id="--yolo"))

    assert result.reason is Reason.INVALID_REQUEST
    assert "--yolo" in str(result.error)
    assert not (workspace / "started").exists()


@pytest.mark.parametrize("name", ["acme/other", "../a workspace", "acme/web/..", "$(pwd)", "", "/"])
def test_a_workspace_that_is_not_listed_is_refused_for_good(
    workspace: Path, agent: Callable[[str], list[str]], name: str
) -> None:
    result = attempt(worker(agent("open('started', 'w')"), workspace), claimed(workspace=name))

    assert result.reason is Reason.INVALID_REQUEST
    assert "is not among those of worker in models.yaml: acme/web" in str(result.error)
    assert not (workspace / "started").exists()


def test_a_workspace_whose_folder_is_gone_is_named(tmp_path: Path) -> None:
    result = attempt(worker(["true"], tmp_path / "gone"))

    assert result.reason is Reason.INVALID_REQUEST
    assert str(tmp_path / "gone") in str(result.error)


def test_only_the_variables_that_are_named_reach_the_command(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    words = agent(f"import json, os; json.dump(dict(os.environ), open('env.json', 'w'))\n{GOOD}")
    environ = {"AGENT_REGION": "eu", "OPENAI_API_KEY": "planted", "CP_DATABASE_URL": "planted"}
    kind = worker(words, workspace, environ=environ, environment=["AGENT_REGION", "NOT_SET"])

    assert attempt(kind).reason is None
    seen = json.loads((workspace / "env.json").read_text())
    seen.pop("LC_CTYPE", None)  # Python's own
    assert len(seen.pop(command.RUN_MARK)) == 64
    assert seen == {"AGENT_REGION": "eu", "CONTROL_PANEL_TASK": "t-1", "CONTROL_PANEL_ATTEMPT": "2"}


def test_a_key_that_a_command_prints_is_struck_out(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    key = "planted-secret-7f3a"
    words = agent("import os, sys; print(os.environ['AGENT_KEY']); sys.exit(os.environ['AGENT_KEY'])")
    result = attempt(worker(words, workspace, environ={"AGENT_KEY": key}, environment=["AGENT_KEY"]))

    assert result.reason is Reason.SERVER_ERROR
    assert key not in f"{result.output} {result.error}"
    assert "code 1" in str(result.error)


@pytest.mark.parametrize(
    ("program", "reason", "says"),
    [
        ("import sys; print('oh no', file=sys.stderr); sys.exit(3)", Reason.SERVER_ERROR, "code 3; .*oh no"),
        ("import sys; sys.exit(75)", Reason.OVERLOADED, "code 75"),
        ("import sys; sys.exit(127)", Reason.INVALID_REQUEST, "code 127"),
        ("import os; os.kill(os.getpid(), 9)", Reason.SERVER_ERROR, "signal 9"),
    ],
)
def test_a_command_that_fails_says_how(
    workspace: Path, agent: Callable[[str], list[str]], program: str, reason: Reason, says: str
) -> None:
    result = attempt(worker(agent(program), workspace))

    assert result.reason is reason
    assert re.search(says, str(result.error))
    assert (result.quality, result.evidence) == (None, None)


def test_the_tokens_of_a_command_that_failed_count(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    words = agent("""print('{"usage": {"input_tokens": 10, "output_tokens": 5}}'); raise SystemExit(1)""")

    assert attempt(worker(words, workspace)).usage == Usage(10, 0, 0, 5)


def test_a_program_that_is_missing_or_cannot_run_fails_for_good(workspace: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for words in (["no-such-agent-here"], [str(plain)], [str(tmp_path / "missing")]):
        result = attempt(worker(words, workspace))
        assert (result.reason, result.usage) == (Reason.INVALID_REQUEST, Usage())
        assert words[0] in str(result.error)


def test_finished_work_without_evidence_is_not_good_enough(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    result = attempt(worker(agent("print('Done, trust me.')"), workspace))

    assert (result.reason, result.quality) == (Reason.LOW_QUALITY, 0.0)


CHILD = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("grandchild.tmp", "w").write(str(grandchild.pid))
os.rename("grandchild.tmp", "grandchild")
time.sleep(600)
"""
FAMILY = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
open("family", "w").write(str(os.getpid()) + " " + str(child.pid))
"""


def family_of(workspace: Path) -> list[int]:
    return [int(pid) for name in ("family", "grandchild") for pid in (workspace / name).read_text().split()]


def test_a_command_out_of_time_is_killed_with_its_children_and_grandchildren(
    workspace: Path, agent: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TERMINATION_SECONDS", 0.3)
    kind = worker(agent(FAMILY + "time.sleep(600)"), workspace, timeout_seconds=3)
    result = attempt(kind)

    assert result.reason is Reason.TIMEOUT
    assert "within 3 s" in str(result.error)
    assert eventually(lambda: not any(is_running(pid) for pid in family_of(workspace)))


def test_a_command_has_no_more_time_than_its_task(workspace: Path, agent: Callable[[str], list[str]]) -> None:
    started = time.monotonic()
    result = attempt(
        worker(agent("import time; time.sleep(600)"), workspace, timeout_seconds=900), seconds=0.5
    )

    assert result.reason is Reason.TIMEOUT
    assert time.monotonic() - started < 10


def test_what_a_command_leaves_running_ends_with_it(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    wait = "while not os.path.exists('grandchild'): time.sleep(0.01)"
    result = attempt(worker(agent(f"{FAMILY}{wait}\n{GOOD}"), workspace))

    assert result.reason is None
    assert eventually(lambda: not any(is_running(pid) for pid in family_of(workspace)))


DEFECTOR = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
open("defector.tmp", "w").write(str(child.pid))
os.rename("defector.tmp", "defector")
"""


@pytest.mark.parametrize("how", ["ends", "is out of time"])
def test_a_process_that_left_the_group_ends_with_its_command(
    workspace: Path, agent: Callable[[str], list[str]], how: str
) -> None:
    rest = GOOD if how == "ends" else "time.sleep(600)"
    result = attempt(worker(agent(DEFECTOR + rest), workspace, timeout_seconds=30 if how == "ends" else 3))

    assert result.reason is (None if how == "ends" else Reason.TIMEOUT)
    defector = int((workspace / "defector").read_text())
    assert eventually(lambda: not is_running(defector))


def test_a_cancelled_attempt_ends_its_command(
    workspace: Path, agent: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TERMINATION_SECONDS", 0.3)
    kind = worker(agent(FAMILY + "time.sleep(600)"), workspace)

    async def run() -> None:
        running = asyncio.create_task(kind.attempt(claimed(), seconds=INF))
        while not (workspace / "grandchild").exists():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(run())
    assert eventually(lambda: not any(is_running(pid) for pid in family_of(workspace)))


def test_a_command_is_asked_to_end_before_it_is_killed(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    words = agent(
        """
        import signal, sys, time
        def end(*_):
            print('{"usage": {"input_tokens": 10, "output_tokens": 5}}', flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        time.sleep(600)
        """
    )
    result = attempt(worker(words, workspace, timeout_seconds=2))

    assert (result.reason, result.usage) == (Reason.TIMEOUT, Usage(10, 0, 0, 5))


def test_a_cancelled_command_tells_what_it_used_by_then(
    workspace: Path, agent: Callable[[str], list[str]]
) -> None:
    words = agent(
        """
        import signal, sys, time
        def end(*_):
            print('{"usage": {"input_tokens": 1000, "output_tokens": 500}}', flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        sys.stdin.read()  # the prompt: the worker knows its command from then on
        open("ready", "w")
        time.sleep(600)
        """
    )

    async def run() -> AttemptResult:
        running = asyncio.create_task(worker(words, workspace).attempt(claimed(), seconds=INF))
        while not (workspace / "ready").exists():
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await running
        cut = raised.value.__context__ if not isinstance(raised.value, CutOffError) else raised.value
        assert isinstance(cut, CutOffError)
        return cut.result

    result = asyncio.run(run())
    assert (result.reason, result.usage) == (Reason.CANCELLED, Usage(1000, 0, 0, 500))
    assert result.cost_usd == Decimal("0.003")  # 1,000 at 1 dollar and 500 at 4 dollars a million
    assert "the command was stopped" in str(result.error)


def test_a_flood_of_output_is_cut_and_ended(workspace: Path, agent: Callable[[str], list[str]]) -> None:
    started = time.monotonic()
    result = attempt(worker(agent("while True: print('x' * 1000)"), workspace, timeout_seconds=60))

    assert result.reason is Reason.TRUNCATED
    assert "4096 bytes" in str(result.error)
    assert result.output is not None
    assert len(result.output) == 4096
    assert time.monotonic() - started < 20


def test_two_tasks_of_one_workspace_take_turns(workspace: Path, agent: Callable[[str], list[str]]) -> None:
    words = agent(f"import os, time; os.mkdir('held'); time.sleep(0.2); os.rmdir('held')\n{GOOD}")
    kind = worker(words, workspace)

    async def run() -> list[AttemptResult]:
        return await asyncio.gather(*(kind.attempt(claimed(), seconds=INF) for _ in range(3)))

    assert [result.reason for result in asyncio.run(run())] == [None, None, None]


def test_output_that_is_no_text_is_kept_as_text(workspace: Path, agent: Callable[[str], list[str]]) -> None:
    words = agent(f"import sys; sys.stdout.buffer.write(bytes([0, 255, 10])); sys.stdout.flush()\n{GOOD}")
    result = attempt(worker(words, workspace))

    assert result.reason is None
    assert str(result.output).startswith("\ufffd\ufffd\n")


def test_with_the_simulator_no_command_is_served(workspace: Path) -> None:
    given = {"wire": "command", "command": ["true"], "workspaces": {"acme/web": str(workspace)}}
    kind = CommandWorker(registry(given), POLICY, Settings(simulator_url="http://127.0.0.1:9"))

    assert kind.providers == frozenset()
