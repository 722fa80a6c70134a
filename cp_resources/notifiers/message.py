"""What a notifier is given and what it answers: the protocol between the outbox and every sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from cp_resources.errors import UserError


class NoticeSetupError(UserError):
    """Notices cannot be sent as they are set up. They wait, and none of their tries is used up."""


@dataclass(frozen=True, slots=True)
class Message:
    """One notice on its way.

    Attributes:
        id: the same at every try, so that a receiver can tell a repeat.
        created_at: when the outbox got it, by the database's clock.
        claimed_at: when this try began, by the same clock.
        payload: JSON values; what a person or a system is told.
    """

    id: str
    created_at: datetime
    claimed_at: datetime
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of one message.

    Attributes:
        error: what went wrong; of a delivered message, what part of it did.
        retry_after: seconds that the receiver asked to wait.
    """

    delivered: bool
    error: str | None = None
    retry_after: float | None = None


class Notifier(Protocol):
    """One way to tell people or systems."""

    def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
        """Send messages, and say by id what came of each; one that was not begun is left out.

        Raises:
            NoticeSetupError: nothing was sent, and nothing can be until a person changes something.
        """
