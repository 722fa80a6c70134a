"""Where a provider is reached, and with which key: the provider itself, or the simulator in its place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from cp_core.models.registry import Model, ModelRegistry, Provider, Wire
from cp_resources.errors import UserError
from cp_resources.secrets import name_secret
from cp_resources.settings import Settings

SIMULATED_KEY = "simulated"


class ProviderKeyError(UserError):
    """No key is set for a provider that tasks are assigned to."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address without trailing slash, and the key that goes with it."""

    base_url: str
    api_key: SecretStr


def provider_endpoint(
    provider: Provider, settings: Settings, environment: Mapping[str, str] = os.environ
) -> Endpoint | None:
    """The endpoint of a provider, or None when it names no environment variable that holds a key.

    With CP_SIMULATOR_URL every provider is the simulator, under a path of the provider's name.
    """
    if settings.simulator_url:
        prefix = "" if provider.wire is Wire.ANTHROPIC_MESSAGES else "/v1"
        address = f"{settings.simulator_url.rstrip('/')}/{provider.name}{prefix}"
        return Endpoint(address, SecretStr(SIMULATED_KEY))
    name_secret(provider.api_key_env)
    key = environment.get(provider.api_key_env, "").strip()
    return Endpoint(provider.base_url.rstrip("/"), SecretStr(key)) if key else None


def unset_keys(
    registry: ModelRegistry, settings: Settings, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """The environment variables that hold no key, of providers with an enabled model. None with a simulator."""
    used = {model.provider for model in registry.models.values() if model.enabled}
    providers = [registry.providers[name] for name in sorted(used)]
    return [
        provider.api_key_env
        for provider in providers
        if provider_endpoint(provider, settings, environment) is None
    ]


def require_keys(models: Iterable[str], registry: ModelRegistry, reachable: Iterable[str]) -> None:
    """Fail unless the provider of each of `models` is among the `reachable` ones.

    A model that the registry does not know any more is not asked for: its tasks are given to others.

    Raises:
        ProviderKeyError: naming the variables to set, never a key.
    """
    known = set(reachable)
    lacking: dict[str, list[Model]] = {}
    for name in sorted(models):
        model = registry.models.get(name)
        if model and model.provider not in known:
            lacking.setdefault(registry.providers[model.provider].api_key_env, []).append(model)
    if lacking:
        listed = "; ".join(
            f"{variable} (for {', '.join(model.name for model in needed)})"
            for variable, needed in sorted(lacking.items())
        )
        raise ProviderKeyError(
            f"tasks are assigned to models whose provider has no API key. Set in the environment: {listed}. "
            "Or set `enabled: false` on these models in models.yaml, or CP_SIMULATOR_URL to use the simulator"
        )
