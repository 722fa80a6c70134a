"""The e-mail sink: each notice is one message over SMTP, many to a connection."""

from __future__ import annotations

import json
import smtplib
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from cp_core.execution.failures import scrub
from cp_core.policy.notices import MailTls, NoticePolicy
from cp_resources.notifiers.message import Message, NoticeSetupError, Sent

_LONGEST_SUBJECT = 150


class EmailNotifier:
    """Mails notices through one server.

    Args:
        policy: `email.host`, `email.sender` and `email.recipients` are set.
        login: user name and password, or None.
    """

    def __init__(
        self,
        policy: NoticePolicy,
        login: tuple[str, str] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._email = policy.email
        self._login = login
        self._clock = clock

    def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
        """See `Notifier.send`."""
        deadline = self._clock() + self._policy.batch_seconds
        sent: dict[str, Sent] = {}
        connection: smtplib.SMTP | None = None
        try:
            for message in messages:
                if self._clock() >= deadline:
                    break
                try:
                    connection = connection or self._connect()
                    sent[message.id] = self._mail(connection, message)
                except (OSError, smtplib.SMTPException) as error:
                    sent[message.id] = Sent(delivered=False, error=self._told(error))
                    if connection is None:  # nobody is there for the others either
                        return {other.id: sent.get(other.id, sent[message.id]) for other in messages}
                    connection.close()
                    connection = None
        except NoticeSetupError:
            if not sent:
                raise
        finally:
            if connection is not None:
                _part(connection)
        return sent

    def _connect(self) -> smtplib.SMTP:
        host, port, timeout = self._email.host or "", self._email.effective_port, self._policy.timeout_seconds
        try:
            if self._email.tls is MailTls.IMPLICIT:
                connection: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=timeout, context=self._tls())
            else:
                connection = smtplib.SMTP(host, port, timeout=timeout)
        except ssl.SSLCertVerificationError as error:
            raise self._untrusted(error) from error
        try:
            self._introduce(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _introduce(self, connection: smtplib.SMTP) -> None:
        try:
            if self._email.tls is MailTls.STARTTLS:
                connection.starttls(context=self._tls())
            if self._login is not None:
                connection.login(*self._login)
        except ssl.SSLCertVerificationError as error:
            raise self._untrusted(error) from error
        except smtplib.SMTPNotSupportedError as error:
            raise NoticeSetupError(
                f"notices.email.tls: {self._email.host} cannot do what is asked ({error}): choose starttls, "
                "implicit or none as the server offers it, and no login where it wants none"
            ) from error
        except smtplib.SMTPAuthenticationError as error:
            raise NoticeSetupError(
                f"notices.email: {self._email.host} refuses the login ({error.smtp_code}): check the variables "
                f"{self._email.username_env} and {self._email.password_env}"
            ) from None

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if not self._email.verify_certificate:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _mail(self, connection: smtplib.SMTP, message: Message) -> Sent:
        refused = connection.send_message(
            self._written(message), self._email.sender, list(self._email.recipients)
        )
        if not refused:
            return Sent(delivered=True)
        told = "; ".join(f"{address}: {code} {text!r}" for address, (code, text) in refused.items())
        return Sent(delivered=True, error=scrub(f"some recipients were refused: {told}", self._login or ()))

    def _written(self, message: Message) -> EmailMessage:
        sender = self._email.sender or ""
        mail = EmailMessage(policy=SMTP)
        mail["From"] = sender
        mail["To"] = ", ".join(self._email.recipients)
        mail["Subject"] = subject(message.payload)
        mail["Date"] = format_datetime(message.created_at)
        mail["Message-ID"] = f"<{message.id}@{sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text(message.payload))
        return mail

    def _untrusted(self, error: ssl.SSLCertVerificationError) -> NoticeSetupError:
        return NoticeSetupError(
            f"notices.email.host: the certificate of {self._email.host} cannot be trusted "
            f"({error.verify_message}): name the host that the certificate is for, or add its authority to the "
            "file that SSL_CERT_FILE names"
        )

    def _told(self, error: OSError | smtplib.SMTPException) -> str:
        if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
            return f"no answer within {self._policy.timeout_seconds:g} s"
        return scrub(f"{type(error).__name__}: {error}", self._login or ())


def subject(payload: Mapping[str, Any]) -> str:
    """One line: what happened to which task."""
    happened = "assigned" if payload.get("kind") == "assigned" else payload.get("state")
    line = f"Task {payload.get('task_id')} {happened}: {payload.get('title') or ''}"
    printable = "".join(character if character.isprintable() else " " for character in line)
    return " ".join(printable.split())[:_LONGEST_SUBJECT].rstrip(": ")


def text(payload: Mapping[str, Any]) -> str:
    """One line for each thing that is known."""
    known = {key.replace("_", " "): value for key, value in payload.items() if value is not None}
    return "".join(f"{key}: {_one_line(value)}\n" for key, value in known.items())


def _one_line(value: Any) -> str:
    return " ".join((value if isinstance(value, str) else json.dumps(value)).split())


def _part(connection: smtplib.SMTP) -> None:
    """End the session; everything was accepted already, so how it ends does not matter."""
    try:
        connection.quit()
    except (OSError, smtplib.SMTPException):
        connection.close()
