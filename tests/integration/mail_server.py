"""A mail server on loopback that keeps what it is sent, for tests: as much of SMTP as smtplib speaks."""

from __future__ import annotations

import base64
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Self

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBpTCCAUugAwIBAgIUdL+M4vU7aRYryU4hp8CHLv7JK8EwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbWFpbC50ZXN0MCAXDTI2MTEyMjAxMDU0N1oYDzIxMjYxMDI5
MDEwNTQ3WjAUMRIwEAYDVQQDDAltYWlsLnRlc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQgW2NMkPqTAq6j+2cUOkZyHbHnskS0TU+oX8gR2jj6GxL0jGKJNYIQ
lca7IvbDNGhZbHy2pEaUI+2ePRbi9jvio3kwdzAfBgNVHSMEGDAWgBQKq2JT+G3u
GUsCQb/EiU0MAkKEUjAUBgNVHREEDTALgglsb2NhbGhvc3QwDwYDVR0TAQH/BAUw
AwEB/zAOBgNVHQ8BAf8EBAMCAoQwHQYDVR0OBBYEFAqrYlP4be4ZSwJBv8SJTQwC
QoRSMAoGCCqGSM49BAMCA0gAMEUCIClnLoaI1e2xH2OYT3bm4K29zC/EZ6j0HO0B
IkAeuqy/AiEAgaZaVyLMVLOQYOzTIu8roRM1pr56d9IigwGdNlzjunM=
-----END CERTIFICATE-----
"""
"""For localhost, signed by itself, valid for a hundred years."""

KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgCh5w/ZeYmbeXDRWd
fU0X+/ct5OP8fz0mwfoEVGxR3EWhRANCAAQgW2NMkPqTAq6j+2cUOkZyHbHnskS0
TU+oX8gR2jj6GxL0jGKJNYIQlca7IvbDNGhZbHy2pEaUI+2ePRbi9jvi
-----END PRIVATE KEY-----
"""
"""Belongs to CERTIFICATE, and to nothing outside of these tests."""


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write certificate and key, and return where."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_text(CERTIFICATE)
    key.write_text(KEY)
    return certificate, key


class MailServer:
    """Use as a context manager; `mails` are those that were accepted, in order.

    Args:
        certificate: files of certificate and key; with them STARTTLS is offered, and needed to log in.
        implicit: speak TLS from the first byte.
        login: user name and password that it asks for.
        answer: what it says to a finished mail, by the mail's number from 0.
        pause: seconds before it greets.
    """

    def __init__(
        self,
        *,
        certificate: tuple[Path, Path] | None = None,
        implicit: bool = False,
        login: tuple[str, str] | None = None,
        answer: Callable[[int], str] = lambda number: "250 taken",
        refused: tuple[str, ...] = (),
        pause: float = 0.0,
    ) -> None:
        self.mails: list[EmailMessage] = []
        self.finished = 0
        self.connections = 0
        self.certificate, self.implicit, self.login = certificate, implicit, login
        self.answer, self.refused, self.pause = answer, refused, pause
        server = self

        class Session(_Session):
            mail_server = server

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def encrypted(self, connection):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate)
        return context.wrap_socket(connection, server_side=True)


class _Session(socketserver.BaseRequestHandler):
    mail_server: MailServer

    def handle(self) -> None:
        self.mail_server.connections += 1
        with suppress(OSError):  # the client goes away when it does not trust the certificate
            self._converse()

    def _converse(self) -> None:
        server = self.mail_server
        connection = server.encrypted(self.request) if server.implicit else self.request
        lines = connection.makefile("rb")
        is_encrypted = server.implicit

        def say(text: str) -> None:
            connection.sendall(f"{text}\r\n".encode())

        time.sleep(server.pause)
        say("220 mail.test")
        while line := lines.readline():
            words = line.decode().strip()
            verb = words.split(" ")[0].upper()
            if verb == "EHLO":
                extensions = ["mail.test"]  # the first line is a greeting
                if server.certificate and not is_encrypted:
                    extensions.append("STARTTLS")
                if server.login and is_encrypted:
                    extensions.append("AUTH PLAIN")
                for extension in extensions:
                    say(f"250-{extension}")
                say("250 8BITMIME")
            elif verb == "STARTTLS":
                say("220 go ahead")
                connection = server.encrypted(connection)
                lines, is_encrypted = connection.makefile("rb"), True
            elif verb == "AUTH":
                _, name, password = base64.b64decode(words.split(" ")[2]).decode().split("\0")
                say("235 welcome" if (name, password) == server.login else "535 wrong name or password")
            elif verb == "RCPT":
                say("550 no such user" if any(one in words for one in server.refused) else "250 known")
            elif verb == "DATA":
                say("354 go on")
                content = b""
                while (line := lines.readline()) != b".\r\n":
                    content += line.removeprefix(b".") if line.startswith(b"..") else line
                answer = server.answer(server.finished)
                server.finished += 1
                if answer.startswith("250"):
                    server.mails.append(message_from_bytes(content, policy=default))
                say(answer)
            elif verb == "QUIT":
                say("221 bye")
                return
            else:
                say("250 fine")
