"""The Realtime protocol: a session for each conversation, its turns sent at once and committed by hand."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from stepaudio.audio.pcm import to_float, to_int16
from stepaudio.errors import BackendError, InputError
from stepaudio.eval.items import Audio, Call, Kind, Reply, Request, Turn
from stepaudio.eval.store import key as digest
from stepaudio.eval.systems import MAX_TOKENS
from stepaudio.eval.systems.rest import function, parse_arguments, split_model

_RATE = 24_000
_PIECE = _RATE
_PATIENCE = 60.0
"""Longest silence of the server, in seconds."""


class RealtimeSystem:
    """`ws://HOST/v1`, with `#MODEL` where the server has several. Turn detection is off: the turns are known."""

    kinds: frozenset[Kind] = frozenset(("converse",))

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self.url, self.model = split_model(url)
        self.name = f"realtime-{urlsplit(self.url).netloc}-{self.model}".replace(":", "-").replace("/", "-")
        self.fingerprint = digest("realtime", self.url, self.model, MAX_TOKENS)
        self._key = key or os.environ.get("OPENAI_API_KEY")

    def parallel(self, kind: Kind) -> int:
        return 2

    def prepare(self, kind: Kind) -> None:
        """Nothing to load."""

    def run(self, request: Request) -> tuple[Reply, ...]:
        if request.kind != "converse":
            raise InputError(f"a Realtime session cannot {request.kind}")
        address = f"{self.url.removesuffix('/realtime')}/realtime?{urlencode({'model': self.model})}"
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else None
        try:
            with connect(address, additional_headers=headers, max_size=None, open_timeout=20, proxy=None) as connection:
                session = _Session(connection)
                session.configure(request)
                return tuple(session.take(turn) for turn in request.turns)
        except (OSError, WebSocketException, TimeoutError) as error:
            raise BackendError(f"{self.url}: {error or type(error).__name__}") from None

    def close(self) -> None:
        """Nothing is kept open."""


@dataclass(slots=True)
class _Collected:
    """A response as it comes in."""

    text: str = ""
    heard: str = ""
    pieces: list[bytes] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    first: float | None = None


class _Session:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def configure(self, request: Request) -> None:
        session: dict[str, Any] = {
            "type": "realtime",
            "max_output_tokens": MAX_TOKENS,
            "audio": {"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": _RATE}}},
        }
        if request.instructions:
            session["instructions"] = request.instructions
        if request.tools:
            session["tools"] = [{"type": "function", **function(tool)} for tool in request.tools]
        self._send("session.update", session=session)
        for event in self._events():
            if event["type"] == "session.updated":
                return

    def take(self, turn: Turn) -> Reply:
        """Say a turn and collect the reply to it."""
        started = time.perf_counter()
        if turn.clip is None:
            content = [{"type": "input_text", "text": turn.text}]
            self._send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        else:
            pcm = to_int16(turn.clip.samples(_RATE)).astype("<i2")
            for begin in range(0, len(pcm), _PIECE):
                data = base64.b64encode(pcm[begin : begin + _PIECE].tobytes()).decode()
                self._send("input_audio_buffer.append", audio=data)
            self._send("input_audio_buffer.commit")
        self._send("response.create")
        found = _Collected()
        for event in self._events():
            self._collect(event, found, started)
            if event["type"] == "response.done":
                break
        samples = to_float(np.frombuffer(b"".join(found.pieces), "<i2"))
        audio = Audio(samples, _RATE) if len(samples) else None
        return Reply(found.text, audio, tuple(found.calls), time.perf_counter() - started, found.first, found.heard)

    def _collect(self, event: dict[str, Any], found: _Collected, started: float) -> None:
        match event["type"]:
            case "response.output_audio.delta":
                found.first = found.first or time.perf_counter() - started
                found.pieces.append(base64.b64decode(event["delta"]))
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                found.text += event["delta"]
            case "response.output_item.done" if event["item"].get("type") == "function_call":
                called = event["item"]
                found.calls.append(Call(called["name"], parse_arguments(called["arguments"])))
            case "conversation.item.input_audio_transcription.completed":
                found.heard = event["transcript"]
            case "response.done" if event["response"]["status"] == "failed":
                raise BackendError(f"the response failed: {event['response'].get('status_details')}")

    def _events(self) -> Iterator[dict[str, Any]]:
        while True:
            event = json.loads(self._connection.recv(timeout=_PATIENCE))
            if event["type"] == "error":
                raise BackendError(f"the server said: {event['error'].get('message')}")
            yield event

    def _send(self, kind: str, **fields: Any) -> None:
        self._connection.send(json.dumps({"type": kind, **fields}))
