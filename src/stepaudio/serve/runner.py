"""Run the app under uvicorn: bind, announce, drain, stop."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from stepaudio.errors import InputError
from stepaudio.serve.app import create_app
from stepaudio.serve.settings import Settings
from stepaudio.serve.state import Phase, ServerState

if TYPE_CHECKING:
    from stepaudio.agent.mcp import McpTools
    from stepaudio.speech.bundle import Bundle

LAST_SECONDS = 1
"""What answers that need no slot get to end once the work has drained; whatever still runs then is cancelled."""
_UNREAD_MILLISECONDS = 60_000
"""How long sent bytes may stay unacknowledged, or a peer's window closed, before the kernel drops the connection."""

WEBSOCKET: dict[str, Any] = {
    "ws_max_size": 8 << 20,  # a larger event ends its connection with code 1009
    "ws_per_message_deflate": False,  # audio in base64 hardly shrinks, and the memory is one window per client
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
}


def serve(
    bundle: Bundle,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    mcp: McpTools | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. Work that runs then may finish for `drain_timeout` seconds.

    Raises InputError when the address cannot be had, and what loading the models, or connecting to the servers of
    `mcp`, raised when that fails.
    """
    settings = settings or Settings()
    app = create_app(bundle, settings=settings, mcp=mcp)
    with bind(host, port) as listener:
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        keys = "with API keys" if settings.api_keys else "open to everybody who can reach it"
        print(f"stepaudio serves {bundle.name} on http://{address}:{port}/v1 ({keys})", file=sys.stderr, flush=True)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=LAST_SECONDS,
            server_header=False,
            **WEBSOCKET,
        )
        DrainingServer(config, app.state.server).run(sockets=[listener])
    if app.state.server.failure is not None:
        raise app.state.server.failure


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InputError with the remedy when it cannot be had."""
    if not 0 <= port <= 65_535:  # the resolver would take it modulo 65 536
        raise InputError(f"The address {host}:{port} cannot be used: a port is at most 65535.", param="port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise InputError(f"The address {host}:{port} cannot be used: {error}.", param="host") from None
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # or a peer that reads nothing keeps its connection, closed or not
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MILLISECONDS)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} on {host} is in use; stop what listens there, or choose another with --port."
        else:
            message = f"Cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port."
        raise InputError(message, param="port") from None
    return listener


class DrainingServer(uvicorn.Server):
    """Goes on listening after the first signal, not ready and refusing new work, until the running work is done.

    A load balancer sees the 503 of /readyz meanwhile. A second signal stops at once.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._state.phase is Phase.DRAINING:
            self.force_exit = sig == signal.SIGINT
            self.should_exit = True
            return
        self._state.phase = Phase.DRAINING
        self._deadline = time.monotonic() + self._state.settings.drain_timeout

    async def on_tick(self, counter: int) -> bool:
        if self._state.phase is Phase.FAILED:
            return True
        if self._state.phase is Phase.DRAINING:
            slots = self._state.slots
            idle = slots.busy == 0 and slots.waiting == 0 and not self._state.replying()
            if idle or time.monotonic() > self._deadline:
                return True
        return await super().on_tick(counter)
