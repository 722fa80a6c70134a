"""The registry of config/models.yaml: providers, models with their prices, and what pays for them.

Only what is declared lives here; what an account still holds is in `cp_core.quota`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from cp_core.quota.account import AccountKind, AccountTerms, Unit
from cp_core.quota.windows import Window
from cp_core.scoring.config import Domain

MAX_CONCURRENCY = 1_000
_RESERVED_NAMES = ("budget", "source", "spent")
_ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
COMMAND_PLACEHOLDERS = ("prompt_file", "workspace", "model", "task_id")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
UsdPerMillion = Annotated[Decimal, Field(ge=0, le=100_000)]
Quota = Annotated[Decimal, Field(gt=0, le=10**14)]
Dollars = Annotated[Decimal, Field(gt=0, le=10**9)]
"""In nanodollars they fit 64 bits, which is what rounds count in."""
Share = Annotated[float, Field(ge=0, le=1)]


class Tier(StrEnum):
    """What class a model is in, strongest first."""

    PREMIUM = "premium"
    MID_PREMIUM = "mid-premium"
    MID_RANGE = "mid-range"
    BUDGET = "budget"

    @property
    def rank(self) -> int:
        """0 for premium, the strongest, to 3 for budget."""
        return list(Tier).index(self)


class Wire(StrEnum):
    """How a provider's models are given work: a chat API, a command line, or the endpoint protocol."""

    OPENAI_CHAT = "openai-chat"
    OPENAI_RESPONSES = "openai-responses"
    ANTHROPIC_MESSAGES = "anthropic-messages"
    COMMAND = "command"
    ENDPOINT = "endpoint"


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Limits(_Declared):
    """How much may be asked, of all workers together. What is left out is not limited."""

    max_concurrency: Annotated[StrictInt, Field(gt=0, le=MAX_CONCURRENCY)] | None = None
    requests_per_minute: Annotated[StrictInt, Field(gt=0, le=10**9)] | None = None
    tokens_per_minute: Annotated[StrictInt, Field(gt=0, le=2 * 10**9)] | None = None


class Provider(_Declared):
    """Who serves models. Which keys it has depends on its wire: see docs/workers.md.

    Attributes:
        base_url: the address before `/chat/completions` (openai-chat), `/responses` (openai-responses),
            `/v1/messages` (anthropic-messages) or `/tasks` (endpoint).
        api_key_env: name of the environment variable that holds the key.
        allow_addresses: networks (CIDR) that an endpoint may be in although they are not public.
        command: program and arguments of a command; `{prompt_file}`, `{workspace}`, `{model}` and `{task_id}`
            are filled in, never by a shell. Without `{prompt_file}` the prompt is its standard input.
        workspaces: folder that a command runs in, by the task's workspace; no other workspace is served.
        environment: names of the only environment variables that a command is given.
        timeout_seconds: for an attempt of a command or endpoint, in place of execution.timeout_seconds.
        limits: for all of its models together.
        stream: have answers sent as they are made; for servers that give none otherwise, or end long silences.
    """

    name: Name
    wire: Wire
    base_url: str = ""
    api_key_env: str = ""
    allow_addresses: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workspaces: dict[str, str] = Field(default_factory=dict)
    environment: tuple[str, ...] = ("PATH", "HOME", "LANG")
    timeout_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    limits: Limits = Limits()
    stream: bool = False

    @model_validator(mode="after")
    def _has_the_keys_of_its_wire(self) -> Provider:
        _raise_all("Provider", [*self._lacking(), *self._of_other_wires()])
        return self

    def _lacking(self) -> Iterator[InitErrorDetails]:
        needed = ("command", "workspaces") if self.wire is Wire.COMMAND else ("base_url", "api_key_env")
        for key in needed:
            if not getattr(self, key):
                yield InitErrorDetails(type="missing", loc=(key,), input=self.model_dump())

    def _of_other_wires(self) -> Iterator[InitErrorDetails]:
        is_command, is_endpoint = self.wire is Wire.COMMAND, self.wire is Wire.ENDPOINT
        allowed = {
            "base_url": not is_command,
            "api_key_env": not is_command,
            "allow_addresses": is_endpoint,
            "command": is_command,
            "workspaces": is_command,
            "timeout_seconds": is_command or is_endpoint,
            "stream": not is_command and not is_endpoint,
        }
        for key, may_stand in allowed.items():
            if not may_stand and getattr(self, key):
                yield _problem(
                    (key,), getattr(self, key), f"a provider of wire {str(self.wire)!r} has no {key}"
                )

    @field_validator("allow_addresses")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ip_network(network)
            except ValueError:
                raise PydanticCustomError(
                    "allow_addresses",
                    "addresses or networks such as 127.0.0.1 or 10.1.0.0/16 (no bits below the mask) are needed",
                ) from None
        return networks

    @field_validator("command")
    @classmethod
    def _is_a_template(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if command and (not command[0] or _PLACEHOLDER.search(command[0])):
            raise PydanticCustomError("command", "the first word is the program and holds no placeholder")
        for name in (name for word in command for name in _PLACEHOLDER.findall(word)):
            if name not in COMMAND_PLACEHOLDERS:
                raise PydanticCustomError(
                    "command",
                    "unknown placeholder {name}; known: {known}",
                    {
                        "name": f"{{{name}}}",
                        "known": ", ".join(f"{{{known}}}" for known in COMMAND_PLACEHOLDERS),
                    },
                )
        return command

    @field_validator("workspaces")
    @classmethod
    def _are_absolute(cls, workspaces: dict[str, str]) -> dict[str, str]:
        if not all(folder.startswith("/") for folder in workspaces.values()):
            raise PydanticCustomError("workspaces", "each workspace needs the absolute path of its folder")
        return workspaces

    @field_validator("environment")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in names):
            raise PydanticCustomError(
                "secret", "NAMES of environment variables are needed, never what they hold"
            )
        return names

    @field_validator("base_url")
    @classmethod
    def _is_safe(cls, url: str) -> str:
        if not url:
            return url  # whether its wire needs one is said elsewhere
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise PydanticCustomError(
                "base_url", "an address without user, password, query or fragment is needed"
            )
        if not parts.hostname or not (
            parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))
        ):
            raise PydanticCustomError(
                "base_url", "an https:// address is needed (http:// only on loopback, such as 127.0.0.1)"
            )
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not _ENVIRONMENT_NAME.fullmatch(name):
            raise PydanticCustomError(
                "secret",
                "the NAME of an environment variable is needed (upper case letters, digits, _), "
                "never the key itself",
            )
        return name


class Model(_Declared):
    """One model of one provider. Prices are US dollars per million tokens.

    Attributes:
        api_name: what the provider calls it.
        family: models of one maker and line, such as `claude`.
        cached_input_usd_per_million: a token read from the prompt cache; by default as an input token.
        cache_write_usd_per_million: a token written to the prompt cache; by default as an input token.
        cache_minimum_tokens: shortest beginning of a prompt that the provider's prompt cache holds.
        context_window: most input tokens of one call.
        capability: prior probability, per domain, that an ordinary task of the domain comes out well.
        max_concurrency: most calls at once, of all workers together.
        limits: requests and tokens a minute.
        enabled: a model that is not enabled is never assigned.
    """

    name: Name
    provider: str
    api_name: str = Field(min_length=1)
    tier: Tier
    family: Name
    input_usd_per_million: UsdPerMillion
    cached_input_usd_per_million: UsdPerMillion
    cache_write_usd_per_million: UsdPerMillion
    output_usd_per_million: UsdPerMillion
    cache_minimum_tokens: StrictInt = Field(default=1024, gt=0)
    context_window: StrictInt = Field(gt=0)
    max_output_tokens: StrictInt = Field(gt=0)
    capability: dict[Domain, Share]
    max_concurrency: StrictInt = Field(default=8, gt=0, le=MAX_CONCURRENCY)
    limits: Limits = Limits()
    enabled: StrictBool = True

    @model_validator(mode="before")
    @classmethod
    def _price_the_cache(cls, body: Any) -> Any:
        if not isinstance(body, Mapping) or "input_usd_per_million" not in body:
            return body
        price = body["input_usd_per_million"]
        return {"cached_input_usd_per_million": price, "cache_write_usd_per_million": price, **body}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Model:
        _raise_all("Model", self._contradictions())
        return self

    def _contradictions(self) -> Iterator[InitErrorDetails]:
        if self.cached_input_usd_per_million > self.input_usd_per_million:
            yield _problem(
                ("cached_input_usd_per_million",),
                self.cached_input_usd_per_million,
                f"at most input_usd_per_million ({self.input_usd_per_million}) is allowed",
            )
        if self.context_window < self.max_output_tokens:
            yield _problem(
                ("max_output_tokens",),
                self.max_output_tokens,
                f"at most context_window ({self.context_window}) is allowed",
            )
        missing = [domain for domain in Domain if domain not in self.capability]
        if missing:
            yield _problem(("capability",), sorted(self.capability), f"missing: {', '.join(missing)}")
        if self.limits.max_concurrency:
            yield _problem(
                ("limits", "max_concurrency"),
                self.limits.max_concurrency,
                "a model's max_concurrency stands beside its other keys, not in limits",
            )


class QuotaWindow(_Declared):
    """How many tokens a subscription grants in one window."""

    window: Window
    tokens: Quota


class Subscription(_Declared):
    """Models of one family paid for in advance, with what each window grants."""

    name: Name
    family: Name
    models: tuple[str, ...] = Field(min_length=1)
    windows: tuple[QuotaWindow, ...] = Field(min_length=1)
    max_concurrency: Annotated[StrictInt, Field(gt=0, le=MAX_CONCURRENCY)] | None = None

    def account(self, window: Window) -> str:
        """Id of the account that holds this window's quota."""
        return f"{self.name}/{window}"


class Budget(_Declared):
    """Money that may be spent in each window. Without `models` it pays for every model."""

    name: Name
    window: Window
    usd: Dollars
    models: tuple[str, ...] | None = None
    max_concurrency: Annotated[StrictInt, Field(gt=0, le=MAX_CONCURRENCY)] | None = None

    @property
    def account(self) -> str:
        """Id of the account that holds this budget."""
        return f"budget/{self.name}"

    def pays_for(self, model: str) -> bool:
        """Whether this budget may pay for `model`."""
        return self.models is None or model in self.models


class Funding(_Declared):
    """One way to pay for a model: every account in it is charged, in `unit`."""

    name: str
    accounts: tuple[str, ...]
    unit: Unit


def _named(bodies: Any) -> Any:
    """Give each body of a YAML mapping the key it stands under as its `name`."""
    if not isinstance(bodies, Mapping):
        return bodies
    return {key: {"name": key, **body} if isinstance(body, Mapping) else body for key, body in bodies.items()}


class ModelRegistry(_Declared):
    """Everything models.yaml declares. Each mapping is by name.

    Raises:
        pydantic.ValidationError: with the key path of each thing that is wrong.
    """

    providers: Annotated[dict[str, Provider], BeforeValidator(_named)] = Field(min_length=1)
    models: Annotated[dict[str, Model], BeforeValidator(_named)] = Field(min_length=1)
    subscriptions: Annotated[dict[str, Subscription], BeforeValidator(_named)] = Field(default_factory=dict)
    budgets: Annotated[dict[str, Budget], BeforeValidator(_named)] = Field(default_factory=dict)

    def model(self, name: str) -> Model:
        """The model of this name.

        Raises:
            LookupError: there is none; the text names the nearest.
        """
        if name not in self.models:
            raise LookupError(f"unknown model {name!r}{_nearest(name, self.models)}")
        return self.models[name]

    def fundings(self, model: str) -> tuple[Funding, ...]:
        """What may pay for `model`, subscriptions before budgets, each in the file's order."""
        return self._fundings[self.model(model).name]

    def funding_concurrency(self) -> dict[str, int]:
        """Most calls at once that one funding pays for, of those that are limited."""
        payers = {f"subscription:{name}": one for name, one in self.subscriptions.items()} | {
            f"budget:{name}": one for name, one in self.budgets.items()
        }
        return {name: one.max_concurrency for name, one in payers.items() if one.max_concurrency}

    def accounts(self) -> tuple[AccountTerms, ...]:
        """Every quota account that is declared."""
        windows = (
            AccountTerms(
                subscription.account(quota.window),
                AccountKind.WINDOW,
                Unit.TOKENS,
                quota.window,
                quota.tokens,
            )
            for subscription in self.subscriptions.values()
            for quota in subscription.windows
        )
        budgets = (
            AccountTerms(budget.account, AccountKind.BUDGET, Unit.USD, budget.window, budget.usd)
            for budget in self.budgets.values()
        )
        return (*windows, *budgets)

    @cached_property
    def _fundings(self) -> dict[str, tuple[Funding, ...]]:
        return {model: tuple(self._payers(model)) for model in self.models}

    def _payers(self, model: str) -> Iterator[Funding]:
        for subscription in self.subscriptions.values():
            if model in subscription.models:
                accounts = tuple(subscription.account(quota.window) for quota in subscription.windows)
                yield Funding(name=f"subscription:{subscription.name}", accounts=accounts, unit=Unit.TOKENS)
        for budget in self.budgets.values():
            if budget.pays_for(model):
                yield Funding(name=f"budget:{budget.name}", accounts=(budget.account,), unit=Unit.USD)

    @model_validator(mode="after")
    def _refers_to_what_exists(self) -> ModelRegistry:
        _raise_all(
            "ModelRegistry",
            [
                *self._misnamed(),
                *self._dangling_providers(),
                *self._wrong_subscriptions(),
                *self._wrong_budgets(),
            ],
        )
        return self

    def _misnamed(self) -> Iterator[InitErrorDetails]:
        for section in ("providers", "models", "subscriptions", "budgets"):
            for key, body in getattr(self, section).items():
                if body.name != key:
                    yield _problem((section, key, "name"), body.name, f"the name is the key itself, {key!r}")

    def _dangling_providers(self) -> Iterator[InitErrorDetails]:
        for model in self.models.values():
            if model.provider not in self.providers:
                yield _unknown(("models", model.name, "provider"), "provider", model.provider, self.providers)

    def _wrong_subscriptions(self) -> Iterator[InitErrorDetails]:
        for subscription in self.subscriptions.values():
            path = ("subscriptions", subscription.name)
            if subscription.name in _RESERVED_NAMES:
                yield _problem(path, subscription.name, f"not one of {', '.join(_RESERVED_NAMES)}")
            yield from self._wrong_models((*path, "models"), subscription.models)
            for index, name in enumerate(subscription.models):
                if name in self.models and self.models[name].family != subscription.family:
                    yield _problem(
                        (*path, "models", index),
                        name,
                        f"a model of family {subscription.family!r} is needed, "
                        f"this one is of family {self.models[name].family!r}",
                    )
            windows = [quota.window for quota in subscription.windows]
            for index in _repeats(windows):
                yield _problem((*path, "windows", index, "window"), str(windows[index]), "named twice")

    def _wrong_budgets(self) -> Iterator[InitErrorDetails]:
        for budget in self.budgets.values():
            yield from self._wrong_models(("budgets", budget.name, "models"), budget.models or ())

    def _wrong_models(
        self, path: tuple[str | int, ...], names: tuple[str, ...]
    ) -> Iterator[InitErrorDetails]:
        for index, name in enumerate(names):
            if name not in self.models:
                yield _unknown((*path, index), "model", name, self.models)
        for index in _repeats(names):
            yield _problem((*path, index), names[index], "named twice")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _repeats(values: Iterable[object]) -> Iterator[int]:
    """Positions of values that stood before."""
    seen: set[object] = set()
    for index, value in enumerate(values):
        if value in seen:
            yield index
        seen.add(value)


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else f": one of {', '.join(known)} is needed"


def _unknown(path: tuple[str | int, ...], what: str, name: str, known: Iterable[str]) -> InitErrorDetails:
    return _problem(path, name, f"unknown {what}{_nearest(name, known)}")


def _problem(path: tuple[str | int, ...], value: object, message: str) -> InitErrorDetails:
    # The message travels as a value of its context, so that braces in a name are not taken for a field.
    return InitErrorDetails(
        type=PydanticCustomError("registry", "{message}", {"message": message}), loc=path, input=value
    )


def _raise_all(title: str, problems: Iterable[InitErrorDetails]) -> None:
    problems = list(problems)
    if problems:
        raise ValidationError.from_exception_data(title, problems)
