"""What may come in: how large, how slowly, how much of it at once, and nothing at all when the queue is full."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepaudio.errors import BusyError, Cancelled, StepAudioError, TooLargeError
from stepaudio.serve.errors import RefusedBody, SlowBodyError, error_response
from stepaudio.serve.limits import Slots
from stepaudio.serve.settings import MIB, Settings

UPLOAD_PATH = "/v1/audio/transcriptions"
MIN_PACE = 16 * 1024
"""Bytes per second below which a body falls behind."""


class Intake:
    """ASGI middleware that refuses a body while it is being read, before it can cost memory, disk or a slot."""

    def __init__(self, app: ASGIApp, settings: Settings, slots: Slots) -> None:
        self.app = app
        self.settings = settings
        self.slots = slots
        self.held = 0
        """Bytes of the bodies of all requests that are being answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        body = _Body(self, scope, receive)
        try:
            try:
                body.check_before_reading()
            except StepAudioError as error:
                await error_response(error)(scope, receive, send)
            else:
                await self.app(scope, body.receive, send)
        finally:
            self.held -= body.received


class _Body:
    """One request's body on its way in."""

    def __init__(self, intake: Intake, scope: Scope, receive: Receive) -> None:
        self.intake = intake
        self.scope = scope
        self.limit = intake.settings.max_body_bytes if scope["path"] == UPLOAD_PATH else intake.settings.max_json_bytes
        self.received = 0
        self._receive = receive
        self._complete = False
        self._started = asyncio.get_running_loop().time()

    def check_before_reading(self) -> None:
        """Refuse what can be refused from the head of the request alone."""
        if self.scope["path"].startswith("/v1/"):
            self.intake.slots.check()
        announced = Headers(scope=self.scope).get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > self.limit:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next piece of the body. Raises RefusedBody when it is over a limit, too slow or cut off."""
        if self._complete:
            return await self._receive()
        deadline = self._started + self.intake.settings.body_timeout + self.received / MIN_PACE
        try:
            async with asyncio.timeout_at(deadline):
                message = await self._receive()
        except TimeoutError:
            raise RefusedBody(
                SlowBodyError(f"The body arrived too slowly: {self.received} bytes so far. Send it again.")
            ) from None
        if message["type"] == "http.disconnect":
            self._complete = True
            raise RefusedBody(Cancelled("The client went away before its request was complete."))
        size = len(message.get("body", b""))
        self.received += size
        self.intake.held += size
        self._complete = not message.get("more_body", False)
        if self.received > self.limit:
            raise RefusedBody(self._too_large())
        if self.intake.held > self.intake.settings.max_held_bytes:
            raise RefusedBody(BusyError("The server holds as much request data as it may; try again.", retry_after=5))
        return message

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"The body of this request may be {self.limit / MIB:g} MiB at most; send less or split it."
        )
