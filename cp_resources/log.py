"""Structured log lines: an event with its keys, through Python's logging, so that whoever runs us decides
about levels and places. Never a key, a prompt or an answer.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

from cp_core.execution.scrubbing import strike_secrets
from cp_resources.secrets import known_secrets

HTTP_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy")
"""Loggers of the HTTP client. Their debug lines show what a provider answered, a key that it echoes included."""


def logger(name: str, **bound: Any) -> structlog.stdlib.BoundLogger:
    """A logger whose every line carries `bound`, and the ids that are bound to the context (structlog.contextvars).

    Secrets are struck out of the whole line.
    """
    wrapped: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True),
            _without_secrets,
        ],
    )
    return wrapped.bind(**bound)


def _without_secrets(_logger: Any, _method: str, line: Any) -> str:
    return strike_secrets(line, known_secrets())


class _Scrubbing(logging.Filter):
    """Strikes secrets out of lines that others write."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = strike_secrets(record.getMessage(), known_secrets()), ()
        return True


_scrubbing = _Scrubbing()
for _name in HTTP_LOGGERS:
    logging.getLogger(_name).addFilter(_scrubbing)
