"""Attempts that were cut off: what they used is a lower bound of what they would have used."""

from __future__ import annotations

from cp_core.tasks.reasons import Reason

CENSORED: tuple[Reason, ...] = (Reason.TIMEOUT, Reason.LEASE_EXPIRED, Reason.TRUNCATED, Reason.CANCELLED)
"""Reasons of a failure that end an attempt before the model has said all it would."""
