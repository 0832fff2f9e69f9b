"""GET /v1/realtime: the protocol over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from stepaudio.agent.errors import RequestError
from stepaudio.errors import StepAudioError
from stepaudio.serve.errors import error_response
from stepaudio.serve.realtime import beta
from stepaudio.serve.realtime.config import SessionConfig
from stepaudio.serve.realtime.connection import Connection
from stepaudio.serve.realtime.encode import AUDIO_DELTA, Json
from stepaudio.serve.realtime.hub import Hub
from stepaudio.serve.realtime.outbox import Outbox

router = APIRouter()
log = logging.getLogger("stepaudio.serve")

_KEY_PROTOCOL = "openai-insecure-api-key."
_BETA_PROTOCOL = "openai-beta.realtime-v1"
_NORMAL, _TRY_AGAIN_LATER = 1000, 1013
_LAST_SECONDS = 0.5
"""What a last word and the close may take."""


class ForeignPageError(StepAudioError):
    """A web page of another site wants in without a key."""

    status = 403
    code = "origin_not_allowed"


class ExpiredError(StepAudioError):
    """The session has lasted as long as a session may."""

    status = 400
    code = "session_expired"


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """Hold a conversation. What is refused is refused before the connection stands, with an HTTP status."""
    hub: Hub = websocket.app.state.realtime
    try:
        key = _key(websocket)
        secret = hub.admit(key)
        if key is None:
            _check_origin(websocket)
        config = secret.config if secret else hub.config(websocket.query_params.get("model"))
        if websocket.query_params.get("intent") == "transcription":
            config = config.updated({"type": "transcription"})
        if websocket.query_params.get("extensions") == "1":
            config = config.updated({"stepaudio": {"events": True}})
        with hub.place():
            await websocket.accept(subprotocol="realtime" if "realtime" in _protocols(websocket) else None)
            await _Socket(websocket, hub, config).run()
    except StepAudioError as error:
        await websocket.send_denial_response(error_response(error))


class _Socket:
    """One accepted connection: a task that reads, a task that writes, and the clock that ends it."""

    def __init__(self, websocket: WebSocket, hub: Hub, config: SessionConfig) -> None:
        settings = hub.server.settings
        self._websocket = websocket
        self._hub = hub
        self._beta = _speaks_beta(websocket)
        self._patience = settings.send_timeout
        self._seconds = settings.max_session_seconds
        room = asyncio.Event()
        self._outbox = Outbox(room)
        self._connection = Connection(
            hub.server.bundle,
            hub.scheduler,
            config,
            self._send,
            drop_audio=self._outbox.drop,
            room=room,
            tools=hub.tools,
            seconds=self._seconds,
        )

    async def run(self) -> None:
        """Until the client leaves, is lost, or the session has lasted long enough."""
        self._connection.open()
        reading, writing = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await asyncio.wait((reading, writing), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                writing.cancel()
                await self._end(lost=writing.done() and not writing.cancelled())
        finally:
            for task in (reading, writing):
                task.cancel()
            self._hub.count(self._connection.session.controller.statistics)
            await self._connection.close()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _end(self, *, lost: bool) -> None:
        code, reason = _TRY_AGAIN_LATER, "the client does not read"
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(_LAST_SECONDS):
                if not lost:
                    code, reason = _NORMAL, "session expired"
                    self._connection.refuse(ExpiredError("The session has reached its longest duration."))
                    while self._outbox.chars:
                        await self._websocket.send_text(await self._outbox.get())
                await self._websocket.close(code, reason)

    def _send(self, event: Json) -> None:
        droppable = event["type"] == AUDIO_DELTA
        told = beta.outgoing(event) if self._beta else event
        if told is not None:
            self._outbox.put(json.dumps(told, ensure_ascii=False), droppable=droppable)

    async def _write(self) -> None:
        """Ends when the client is lost: it has left too much unread, or read nothing for too long."""
        with suppress(WebSocketDisconnect, RuntimeError):
            while not self._outbox.overflowed:
                message = await self._outbox.get()
                try:
                    async with asyncio.timeout(self._patience):
                        await self._websocket.send_text(message)
                except TimeoutError:
                    break
            log.warning("A realtime client does not read what it is sent; its session ends")

    async def _read(self) -> None:
        """Ends when the client leaves."""
        pace = _Pace()
        with suppress(WebSocketDisconnect):
            while True:
                text = await self._receive()
                try:
                    message = json.loads(text)
                except ValueError as error:
                    refusal = RequestError(f"The message is not valid JSON: {error}.", code="invalid_event")
                    self._connection.refuse(refusal)
                else:
                    await self._connection.receive(beta.incoming(message) if self._beta else message)
                await pace.keep(len(text))

    async def _receive(self) -> str:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        # Events are text; a binary message is read as the text that it may be.
        return message.get("text") or (message.get("bytes") or b"").decode(errors="replace")


class _Pace:
    """Lets a client send `burst` characters at once and `rate` a second: a minute of PCM, then four times real time.
    Whoever sends more is read more slowly."""

    burst = 4 << 20
    rate = 256 << 10
    longest_wait = 5.0

    def __init__(self) -> None:
        self._debt = 0.0
        self._last = time.monotonic()

    async def keep(self, chars: int) -> None:
        now = time.monotonic()
        self._debt = max(0.0, self._debt - (now - self._last) * self.rate) + chars
        self._last = now
        if self._debt > self.burst:
            await asyncio.sleep(min(self.longest_wait, (self._debt - self.burst) / self.rate))


def _protocols(websocket: WebSocket) -> list[str]:
    return list(websocket.scope.get("subprotocols", []))


def _key(websocket: WebSocket) -> str | None:
    """Browsers cannot send headers: they put the key into a subprotocol."""
    for protocol in _protocols(websocket):
        if protocol.startswith(_KEY_PROTOCOL):
            return protocol.removeprefix(_KEY_PROTOCOL)
    scheme, _, key = websocket.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _speaks_beta(websocket: WebSocket) -> bool:
    return "realtime=v1" in websocket.headers.get("openai-beta", "") or _BETA_PROTOCOL in _protocols(websocket)


def _check_origin(websocket: WebSocket) -> None:
    """Any page that a user visits may open a WebSocket to a server on the user's own machine: without a key only the
    server's own pages may."""
    origin = websocket.headers.get("origin")
    if origin is None:
        return
    if urlsplit(origin).hostname != urlsplit(f"//{websocket.headers.get('host', '')}").hostname:
        raise ForeignPageError(f"Pages of {origin} need an API key, or an ephemeral one, to connect here.")
