"""Model work for a request: it waits for a slot, runs in a thread, and stops when the client goes away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from threading import Event
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stepaudio.errors import Cancelled, StepAudioError
from stepaudio.serve.errors import error_body
from stepaudio.serve.state import ServerState
from stepaudio.speech import aio

log = logging.getLogger("stepaudio.serve")

T = TypeVar("T")


async def run(server: ServerState, request: Request, call: Callable[[Event], T]) -> T:
    """Run a blocking call in a slot. The body of the request must have been read.

    Raises what the call raises, Cancelled when the client goes away, and BusyError or UnavailableError when there
    is no slot to be had.
    """

    async def work() -> T:
        async with server.slot():
            return await aio.run(call)

    return await _attended(request.receive, work())


class Streamed(Response):
    """An answer whose body a blocking iterator makes, piece by piece, in a slot.

    Nothing is sent before the first piece exists, so that an error up to there is answered as such. An error after
    it becomes one last server-sent event, or cuts the connection where the body has no place for it, so that no
    client takes half an answer for a whole one.
    """

    def __init__(self, server: ServerState, make: Callable[[Event], Iterator[bytes]], *, media_type: str) -> None:
        self.server = server
        self.make = make
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(Cancelled):  # nobody is left to be told
            await _attended(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        patience = self.server.settings.send_timeout

        async def write(message: Message) -> None:
            try:
                async with asyncio.timeout(patience):
                    await send(message)
            except TimeoutError:
                raise _BrokenOff(f"the client took nothing for {patience:g} s") from None

        async with self.server.slot(), aclosing(aio.stream(self.make)) as pieces:
            first = await anext(pieces, b"")
            try:
                await write({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await write({"type": "http.response.body", "body": first, "more_body": True})
                async for piece in self._until_error(pieces):
                    await write({"type": "http.response.body", "body": piece, "more_body": True})
                await write({"type": "http.response.body", "body": b"", "more_body": False})
            except _BrokenOff as error:
                # Returning without the end of the body makes the HTTP server cut the connection.
                log.warning("An answer broke off: %s", error)

    async def _until_error(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for piece in pieces:
                yield piece
        except Exception as error:
            if not isinstance(error, StepAudioError):
                log.exception("The work for a streamed answer failed")
            if self.media_type != "text/event-stream":
                raise _BrokenOff(str(error)) from error
            yield event(error_body(error))


class _BrokenOff(Exception):
    """The answer cannot be finished."""


EVENTS: dict[str, Any] = {
    "schema": {
        "type": "object",
        "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
        "required": ["data"],
    }
}
"""How OpenAPI describes the events of a `text/event-stream`."""


def event(payload: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(payload)}\n\n".encode("ascii")


async def _attended(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it as soon as the client disconnects; raises Cancelled then. Ends when `work` has."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.wait((task, gone))
    if task.cancelled():
        raise Cancelled("The client went away.")
    return task.result()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
