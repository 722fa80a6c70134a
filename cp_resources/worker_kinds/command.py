"""The command worker: runs an agent's command line in the task's workspace.

The command is the operator's, from models.yaml; no shell reads it, and nothing a task says becomes an argument.
Each run is a process group of its own that ends as a whole, and with it what left the group but kept the run's mark in
its environment. It has the environment variables it was given and no others, and is bounded in time and in output.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self
from uuid import uuid4

import psutil

from cp_core.execution.command import (
    UnsafeArgumentError,
    command_line,
    exit_reason,
    reported_usage,
    takes_prompt_file,
)
from cp_core.execution.cost import NO_USAGE, cost_usd, usage_by_length
from cp_core.execution.failures import scrub
from cp_core.execution.outcome import AttemptResult, judge
from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.prompt import Prompt, command_prompt
from cp_core.models.registry import ModelRegistry, Provider, Wire
from cp_core.tasks.reasons import Reason
from cp_resources.executions import ClaimedTask
from cp_resources.settings import Settings
from cp_resources.worker_kinds import CutOffError, NotBegunError

RUN_MARK = "CONTROL_PANEL_RUN"
"""Variable that every process of a run inherits, also one that has left its group and its parents."""
TERMINATION_SECONDS = 3.0
"""How long a command may take to end after SIGTERM; then its group is killed."""
LAST_OUTPUT_SECONDS = 1.0
"""How long is waited for the pipes of a killed group, which a process that left the group may hold open."""
STDERR_TAIL_BYTES = 2_000
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a run ended: on its own, with an exit code, or cut off for a reason."""

    code: int | None
    cut_off: Reason | None
    output: str
    stderr: str


class CommandWorker:
    """Attempts by the commands of models.yaml. With CP_SIMULATOR_URL it serves none."""

    def __init__(
        self,
        registry: ModelRegistry,
        policy: ExecutionPolicy,
        settings: Settings,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._registry = registry
        self._policy = policy
        self._environment = environment
        self._served = {
            provider.name: provider
            for provider in registry.providers.values()
            if provider.wire is Wire.COMMAND and not settings.simulator_url
        }
        # Two agents in one checkout would undo each other's work.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._folder = settings.home / "commands"
        self._name = uuid4().hex
        self._alive = ExitStack()

    async def __aenter__(self) -> Self:
        if self._served:
            await asyncio.to_thread(_end_runs_of_the_dead, self._folder)
            self._alive.enter_context(_known_alive(self._folder, self._name))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._alive.close()

    @property
    def providers(self) -> frozenset[str]:
        """Names of the providers that are commands."""
        return frozenset(self._served)

    async def attempt(self, claimed: ClaimedTask, *, seconds: float) -> AttemptResult:
        """See `WorkerKind.attempt`."""
        provider = self._served[claimed.provider]
        folder = provider.workspaces.get(claimed.workspace)
        if folder is None:
            return AttemptResult(Reason.INVALID_REQUEST, error=_not_served(claimed, provider))
        if not Path(folder).is_dir():
            error = f"the folder of workspace {claimed.workspace!r}, {folder}, does not exist"
            return AttemptResult(Reason.INVALID_REQUEST, error=error)
        waited_from = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                await self._turns[folder].acquire()
        except TimeoutError:
            error = f"the deadline came while another task was at work in {folder}"
            return AttemptResult(Reason.TIMEOUT, error=error)
        except asyncio.CancelledError as cancelled:
            raise NotBegunError from cancelled
        try:
            return await self._run(claimed, provider, folder, seconds - (time.monotonic() - waited_from))
        finally:
            self._turns[folder].release()

    async def _run(
        self, claimed: ClaimedTask, provider: Provider, folder: str, seconds: float
    ) -> AttemptResult:
        prompt = command_prompt(claimed.title, claimed.description, claimed.workspace, claimed.labels)
        environment = self._environment_of(claimed, provider)
        limit = min(seconds, provider.timeout_seconds or self._policy.timeout_seconds)
        started = time.perf_counter()
        with _prompt_file(prompt) as path:
            try:
                words = command_line(
                    provider.command,
                    {
                        "prompt_file": str(path),
                        "workspace": folder,
                        "model": self._registry.model(claimed.model).api_name,
                        "task_id": claimed.task_id,
                    },
                )
                with _standard_input(provider, path) as stdin:
                    ended = await _execute(
                        words, folder, environment, stdin, limit, self._policy.response_limit_bytes
                    )
            except UnsafeArgumentError as error:
                return AttemptResult(Reason.INVALID_REQUEST, error=scrub(f"command: {error}"))
            except OSError as error:
                return AttemptResult(_not_started(error), error=scrub(f"command: {error}"))
        secrets = tuple(value for name, value in environment.items() if _SECRET_NAME.search(name))
        latency_ms = (time.perf_counter() - started) * 1000
        result = self._result(claimed, prompt, ended, secrets, limit, latency_ms)
        if result.reason is Reason.CANCELLED:
            raise CutOffError(result)
        return result

    def _environment_of(self, claimed: ClaimedTask, provider: Provider) -> dict[str, str]:
        given = {name: self._environment[name] for name in provider.environment if name in self._environment}
        return {
            **given,
            "CONTROL_PANEL_TASK": claimed.task_id,
            "CONTROL_PANEL_ATTEMPT": str(claimed.attempt),
            RUN_MARK: f"{self._name}{uuid4().hex}",
        }

    def _result(
        self,
        claimed: ClaimedTask,
        prompt: Prompt,
        ended: _Ended,
        secrets: tuple[str, ...],
        limit: float,
        latency_ms: float,
    ) -> AttemptResult:
        output = _without(ended.output, secrets)
        reason = ended.cut_off or exit_reason(ended.code or 0)
        verdict = None if reason else judge(output, self._policy.success_quality)
        usage = reported_usage(output)
        if usage is None:
            usage = NO_USAGE if reason is Reason.INVALID_REQUEST else usage_by_length(prompt, output)
        return AttemptResult(
            reason=verdict.reason if verdict else reason,
            usage=usage,
            cost_usd=cost_usd(usage, self._registry.model(claimed.model)),
            quality=verdict.quality if verdict else None,
            evidence=verdict.evidence if verdict else None,
            output=output,
            error=None if verdict else scrub(self._what_happened(ended, limit), secrets),
            latency_ms=latency_ms,
        )

    def _what_happened(self, ended: _Ended, limit: float) -> str:
        if ended.cut_off is Reason.TIMEOUT:
            how = f"the command did not end within {limit:g} s"
        elif ended.cut_off is Reason.CANCELLED:
            how = "the command was stopped"
        elif ended.cut_off:
            limit_bytes = self._policy.response_limit_bytes
            how = f"the output is longer than {limit_bytes} bytes (execution.response_limit_bytes)"
        elif ended.code is not None and ended.code < 0:
            how = f"the command was ended by signal {-ended.code}"
        else:
            how = f"the command exited with code {ended.code}"
        return f"{how}; its standard error ended with: {ended.stderr}" if ended.stderr else how


async def _execute(
    words: list[str],
    folder: str,
    environment: Mapping[str, str],
    stdin: IO[bytes] | int,
    seconds: float,
    limit_bytes: int,
) -> _Ended:
    """Run a command until it ends, is out of time or has said too much; leave nothing of its group behind.

    Raises:
        OSError: it could not be started.
    """
    transport, run = await asyncio.get_running_loop().subprocess_exec(
        lambda: _Run(limit_bytes),
        *words,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=dict(environment),
        start_new_session=True,
    )
    cut_off = None
    try:
        async with asyncio.timeout(seconds):
            await run.over.wait()
    except TimeoutError:
        cut_off = Reason.TIMEOUT
    except asyncio.CancelledError:
        cut_off = Reason.CANCELLED
    finally:
        await _end(transport, run)
        await asyncio.to_thread(_kill_strays, environment[RUN_MARK])
    if run.said_too_much and cut_off is not Reason.CANCELLED:
        cut_off = Reason.TRUNCATED
    return _Ended(transport.get_returncode(), cut_off, _text(run.output), _text(run.stderr))


class _Run(asyncio.SubprocessProtocol):
    """What a running command says, up to its limit, and whether it is still running."""

    def __init__(self, limit_bytes: int) -> None:
        self.over = asyncio.Event()  # it exited, or said too much
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()  # and nothing more will be heard of it
        self.output = bytearray()
        self.stderr = bytearray()
        self.said_too_much = False
        self._limit_bytes = limit_bytes

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr = (self.stderr + data)[-STDERR_TAIL_BYTES:]
            return
        self.output += data[: self._limit_bytes + 1 - len(self.output)]
        if len(self.output) > self._limit_bytes:
            self.said_too_much = True
            del self.output[self._limit_bytes :]
            self.over.set()

    def process_exited(self) -> None:
        self.exited.set()
        self.over.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


async def _end(transport: asyncio.SubprocessTransport, run: _Run) -> None:
    """Ask the group to end, kill what is left of it, and hear its last words."""
    group = transport.get_pid()
    try:
        if not run.exited.is_set():
            _signal(group, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(TERMINATION_SECONDS):
                    await run.exited.wait()
        _signal(group, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_OUTPUT_SECONDS):
                await run.closed.wait()
    finally:
        if not run.exited.is_set():
            _signal(group, signal.SIGKILL)  # cancelled a second time
        transport.close()


def _kill_strays(mark: str) -> None:
    """Kill the processes whose mark begins so: that called setsid and outlived their group, or their worker.

    A reader of pipes that they hold ends too.
    """
    for process in psutil.process_iter():
        # of other users' processes nothing can be read, nor of those that ended meanwhile
        with suppress(psutil.Error, OSError):
            if process.environ().get(RUN_MARK, "").startswith(mark):
                process.kill()


@contextmanager
def _known_alive(folder: Path, worker: str) -> Iterator[None]:
    """Hold the lock of the worker's file, which the system lets go of when the process dies in whatever way."""
    coming, path = folder / f".{worker}", folder / worker
    with coming.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        coming.rename(path)  # now that it is locked others may look at it
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _end_runs_of_the_dead(folder: Path) -> None:
    """Kill what workers that were killed themselves have left running: their tasks are given to others."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("[!.]*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _kill_strays(path.name)
            path.unlink()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left (macOS says it the second way)
        os.killpg(group, number)


@contextmanager
def _prompt_file(prompt: Prompt) -> Iterator[Path]:
    """A file that only this user can read, in a folder of its own; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="control-panel-") as folder:
        path = Path(folder, "prompt.md")
        path.touch(mode=0o600)
        path.write_text(f"{prompt.system}\n\n{prompt.user}\n", encoding="utf-8", errors="replace")
        yield path


@contextmanager
def _standard_input(provider: Provider, prompt: Path) -> Iterator[IO[bytes] | int]:
    if takes_prompt_file(provider.command):
        yield subprocess.DEVNULL
        return
    with prompt.open("rb") as opened:
        yield opened


def _not_served(claimed: ClaimedTask, provider: Provider) -> str:
    served = ", ".join(sorted(provider.workspaces))
    return scrub(
        f"workspace {claimed.workspace!r} is not among those of {provider.name} in models.yaml: {served}"
    )


def _not_started(error: OSError) -> Reason:
    """Neither a missing program nor one that may not be run changes by itself; a busy system does."""
    lasting = isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
    # ENOEXEC has no class of its own: what was named is no program.
    return Reason.INVALID_REQUEST if lasting or error.errno == errno.ENOEXEC else Reason.SERVER_ERROR


def _text(said: bytearray) -> str:
    """As text that PostgreSQL takes."""
    return said.decode(errors="replace").replace("\x00", "�")


def _without(text: str, secrets: tuple[str, ...]) -> str:
    for secret in filter(None, secrets):
        text = text.replace(secret, "[key]")
    return text
