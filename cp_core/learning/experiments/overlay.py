"""An arm's overrides laid over the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any


class OverlayError(ValueError):
    """An override names nothing that is there."""


def overlaid(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with the values at dotted keys replaced; it is left as it is.

    Args:
        content: sections by name, as plain values.
        overrides: values by key such as `policies.exploration.rate`.

    Raises:
        OverlayError: a key that `content` does not have.
    """
    laid = deepcopy(dict(content))
    for key, value in overrides.items():
        *sections, last = key.split(".")
        inner: Any = laid
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            raise OverlayError(f"the configuration has no {key}: there is no {'.'.join(sections)}")
        if last not in inner:
            raise OverlayError(f"the configuration has no {key}: there are {', '.join(sorted(inner))}")
        inner[last] = value
    return laid
