"""GET /v1/realtime: the protocol over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from stepaudio.errors import StepAudioError
from stepaudio.serve.errors import error_response
from stepaudio.serve.realtime import beta
from stepaudio.serve.realtime.admission import ExpiredError, FailedError, admit, protocols
from stepaudio.serve.realtime.config import SessionConfig
from stepaudio.serve.realtime.connection import Connection, failed
from stepaudio.serve.realtime.encode import AUDIO_DELTA, Json
from stepaudio.serve.realtime.hub import Hub
from stepaudio.serve.realtime.outbox import Outbox
from stepaudio.serve.realtime.pace import Pace

router = APIRouter()
log = logging.getLogger("stepaudio.serve")

_BETA_PROTOCOL = "openai-beta.realtime-v1"
_NORMAL, _FAILED, _TRY_AGAIN_LATER = 1000, 1011, 1013
_REASONS = {_NORMAL: "session expired", _FAILED: "internal error", _TRY_AGAIN_LATER: "the client does not read"}
_LAST_SECONDS = 0.5
"""What a last word and the close may take."""


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """Hold a conversation. What is refused is refused before the connection stands, with an HTTP status."""
    hub: Hub = websocket.app.state.realtime
    try:
        config = admit(websocket, hub)
        with hub.place():
            await websocket.accept(subprotocol="realtime" if "realtime" in protocols(websocket) else None)
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
            done, _ = await asyncio.wait((reading, writing), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            writing.cancel()
            if any(failed(task) for task in done):
                await self._end(_FAILED, FailedError("The session failed; the server's log holds the cause."))
            elif not done:
                await self._end(_NORMAL, ExpiredError("The session has reached its longest duration."))
            elif reading not in done:
                await self._end(_TRY_AGAIN_LATER)
        finally:
            for task in (reading, writing):
                task.cancel()
            self._hub.count(self._connection.session.controller.statistics)
            await self._connection.close()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _end(self, code: int, last_word: StepAudioError | None = None) -> None:
        """Close the connection; a client that reads gets a last word."""
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(_LAST_SECONDS):
                if last_word is not None:
                    self._connection.refuse(last_word)
                    while self._outbox.chars:
                        await self._websocket.send_text(await self._outbox.get())
                await self._websocket.close(code, _REASONS[code])

    def _send(self, event: Json) -> None:
        droppable = event["type"] == AUDIO_DELTA
        told = beta.outgoing(event) if self._beta else event
        if told is not None:
            # ASCII escapes: half a character that a model or a tool has made breaks nothing.
            self._outbox.put(json.dumps(told), droppable=droppable)

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
        pace = Pace()
        with suppress(WebSocketDisconnect):
            while True:
                text = await self._receive()
                await self._connection.receive_text(text, beta.incoming if self._beta else None)
                await pace.keep(len(text))

    async def _receive(self) -> str:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        # Events are text; a binary message is read as the text that it may be.
        return message.get("text") or (message.get("bytes") or b"").decode(errors="replace")


def _speaks_beta(websocket: WebSocket) -> bool:
    return "realtime=v1" in websocket.headers.get("openai-beta", "") or _BETA_PROTOCOL in protocols(websocket)
