"""A real server on loopback, in a thread, and raw sockets to misbehave with."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from stepaudio.serve.app import create_app
from stepaudio.serve.runner import WEBSOCKET, DrainingServer, bind
from stepaudio.serve.settings import Settings
from stepaudio.serve.state import Phase, ServerState


class Live:
    """A running server."""

    def __init__(self, bundle: Any, settings: Settings, *, http: str = "auto", **offers: Any) -> None:
        self.bundle = bundle
        self.app = create_app(bundle, settings=settings, **offers)
        self.state: ServerState = self.app.state.server
        self.listener = bind("127.0.0.1", 0)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=1,
            http=http,
            **WEBSOCKET,
        )
        self.server = DrainingServer(config, self.state)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def post(self, path: str, body: object) -> socket.socket:
        """Send a JSON request and return the socket without reading the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        connection.sendall(head(path, len(data), "application/json") + data)
        return connection

    def idle(self) -> bool:
        """Nothing runs, nothing waits, nothing is held."""
        slots = self.state.slots
        return slots.busy == 0 and slots.waiting == 0 and self.bundle.work.running == 0


@contextmanager
def live(
    bundle: Any, *, http: str = "auto", wait: bool = True, offers: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Live]:
    """Run a server over `bundle` for the length of a with block; it must come down by itself at the end. `offers` are
    the tools that the app takes."""
    running = Live(bundle, Settings(**settings), http=http, **offers or {})
    running.thread.start()
    try:
        if wait:
            until(lambda: running.state.phase is not Phase.LOADING, seconds=120)
        yield running
    finally:
        running.server.should_exit = True
        running.thread.join(20)
        running.listener.close()
    assert not running.thread.is_alive(), "the server did not stop"


def head(path: str, length: int | None, content_type: str, *extra: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {content_type}", *extra]
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes or has nothing more to say."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except (TimeoutError, ConnectionError):
        pass
    return data


def until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    """Wait for something that must come about. The limit only ends a test that has failed."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
