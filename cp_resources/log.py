"""Structured log lines: an event with its keys, through Python's logging, so that whoever runs us decides
about levels and places. Never a key, a prompt or an answer.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog


def logger(name: str, **bound: Any) -> structlog.stdlib.BoundLogger:
    """A logger whose every line carries `bound`, such as the ids of run and task."""
    wrapped: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True),
        ],
    )
    return wrapped.bind(**bound)
