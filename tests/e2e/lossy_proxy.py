"""A TCP proxy before PostgreSQL that meddles with commits: at what moment a connection breaks is all it decides."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Fate(Enum):
    """What becomes of a commit."""

    PASS = auto()
    LOSE_ANSWER = auto()  # it is carried out, and the connection breaks before the client hears of it


class LossyProxy:
    """Listens on loopback while the context lasts.

    Args:
        database_url: of the server behind it.
        fate: asked for each commit before it is forwarded, in a thread of the connection's; it may take its time.
    """

    def __init__(self, database_url: str, fate: Callable[[], Fate]) -> None:
        parts = urlsplit(database_url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._fate = fate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._open):
            _close(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
            except OSError:
                return
            self._open += (client, server)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, server, self._fate)
            threading.Thread(target=pair.carry_requests, daemon=True).start()
            threading.Thread(target=pair.carry_answers, daemon=True).start()


class _Pair:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket, fate: Callable[[], Fate]) -> None:
        self._client = client
        self._server = server
        self._fate = fate
        self._deaf = threading.Event()

    def carry_requests(self) -> None:
        try:
            while request := self._client.recv(65536):
                if b"COMMIT" in request and self._fate() is Fate.LOSE_ANSWER:
                    self._deaf.set()
                self._server.sendall(request)
        except OSError:
            pass  # the other direction has ended it
        self._end()

    def carry_answers(self) -> None:
        try:
            while answer := self._server.recv(65536):
                if self._deaf.is_set():
                    break  # the server has answered, so it has committed
                self._client.sendall(answer)
        except OSError:
            pass
        self._end()

    def _end(self) -> None:
        _close(self._client)
        _close(self._server)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
