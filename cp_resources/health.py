"""What a person or a starting worker wants to know of an installation: one small check a question.

A check returns what it found and, unless all is well, what to do about it. It never changes anything, and never
shows a key.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg

from cp_core.execution.cost import NO_USAGE, cost_usd
from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.prompt import Prompt
from cp_core.models.registry import Model, ModelRegistry, Provider
from cp_core.tasks.reasons import Reason
from cp_resources import migrate
from cp_resources.configuration import Configuration, load_configuration
from cp_resources.dagster_api import DagsterApi
from cp_resources.database import Database
from cp_resources.errors import UserError
from cp_resources.ledger import Ledger
from cp_resources.providers.connections import Connections, tls_context
from cp_resources.providers.endpoint import provider_endpoint, require_keys
from cp_resources.providers.wire import ChatRequest, ProviderError
from cp_resources.settings import Settings
from cp_resources.worker_kinds.chat import chat_client

GIGABYTE = 1_000_000_000
DISK_FAIL_BYTES, DISK_WARN_BYTES = 1 * GIGABYTE, 5 * GIGABYTE
SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS = 2.0, 60.0
TRANSACTION_WARN_SECONDS, TRANSACTION_FAIL_SECONDS = 60.0, 600.0
EXPIRED_LEASE_SECONDS = 60.0
"""How long after its end a lease is taken back by any worker of the day that runs."""
ONLINE_SECONDS = 20.0
PING = Prompt("Answer with one word.", "Say ok.")

LEAST_TOKENS = {"openai-responses": 16}
"""Lowest output limit that a wire accepts, where that is not 1."""
NEEDS_MORE_TOKENS = "model output limit was reached"
"""Said with status 400 by OpenAI's reasoning models, which think before they answer: key and model are right."""

LOCAL_WIRES = frozenset({"command", "endpoint"})
"""Wires without a cheap call: what they run costs what a task costs."""


class UnfitError(UserError):
    """A worker cannot start here."""


class Status(StrEnum):
    """How grave it is: only `fail` makes an installation unfit to work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        todo: what a person does about it; "" when all is well.
    """

    check: str
    status: Status
    found: str
    todo: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Status.OK, found)


def warn(check: str, found: str, todo: str) -> Finding:
    """Work goes on, but somebody should look."""
    return Finding(check, Status.WARN, found, todo)


def fail(check: str, found: str, todo: str) -> Finding:
    """Work does not go on, or not rightly."""
    return Finding(check, Status.FAIL, found, todo)


def configuration(settings: Settings) -> tuple[Finding, Configuration | None]:
    """Whether the three files are valid; and what they say."""
    try:
        loaded = load_configuration(settings.config_dir)
    except UserError as error:
        return fail("configuration", str(error), f"mend the file in {settings.config_dir}"), None
    return ok("configuration", f"{settings.config_dir} is valid, version {loaded.content_hash[:12]}"), loaded


def simulator(settings: Settings) -> Finding:
    """Whether calls go to the real providers."""
    if not settings.simulator_url:
        return ok("simulator", "off: calls go to the providers")
    said = f"on: every call goes to {settings.simulator_url}, none to a provider"
    try:
        httpx.get(settings.simulator_url, timeout=3, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        todo = "start it with `control-panel simulate`, or unset CP_SIMULATOR_URL"
        return fail("simulator", f"{said}, but it does not answer ({type(error).__name__})", todo)
    return warn("simulator", said, "unset CP_SIMULATOR_URL to have tasks done by real models")


def provider_keys(
    registry: ModelRegistry, settings: Settings, environment: Mapping[str, str] = os.environ
) -> list[Finding]:
    """Whether each provider of an enabled model has a key, by the name of its variable."""
    if settings.simulator_url:
        return [ok("provider keys", "not needed: the simulator answers")]
    providers = [one for one in _providers(registry) if one.api_key_env]
    findings = [_key(provider, environment) for provider in providers]
    if providers and not any(environment.get(one.api_key_env, "").strip() for one in providers):
        names = ", ".join(sorted({one.api_key_env for one in providers}))
        todo = f"set at least one of {names}, or CP_SIMULATOR_URL to use the simulator"
        return [fail("provider keys", "no provider has a key: no task can be done", todo)]
    return findings


def _key(provider: Provider, environment: Mapping[str, str]) -> Finding:
    check, variable = f"key of {provider.name}", provider.api_key_env
    key = environment.get(variable, "").strip()
    if not key:
        todo = f"set {variable}, or `enabled: false` on its models in models.yaml"
        return warn(check, f"{variable} is not set", todo)
    if not key.isascii() or not key.isprintable() or " " in key:
        return fail(check, f"{variable} holds a blank or a character that no key has", f"set {variable} anew")
    return ok(check, f"{variable} is set")


def manifest(settings: Settings) -> Finding:
    """Whether the dbt project was parsed, after its files were last changed."""
    path = settings.dbt_project_dir / "target" / "manifest.json"
    if not path.exists():
        return fail("dbt manifest", f"{path} does not exist: Dagster cannot load", "run `make setup`")
    parsed = path.stat().st_mtime
    newer = [
        source.name
        for pattern in ("*.sql", "*.yml")
        for source in settings.dbt_project_dir.rglob(pattern)
        if "target" not in source.relative_to(settings.dbt_project_dir).parts
        and source.stat().st_mtime > parsed
    ]
    if newer:
        return warn("dbt manifest", f"older than {', '.join(sorted(newer)[:3])}", "run `make setup`")
    return ok("dbt manifest", "there, and newer than the models")


def inbox(settings: Settings) -> Finding:
    """Whether files can be taken from the inbox, and put aside in it."""
    place = _nearest(settings.inbox)
    if not place.is_dir() or not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        todo = f"let this user write to {place}, or set CP_INBOX_DIR to another folder"
        return fail("inbox", f"{settings.inbox} cannot be written", todo)
    return ok("inbox", f"{settings.inbox} is writable")


def disk(settings: Settings, free_bytes: int | None = None) -> Finding:
    """Whether there is room where data, logs and Dagster's files are kept.

    Args:
        free_bytes: what is free; looked up when None.
    """
    free = shutil.disk_usage(_nearest(settings.home)).free if free_bytes is None else free_bytes
    found = f"{free / GIGABYTE:.1f} GB free at {settings.home}"
    todo = f"make room, or set CP_HOME to a larger disk: {DISK_WARN_BYTES / GIGABYTE:.0f} GB should be free"
    if free < DISK_FAIL_BYTES:
        return fail("disk", found, todo)
    return warn("disk", found, todo) if free < DISK_WARN_BYTES else ok("disk", found)


def revision(database: Database) -> Finding:
    """Whether the database has the tables that this code works with."""
    current, newest = migrate.current(database.url), migrate.newest()
    if current == newest:
        return ok("database", f"{database.address} answers, at revision {newest}")
    found = f"{database.address} is at revision {current or 'none'}; this code works with {newest}"
    if current is None or current in migrate.revisions():
        return fail("database", found, "run `control-panel db upgrade`")
    return fail("database", found, "bring the code up to date, or use another database")


def clock_skew(database: Database, here: Callable[[], float] = time.time) -> Finding:
    """How far this machine's clock is from the database's, which is the one that counts.

    Args:
        here: this machine's clock, in seconds since 1970.
    """
    before = here()
    [(there,)] = database.fetch("SELECT extract(epoch FROM clock_timestamp())::float8")
    after = here()
    skew = max(0.0, before - there, there - after)
    found = f"{skew:.1f} s between this machine's clock and the database's"
    todo = (
        "keep both machines' clocks by NTP: leases go by the database's, schedules and log lines by this one"
    )
    if skew > SKEW_FAIL_SECONDS:
        return fail("clock", found, todo)
    return warn("clock", found, todo) if skew > SKEW_WARN_SECONDS else ok("clock", found)


def ledger(database: Database) -> Finding:
    """Whether every balance is what its transfers add up to."""
    report = Ledger(database).verify()
    if report.balanced:
        return ok("ledger", f"{report.accounts} accounts balance over {report.transfers:,} transfers")
    found = f"{len(report.differences)} differences, such as: {report.differences[0]}"
    return fail(
        "ledger",
        found,
        "run `control-panel ledger verify` for all of them; assign nothing until it is known why",
    )


def old_transactions(
    database: Database,
    warn_seconds: float = TRANSACTION_WARN_SECONDS,
    fail_seconds: float = TRANSACTION_FAIL_SECONDS,
) -> Finding:
    """Whether a transaction keeps old rows alive, which slows every claim (the oldest xmin)."""
    rows = database.fetch(_OLDEST_TRANSACTION)
    if not rows or rows[0][0] <= warn_seconds:
        return ok("transactions", "none is old")
    seconds, what, who = rows[0]
    found = f"{what} for {seconds:.0f} s, by {who or 'unknown'}: dead rows stay, and claims slow down"
    todo = "end it: SELECT pg_terminate_backend(process), or ROLLBACK PREPARED what pg_prepared_xacts lists"
    return (fail if seconds > fail_seconds else warn)("transactions", found, todo)


def expired_leases(database: Database, seconds: float = EXPIRED_LEASE_SECONDS) -> Finding:
    """Whether tasks wait for a worker that is gone."""
    [(count, days)] = database.fetch(_EXPIRED, {"seconds": seconds})
    if not count:
        return ok("leases", "none has run out unnoticed")
    todo = "start the platform (`control-panel up`): the next run of these days takes the tasks back"
    return warn(
        "leases", f"{count} tasks of {days} days have a lease that ran out over {seconds:.0f} s ago", todo
    )


def reachable_models(database: Database, registry: ModelRegistry, settings: Settings) -> Finding:
    """Whether every model that tasks are assigned to could be called."""
    assigned = [model for (model,) in database.fetch(_ASSIGNED_MODELS)]
    local = {name for name, one in registry.providers.items() if one.wire in LOCAL_WIRES}
    reached = {name for name, one in registry.providers.items() if provider_endpoint(one, settings)}
    try:
        require_keys(assigned, registry, reached | local)
    except UserError as error:
        return fail(
            "assigned tasks", str(error).split(". Set")[0], "set the keys named, or disable the models"
        )
    return ok("assigned tasks", f"wait for {len(assigned)} models, all of which can be called")


def daemons(url: str | None, *, is_up: bool) -> Finding:
    """Whether Dagster's daemons beat, by its own account.

    Args:
        url: address of Dagster's webserver; None when there is none.
        is_up: whether `control-panel up` runs on this installation.
    """
    if not is_up:
        return ok("Dagster", "not up: nothing is launched until `control-panel up` runs")
    if url is None:
        return warn(
            "Dagster", "up without a webserver: its daemons cannot be asked", "see <home>/logs/daemon.log"
        )
    api = DagsterApi(url, timeout_seconds=10)
    try:
        unhealthy = api.unhealthy_daemons()
    except httpx.HTTPError as error:
        todo = "see <home>/logs/webserver.log, and start `control-panel up` again"
        return fail("Dagster", f"{url} does not answer ({type(error).__name__})", todo)
    finally:
        api.close()
    if unhealthy:
        todo = "see <home>/logs/daemon.log, and start `control-panel up` again"
        return fail("Dagster", f"these daemons do not beat: {', '.join(unhealthy)}", todo)
    return ok("Dagster", f"up at {url}, every daemon beats")


def online(registry: ModelRegistry, settings: Settings, policy: ExecutionPolicy) -> list[Finding]:
    """One call of one token to the cheapest enabled model of each provider that has a key.

    These calls are not booked in the ledger; their cost is in the finding.
    """
    return asyncio.run(_call_all(registry, settings, policy))


async def _call_all(registry: ModelRegistry, settings: Settings, policy: ExecutionPolicy) -> list[Finding]:
    calls = [
        _call(provider, _cheapest(registry, provider), settings, policy)
        for provider in _providers(registry)
        if provider.wire not in LOCAL_WIRES and provider_endpoint(provider, settings)
    ]
    return list(await asyncio.gather(*calls))


async def _call(provider: Provider, model: Model, settings: Settings, policy: ExecutionPolicy) -> Finding:
    check = f"call of {provider.name}"
    endpoint = provider_endpoint(provider, settings)
    if endpoint is None:
        raise AssertionError(f"{provider.name} was chosen without an endpoint")
    connections = Connections(policy, tls_context(), through_proxy=settings.simulator_url is None)
    tokens = LEAST_TOKENS.get(provider.wire, 1)
    request = ChatRequest(model.api_name, PING, tokens, ONLINE_SECONDS, {})
    started = time.perf_counter()
    try:
        completion = await chat_client(connections, provider, endpoint, policy).complete(request)
    except ProviderError as error:
        if NEEDS_MORE_TOKENS in str(error):
            return ok(check, f"{model.name} was reached; it does not begin to answer in {tokens} token")
        return fail(
            check, f"{model.name}: {error.reason}: {error}", _WHAT_TO_DO.get(error.reason, _OTHERWISE)
        )
    finally:
        await connections.aclose()
    cost = cost_usd(completion.usage or NO_USAGE, model)
    seconds = time.perf_counter() - started
    return ok(check, f"{model.name} answered in {seconds:.1f} s for {_dollars(cost)}")


def breakers(database: Database) -> Finding:
    """Whether models are left alone because calls to them failed."""
    rows = database.fetch(_NOT_CLOSED)
    if not rows:
        return ok("breakers", "every model may be called")
    said = "; ".join(
        f"{provider}/{model} is {state} ({reason}), tried from {retry_at:%Y-%m-%d %H:%M:%S} UTC"
        for provider, model, state, reason, retry_at in rows
    )
    todo = dict.fromkeys(_WHAT_TO_DO.get(reason, _OTHERWISE) for _, _, _, reason, _ in rows)
    return warn("breakers", said, f"{'; '.join(todo)}; then `control-panel breaker reset MODEL --reason WHY`")


def start_up(database: Database, settings: Settings) -> list[Finding]:
    """What a worker looks at before it works: cheap, and returned where it is not well.

    Raises:
        UnfitError: the database has not the tables that this code works with.
    """
    tables = revision(database)
    if tables.status is Status.FAIL:
        raise UnfitError(f"{tables.found}: {tables.todo}")
    found = (clock_skew(database), guarded("disk", lambda: disk(settings)))
    return [finding for finding in found if finding.status is not Status.OK]


def of_database(database: Database, loaded: Configuration | None, settings: Settings) -> Iterator[Finding]:
    """Every check of a database that answers; the others make no sense before its revision is right."""
    first = guarded("database", lambda: revision(database))
    yield first
    if first.status is Status.FAIL:
        return
    yield guarded("clock", lambda: clock_skew(database))
    yield guarded("transactions", lambda: old_transactions(database))
    yield guarded("leases", lambda: expired_leases(database))
    yield guarded("ledger", lambda: ledger(database))
    yield guarded("breakers", lambda: breakers(database))
    if loaded is not None:
        registry = loaded.registry
        yield guarded("assigned tasks", lambda: reachable_models(database, registry, settings))


def guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """What `check` finds; a check that cannot be made is a failure, and the next one is made all the same."""
    try:
        return check()
    except (UserError, psycopg.Error, OSError) as error:
        return fail(
            name, f"cannot be checked: {error}", "see what it says; then run `control-panel doctor` again"
        )


def _providers(registry: ModelRegistry) -> list[Provider]:
    """Providers of enabled models, by name."""
    used = {model.provider for model in registry.models.values() if model.enabled}
    return [registry.providers[name] for name in sorted(used)]


def _cheapest(registry: ModelRegistry, provider: Provider) -> Model:
    models = [one for one in registry.models.values() if one.enabled and one.provider == provider.name]
    return min(
        models, key=lambda model: (model.input_usd_per_million + model.output_usd_per_million, model.name)
    )


def _dollars(cost: Decimal) -> str:
    return f"{cost.normalize():f} USD" if cost else "0 USD"


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


_WHAT_TO_DO: dict[Any, str] = {
    Reason.AUTH_FAILED: "the key is wrong, or may not use this model: make a new one, and set its variable",
    Reason.PROVIDER_QUOTA: "the provider's account has no credit left: add some, or disable its models",
    Reason.RATE_LIMITED: "the provider limits this account's calls: wait, or lower max_concurrency of its models",
    Reason.OVERLOADED: "the provider is overloaded: try again in some minutes; see its status page",
    Reason.SERVER_ERROR: "the provider has an error: try again in some minutes; see its status page",
    Reason.TIMEOUT: "nothing came back: see the network, a proxy (HTTPS_PROXY), and base_url in models.yaml",
    Reason.CONNECTION: "no connection: see the network, a proxy (HTTPS_PROXY), and base_url in models.yaml",
    Reason.INVALID_REQUEST: "see api_name of the model and wire and base_url of its provider in models.yaml",
}
_OTHERWISE = "see what the provider says, and its entry in models.yaml"

_OLDEST_TRANSACTION: LiteralString = """
    SELECT seconds, what, who FROM (
        SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds,
            CASE WHEN state LIKE 'idle in transaction%' THEN 'a transaction is open and idle (process '
                 ELSE 'a transaction holds the oldest snapshot (process ' END || pid || ')' AS what,
            coalesce(nullif(application_name, ''), usename) AS who
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
            AND backend_type = 'client backend'
            AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR state LIKE 'idle in transaction%')
        UNION ALL
        SELECT extract(epoch FROM clock_timestamp() - prepared)::float8,
            'a prepared transaction waits (' || gid || ')', owner
        FROM pg_prepared_xacts WHERE database = current_database()
    ) AS transactions
    ORDER BY seconds DESC LIMIT 1
"""
_EXPIRED: LiteralString = """
    SELECT count(*), count(DISTINCT submission_day) FROM cp.tasks
    WHERE state = 'running' AND lease_expires_at < clock_timestamp() - make_interval(secs => %(seconds)s)
"""
_NOT_CLOSED: LiteralString = """
    SELECT provider, model, state, reason, retry_at FROM cp.breakers
    WHERE state <> 'closed' ORDER BY provider, model
"""
_ASSIGNED_MODELS: LiteralString = """
    SELECT DISTINCT model FROM cp.tasks WHERE state = 'assigned' ORDER BY model
"""
