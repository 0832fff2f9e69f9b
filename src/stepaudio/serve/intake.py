"""What may come in: how large, how slowly, how much of it at once, and nothing at all when the queue is full."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepaudio.errors import BusyError, Cancelled, InputError, StepAudioError, TooLargeError
from stepaudio.serve.errors import RefusedBody, SlowBodyError, error_response
from stepaudio.serve.limits import Slots
from stepaudio.serve.settings import MIB, Settings

TRANSCRIPTIONS, CLONE, EDIT = "/v1/audio/transcriptions", "/v1/audio/clone", "/v1/audio/edit"
UPLOAD_PATHS = (TRANSCRIPTIONS, CLONE, EDIT)
MIN_PACE = 16 * 1024
"""Bytes per second below which a body falls behind."""
MAX_VALUES = 50_000
"""Values in a JSON body, by its commas and opening brackets. Thirty megabytes of tiny values would take gigabytes and a
minute of everybody's time to parse and refuse; an honest body is large because of the recordings in it."""


async def check_fields(request: Request, known: Collection[str]) -> None:
    """FastAPI drops form fields it does not know; a caller should hear that a wish is not granted."""
    unknown = sorted(set((await request.form()).keys()) - set(known))
    if unknown:
        raise InputError(
            f"Unknown field `{unknown[0]}`; remove it. This server knows: {', '.join(sorted(known))}.",
            param=unknown[0],
        )


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
        self.is_upload = scope["path"] in UPLOAD_PATHS
        self.limit = intake.settings.max_body_bytes if self.is_upload else intake.settings.max_json_bytes
        self.received = 0
        self.values = 0
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
        piece = message.get("body", b"")
        size = len(piece)
        self.received += size
        self.intake.held += size
        self._complete = not message.get("more_body", False)
        if self.received > self.limit:
            raise RefusedBody(self._too_large())
        if not self.is_upload:
            self.values += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
            if self.values > MAX_VALUES:
                raise RefusedBody(TooLargeError(f"The JSON of this request has more than {MAX_VALUES} values."))
        if self.intake.held > self.intake.settings.max_held_bytes:
            raise RefusedBody(BusyError("The server holds as much request data as it may; try again.", retry_after=5))
        return message

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"The body of this request may be {self.limit / MIB:g} MiB at most; send less or split it."
        )
