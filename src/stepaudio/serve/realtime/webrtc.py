"""One call over WebRTC: the user's audio and the agent's as Opus tracks, events on a data channel.

Importing this needs `aiortc`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from aiortc import (
    InvalidStateError,
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from stepaudio.agent import events as ev
from stepaudio.agent.errors import RequestError
from stepaudio.agent.session import RATE
from stepaudio.audio.resample import Resampler
from stepaudio.serve.realtime.admission import ExpiredError, FailedError
from stepaudio.serve.realtime.config import SessionConfig
from stepaudio.serve.realtime.connection import Connection, failed, new_id
from stepaudio.serve.realtime.encode import Json
from stepaudio.serve.realtime.hub import Hub
from stepaudio.serve.realtime.outbox import Outbox
from stepaudio.serve.realtime.pace import Pace
from stepaudio.serve.realtime.voice import Voice

log = logging.getLogger("stepaudio.serve")

EVENTS = "oai-events"
CONNECT_SECONDS = 20.0
"""From the answer until the call has to stand."""
_CLOSE_SECONDS = 5.0
_QUIET = 0.2
"""Seconds without a packet after which the user counts as silent."""
_AHEAD = 2.0
"""Seconds of audio that a client may be ahead of real time; what is more is not heard."""
_MOST_WAITING = 8 << 20
"""Characters of events from the client that wait to be carried out."""
_MOST_BUFFERED = 1 << 20
"""Bytes that wait in the data channel; events wait in the outbox beyond."""


class Call:
    """`answer` accepts an offer, `run` lasts as long as the call, `hang_up` ends it."""

    def __init__(self, hub: Hub, config: SessionConfig) -> None:
        settings = hub.server.settings
        self.id = new_id("rtc")
        self._hub = hub
        self._seconds = settings.max_session_seconds
        self._patience = settings.send_timeout
        # No STUN: the server is reached at an address of its own, and asks nobody which one that is.
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        room = asyncio.Event()
        self._voice = Voice(hub.server.bundle.speaker.rate, room, tell=self._tell, played=self._played)
        self._outbox = Outbox(asyncio.Event())
        self._inbox = _Inbox(overflow=self.hang_up)
        self._connection = Connection(
            hub.server.bundle,
            hub.scheduler,
            config,
            self._send,
            room=room,
            drop_audio=self._voice.clear,
            media=self._voice,
            tools=hub.tools,
            seconds=self._seconds,
        )
        self._channel: asyncio.Future[RTCDataChannel] = asyncio.get_running_loop().create_future()
        self._microphone: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        self._connected = asyncio.Event()
        self._over = asyncio.Event()
        self._peer.on("datachannel", self._on_channel)
        self._peer.on("track", self._on_track)
        self._peer.on("connectionstatechange", self._on_state)

    async def answer(self, sdp: str) -> str:
        """The SDP answer to an offer. Raises RequestError when it cannot be taken up."""
        self._peer.addTrack(self._voice)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            kinds = [transceiver.kind for transceiver in self._peer.getTransceivers()]
            if kinds != ["audio"] or not self._microphone.done():
                raise ValueError("it needs one audio track that sends and receives, and no video")
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except Exception as error:  # whatever a parser says to a text that somebody made up
            await self._peer.close()
            await self._connection.close()
            detail = str(error) or type(error).__name__
            raise RequestError(f"The SDP offer cannot be used: {detail}.", code="invalid_offer", param="sdp") from None
        return str(self._peer.localDescription.sdp)

    async def run(self) -> None:
        """Until somebody hangs up, the connection is lost, or the session has lasted long enough."""
        self._connection.open()
        work = [asyncio.create_task(task) for task in (self._listen(), self._read(), self._write(), self._lasting())]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            if any(failed(task) for task in done):
                self._connection.refuse(FailedError("The session failed; the server's log holds the cause."))
                await asyncio.sleep(_QUIET)  # for the last word to leave
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            self._hub.count(self._connection.session.controller.statistics)
            await self._connection.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._peer.close()

    @property
    def speaking(self) -> bool:
        return self._voice.speaking

    def hang_up(self) -> None:
        self._over.set()

    # ------------------------------------------------------------ the connection

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label == EVENTS and not self._channel.done():
            channel.on("message", self._inbox.put)
            channel.on("close", self.hang_up)
            self._channel.set_result(channel)

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and not self._microphone.done():
            self._microphone.set_result(track)

    def _on_state(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._connected.set()
        elif state in ("failed", "closed"):
            self.hang_up()

    async def _lasting(self) -> None:
        """Ends with the call."""
        over = asyncio.create_task(self._over.wait())
        connected = asyncio.create_task(self._connected.wait())
        try:
            await asyncio.wait((over, connected), timeout=CONNECT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not connected.done():
                if not over.done():
                    log.warning("A call was not taken up within %g s", CONNECT_SECONDS)
                return
            await asyncio.wait((over,), timeout=self._seconds)
            if not over.done():
                self._connection.refuse(ExpiredError("The session has reached its longest duration."))
                await asyncio.sleep(_QUIET)  # for the last word to leave
        finally:
            over.cancel()
            connected.cancel()

    # ------------------------------------------------------------ audio

    async def _listen(self) -> None:
        """Ends when the microphone does."""
        microphone = await self._microphone
        await self._connected.wait()
        resampler, began, heard = Resampler(48_000, RATE), time.monotonic(), 0.0
        with suppress(MediaStreamError):
            while True:
                try:
                    async with asyncio.timeout(_QUIET):
                        frame: Any = await microphone.recv()
                except TimeoutError:
                    samples = np.zeros(int(_QUIET * RATE), np.float32)
                else:
                    stereo = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
                    samples = resampler.push(stereo.mean(axis=1, dtype=np.float32) / 32768)
                if began + heard < time.monotonic() + _AHEAD:
                    heard += len(samples) / RATE
                    await self._connection.hear(samples)

    def _played(self, item_id: str, seconds: float) -> None:
        self._connection.session.handle(ev.Played(item_id, seconds))

    # ------------------------------------------------------------ events

    def _tell(self, name: str, reply_id: str) -> None:
        self._connection.tell(f"output_audio_buffer.{name}", response_id=reply_id)

    def _send(self, event: Json) -> None:
        # ASCII escapes: half a character that a model or a tool has made breaks nothing.
        self._outbox.put(json.dumps(event))

    async def _read(self) -> None:
        pace = Pace()
        while True:
            text = await self._inbox.get()
            await self._connection.receive_text(text)
            await pace.keep(len(text))

    async def _write(self) -> None:
        """Ends when the client is lost: it has left too much unread, or read nothing for too long."""
        channel = await self._channel
        channel.bufferedAmountLowThreshold = _MOST_BUFFERED // 2
        with suppress(InvalidStateError, TimeoutError):
            while not self._outbox.overflowed:
                message = await self._outbox.get()
                async with asyncio.timeout(self._patience):
                    while channel.bufferedAmount > _MOST_BUFFERED:
                        await asyncio.sleep(0.05)
                try:
                    channel.send(message)
                except ValueError as error:  # larger than what the client says it takes
                    log.warning("An event was not sent: %s", error)
        log.warning("A call does not read its events; it ends")


class _Inbox:
    """Events of the client that wait. The data channel cannot be told to wait: a client that sends more than can be
    carried out is hung up on, by `overflow`."""

    def __init__(self, overflow: Callable[[], None]) -> None:
        self._overflow = overflow
        self._waiting = 0
        self._messages: asyncio.Queue[str] = asyncio.Queue()

    def put(self, message: str | bytes) -> None:
        text = message if isinstance(message, str) else message.decode(errors="replace")
        if self._waiting + len(text) > _MOST_WAITING:
            log.warning("A call sends more events than can be carried out; it ends")
            self._overflow()
            return
        self._waiting += len(text)
        self._messages.put_nowait(text)

    async def get(self) -> str:
        text = await self._messages.get()
        self._waiting -= len(text)
        return text
