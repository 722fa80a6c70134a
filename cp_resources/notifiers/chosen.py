"""Opens the notifier that the policy names, with the secrets that the environment holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cp_core.policy.notices import NoticePolicy, Sink, require_web_address
from cp_resources.notifiers.file import FileNotifier
from cp_resources.notifiers.message import NoticeSetupError, Notifier


def open_notifier(policy: NoticePolicy, home: Path, environment: Mapping[str, str] = os.environ) -> Notifier:
    """The notifier of section `notices`. Nothing is connected to or written yet.

    Args:
        home: folder that a relative `notices.file.path` starts from.

    Raises:
        NoticeSetupError: an environment variable that the policy names holds nothing, or nothing usable. The
            text names key and variable, never a value.
    """
    if policy.sink is Sink.FILE:
        return FileNotifier(home / policy.file.path)
    if policy.sink is Sink.WEBHOOK:
        return _webhook(policy, environment)
    return _email(policy, environment)


def _webhook(policy: NoticePolicy, environment: Mapping[str, str]) -> Notifier:
    from cp_resources.notifiers.webhook import WebhookNotifier

    chosen = policy.webhook
    url = chosen.url or _value("webhook.url_env", chosen.url_env, environment) or ""
    secret = _value("webhook.secret_env", chosen.secret_env, environment)
    try:
        require_web_address(url)
    except ValueError as error:
        raise NoticeSetupError(f"notices.webhook.url_env: the value of {chosen.url_env} {error}") from None
    try:
        return WebhookNotifier(url, secret, policy)
    except ValueError as error:
        raise NoticeSetupError(f"notices.webhook.secret_env: in {chosen.secret_env}, {error}") from None


def _email(policy: NoticePolicy, environment: Mapping[str, str]) -> Notifier:
    from cp_resources.notifiers.mail import EmailNotifier

    username = _value("email.username_env", policy.email.username_env, environment)
    password = _value("email.password_env", policy.email.password_env, environment)
    return EmailNotifier(policy, None if username is None or password is None else (username, password))


def _value(key: str, variable: str | None, environment: Mapping[str, str]) -> str | None:
    """What the variable holds; None when the policy names none."""
    if variable is None:
        return None
    if value := environment.get(variable, "").strip():
        return value
    raise NoticeSetupError(
        f"notices.{key} names the environment variable {variable}, which is not set: set it where the platform "
        "runs. Notices wait until then"
    )
