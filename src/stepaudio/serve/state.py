"""What all requests of one server share, and the phases of its life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from stepaudio.serve.errors import UnavailableError
from stepaudio.serve.limits import Slots
from stepaudio.serve.metrics import Metrics
from stepaudio.serve.past_audio import PastRecordings, PastReplies
from stepaudio.serve.settings import Settings

if TYPE_CHECKING:
    from stepaudio.speech.bundle import Bundle

log = logging.getLogger("stepaudio.serve")


class Phase(Enum):
    """LOADING until the models are in memory, DRAINING once the server has been told to stop."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


class ServerState:
    """The loaded bundle, the limits on its use, and what is remembered between requests."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self.settings = settings
        self.slots = Slots(settings.max_concurrent, queue=settings.max_queue, timeout=settings.queue_timeout)
        self.metrics = Metrics(self.slots)
        self.past_replies = PastReplies()
        self.past_recordings = PastRecordings()
        self.replying: Callable[[], bool] = lambda: False
        """Whether somebody is being answered in a realtime session."""
        self.phase = Phase.LOADING
        self.failure: Exception | None = None
        """Why the server could not start, in phase FAILED."""

    async def load(self, connect: Callable[[], Awaitable[None]] | None = None) -> None:
        """Connect to what is needed, load the models; the server answers meanwhile that it is not ready."""
        try:
            if connect is not None:
                await connect()
            await asyncio.to_thread(self.bundle.warm)
        except Exception as error:
            self.failure = error
            self.phase = Phase.FAILED
            log.error("The server with bundle %s cannot start: %s", self.bundle.name, error)
        else:
            if self.phase is Phase.LOADING:
                self.phase = Phase.READY

    def check_ready(self) -> None:
        """Raises UnavailableError unless READY."""
        if self.phase is not Phase.READY:
            raise UnavailableError(_UNAVAILABLE[self.phase])

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot for model work. Raises UnavailableError unless READY, BusyError when the queue is full."""
        self.check_ready()
        async with self.slots.hold():
            yield


_UNAVAILABLE = {
    Phase.LOADING: "The models are still loading; try again in a few seconds.",
    Phase.FAILED: "The server could not start; its log says why.",
    Phase.DRAINING: "The server is stopping; send the request to another one, or try again later.",
}


def _state_of(connection: HTTPConnection) -> ServerState:
    return cast(ServerState, connection.app.state.server)


State = Annotated[ServerState, Depends(_state_of)]
"""The server's state, as an argument of a route."""
