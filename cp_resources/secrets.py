"""The secrets in this process's environment: what must never be written down, wherever text is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

_HOLDS_A_SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)(?:_|$)", re.IGNORECASE)
_HOLDS_AN_ADDRESS = re.compile(r"_URL$|_URI$|_DSN$", re.IGNORECASE)
SHORTEST = 8
"""Least characters of a value that is struck out: a shorter one is a word that other text may hold."""

_named: set[str] = set()


def name_secret(variable: str) -> None:
    """Count the environment variable among the secret ones, whatever it is called."""
    _named.add(variable)


def known_secrets(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Values of the variables that hold keys by their name or by configuration, and passwords in addresses."""
    found: set[str] = set()
    for variable, value in environment.items():
        if variable in _named or _HOLDS_A_SECRET.search(variable):
            found.add(value.strip())
        elif "@" in value and _HOLDS_AN_ADDRESS.search(variable):
            found.update(_passwords(value))
    return tuple(secret for secret in found if len(secret) >= SHORTEST)


def _passwords(address: str) -> tuple[str, ...]:
    try:
        password = urlsplit(address).password
    except ValueError:
        return ()
    return (password, unquote(password)) if password else ()
