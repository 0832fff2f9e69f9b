"""Plays one conversation to a server over the Realtime protocol, in real time, and records it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from stepaudio.audio.pcm import Samples, to_float, to_int16
from stepaudio.bench.live.clips import AUDIBLE, RATE, Clip
from stepaudio.bench.live.recording import Loudspeaker, Recording, Said
from stepaudio.bench.live.scenarios import Conversation, Cue, Line, Turn
from stepaudio.errors import BackendError

FRAME = 480
"""Samples in a frame of the microphone: 20 ms."""
_AUDIO_DELTA = "response.output_audio.delta"
_POLL = 0.005
_CONNECT_SECONDS = 20.0
_LONGEST_REPLY = 60.0
_AFTERMATH = 0.5
"""What the server gets to tell what became of the last turn."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server and what its sessions are asked for. `patience` is how long a reply may take, in seconds."""

    url: str
    key: str | None = None
    patience: float = 20.0
    session: Mapping[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        parts = urlsplit(self.url)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/realtime"
        return urlunsplit((scheme, parts.netloc, path, parts.query or urlencode({"model": "default"}), ""))


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[ClientConnection]:
    """A connection to the server. Raises BackendError when there is none."""
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else None
    try:
        connection = await connect(
            target.address,
            additional_headers=headers,
            compression=None,
            max_size=None,
            max_queue=None,
            open_timeout=_CONNECT_SECONDS,
            proxy=None,
        )
    except (OSError, WebSocketException) as error:
        raise BackendError(f"{target.address} does not let the benchmark in: {error}") from None
    async with connection:
        yield connection


async def play(
    conversation: Conversation,
    clips: Mapping[str, Clip],
    target: Target,
    *,
    speculation: bool,
    progress: Callable[[], None] = lambda: None,
) -> Recording:
    """Hold the conversation; `progress` is called after every turn. What goes wrong is in the recording's errors."""
    recording = Recording(conversation, speculation)
    try:
        longest = len(conversation.turns) * (target.patience + _LONGEST_REPLY)
        async with asyncio.timeout(longest), connected(target) as connection:
            await _Player(recording, clips, target, connection, progress).run()
    except (BackendError, WebSocketException) as error:
        recording.errors.append(str(error))
    except TimeoutError:
        recording.errors.append("the conversation did not come to an end")
    return recording


class Microphone:
    """Silence with the user's lines in it, frame by frame."""

    def __init__(self) -> None:
        self._position = 0
        self._lines: list[tuple[int, Samples]] = []

    def say(self, samples: Samples, at: float) -> float:
        """Put a line at `at` seconds, or now if that has gone by; returns where."""
        first = max(self._position, round(at * RATE))
        self._lines.append((first, samples))
        return first / RATE

    def frame(self) -> Samples:
        """The next `FRAME` samples."""
        frame = np.zeros(FRAME, np.float32)
        for first, samples in self._lines:
            begin, end = max(first, self._position), min(first + len(samples), self._position + FRAME)
            if begin < end:
                frame[begin - self._position : end - self._position] += samples[begin - first : end - first]
        self._position += FRAME
        self._lines = [(first, samples) for first, samples in self._lines if first + len(samples) > self._position]
        return frame


class _Player:
    def __init__(
        self,
        recording: Recording,
        clips: Mapping[str, Clip],
        target: Target,
        connection: ClientConnection,
        progress: Callable[[], None],
    ) -> None:
        self._recording = recording
        self._clips = clips
        self._target = target
        self._connection = connection
        self._progress = progress
        self._microphone = Microphone()
        self._loudspeaker = Loudspeaker(recording)
        self._zero = time.monotonic()
        self._configured = asyncio.Event()
        self._responses: set[str] = set()
        self._onsets: dict[str, float] = {}
        self._last_line = 0.0
        self._reply: float | None = None
        """When the reply to the last turn became audible; None while it has not."""

    async def run(self) -> None:
        tasks = [asyncio.create_task(self._listen())]
        try:
            await self._configure()
            self._zero = time.monotonic()
            script = asyncio.create_task(self._hold())
            tasks += [asyncio.create_task(self._capture()), script]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not script.done():
                raise BackendError(f"the server ended the session ({self._connection.close_reason or 'no reason'})")
            script.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _now(self) -> float:
        return time.monotonic() - self._zero

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._connection.send(json.dumps({"type": kind, **fields}))

    async def _configure(self) -> None:
        extras = {**self._target.session.get("stepaudio", {}), "events": True}
        extras["speculation"] = self._recording.speculation
        await self._send("session.update", session={"type": "realtime", **self._target.session, "stepaudio": extras})
        if not await self._until(lambda: self._configured.is_set() or bool(self._recording.errors), _CONNECT_SECONDS):
            raise BackendError("the server does not answer session.update")
        if not self._configured.is_set():
            raise BackendError("the server refuses the session that the benchmark asks for")

    # ------------------------------------------------------------ the user's side

    async def _hold(self) -> None:
        for number, turn in enumerate(self._recording.conversation.turns):
            await self._take(number, turn)
            self._progress()
        await self._silence()
        await asyncio.sleep(_AFTERMATH)

    async def _take(self, number: int, turn: Turn) -> None:
        end = 0.0
        for index, line in enumerate(turn.lines):
            if line.murmur and not await self._await_reply(end):
                continue  # nobody to murmur at
            said = await self._say(number, index, line)
            if not line.murmur:
                end = said.end
        await self._await_reply(end)

    async def _say(self, number: int, index: int, line: Line) -> Said:
        at = max(await self._when(line.cue), self._last_line)
        clip = self._clips[line.clip].samples
        samples = clip[round(line.start * RATE) : None if line.end is None else round(line.end * RATE)]
        said = Said(number, index, self._microphone.say(samples, at), samples)
        self._last_line = said.end
        self._recording.said.append(said)
        return said

    async def _when(self, cue: Cue) -> float:
        match cue.after:
            case "line":
                return self._last_line + cue.delay
            case "quiet":
                await self._silence()
            case "reply" if self._reply is not None:
                due = self._reply + cue.delay
                await self._until(lambda: self._now >= due or self._silent(), _LONGEST_REPLY)
                return self._now
        return self._now + cue.delay

    async def _await_reply(self, end: float) -> bool:
        """Wait until a reply that begins after the end of the turn is audible; False if none comes in time."""

        def onset() -> float | None:
            return min((at for at in self._onsets.values() if end <= at), default=None)

        await self._until(lambda: self._now >= end, _LONGEST_REPLY)
        await self._until(lambda: onset() is not None, self._target.patience)
        self._reply = onset()
        if self._reply is not None:
            audible = self._reply
            await self._until(lambda: self._now >= audible, _LONGEST_REPLY)
        return self._reply is not None

    async def _silence(self) -> None:
        await self._until(self._silent, _LONGEST_REPLY)

    def _silent(self) -> bool:
        return not self._responses and not self._loudspeaker.busy(self._now)

    @staticmethod
    async def _until(condition: Callable[[], bool], seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(_POLL)
        return condition()

    async def _capture(self) -> None:
        """Send every frame when its last sample has been captured."""
        number = 0
        while True:
            number += 1
            due = number * FRAME / RATE
            await asyncio.sleep(max(0.0, due - self._now))
            self._recording.late = max(self._recording.late, self._now - due)
            pcm = to_int16(self._microphone.frame()).astype("<i2").tobytes()
            await self._send("input_audio_buffer.append", audio=base64.b64encode(pcm).decode())

    # ------------------------------------------------------------ the agent's side

    async def _listen(self) -> None:
        async for message in self._connection:
            event = json.loads(message)
            if event["type"] == _AUDIO_DELTA:
                self._hear(event)
            else:
                self._recording.events.append((self._now, event))
                await self._handle(event)

    def _hear(self, event: dict[str, Any]) -> None:
        samples = to_float(np.frombuffer(base64.b64decode(event["delta"]), "<i2"))
        response, before = event["response_id"], len(self._recording.chunks)
        self._loudspeaker.play(response, event["item_id"], samples, self._now)
        for chunk in self._recording.chunks[before:]:
            loud = np.flatnonzero(np.abs(chunk.samples) > AUDIBLE)
            if len(loud):
                self._onsets.setdefault(response, chunk.start + float(loud[0]) / RATE)

    async def _handle(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.updated":
                self._configured.set()
            case "response.created":
                self._responses.add(event["response"]["id"])
            case "response.done":
                self._responses.discard(event["response"]["id"])
                if event["response"]["status"] == "failed":
                    self._recording.errors.append(str(event["response"]["status_details"]))
            case "response.output_audio_transcript.delta":
                item_id = event["item_id"]
                self._recording.texts[item_id] = self._recording.texts.get(item_id, "") + event["delta"]
            case "input_audio_buffer.speech_started":
                await self._stop()
            case "conversation.item.truncated":
                await self._send("conversation.item.retrieve", item_id=event["item_id"])
            case "conversation.item.retrieved":
                self._note_heard(event["item"])
            case "error":
                self._recording.errors.append(event["error"]["message"])

    async def _stop(self) -> None:
        """Do as the stock clients do: fall silent, and say how much was heard."""
        now = self._now
        self._onsets = {response: at for response, at in self._onsets.items() if at <= now}
        for cut in self._loudspeaker.stop(set(self._responses), now):
            place = {"item_id": cut.item_id, "content_index": 0, "audio_end_ms": int(cut.played * 1000)}
            await self._send("conversation.item.truncate", **place)

    def _note_heard(self, item: dict[str, Any]) -> None:
        for cut in self._recording.cuts:
            if cut.item_id == item["id"]:
                cut.heard = "".join(part.get("transcript") or part.get("text") or "" for part in item["content"])
