"""For tests of the live conversation: models that follow a script, and a client that checks every event it gets."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Annotated, Any

import numpy as np
from openai.types.realtime import RealtimeServerEvent
from openai.types.realtime.client_secret_create_response import Session
from pydantic import BaseModel, Field, TypeAdapter
from websockets.sync.client import ClientConnection, connect

from serve_fixtures.fakes import FakeBundle, FixedTranscriber, Work, tone
from stepaudio.audio.pcm import to_int16
from stepaudio.speech.roles import Finish, Message, ReplyEvent, Samples, Sampling, TextDelta, Tool, ToolCall, Transcript

RATE = 24_000
Answer = Callable[[Sequence[Message], Sequence[Tool]], list[str | ToolCall]]

_EVENT: TypeAdapter[Any] = TypeAdapter(Annotated[RealtimeServerEvent, Field(discriminator="type")])
_SESSION: TypeAdapter[Any] = TypeAdapter(Session)


def speech(seconds: float = 1.0, silence: float = 0.7, rate: int = RATE) -> Samples:
    """Something loud, and the silence after it."""
    return np.concatenate([tone(seconds, rate), np.zeros(int(silence * rate), np.float32)])


def pcm(samples: Samples) -> str:
    return base64.b64encode(to_int16(samples).astype("<i2").tobytes()).decode()


def check(event: dict[str, Any]) -> None:
    """The event is one of OpenAI's, with every field that it must have and none that it has not."""
    if "session" in event:  # typed as a request there, but a session that exists has an id
        session = {name: value for name, value in event["session"].items() if name != "stepaudio"}
        _no_extras(_SESSION.validate_python(session, strict=True), "session")
        event = {**event, "session": {"type": event["session"]["type"]}}
    _no_extras(_EVENT.validate_python(event, strict=True), event["type"])


def _no_extras(value: Any, where: str) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{where} has unknown fields: {value.model_extra}"
        for name in type(value).model_fields:
            _no_extras(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list):
        for i, one in enumerate(value):
            _no_extras(one, f"{where}.{i}")


class ScriptedTranscriber(FixedTranscriber):
    """Hears a line of a script per turn, the last one for ever; a line may be an error to raise.

    A turn is transcribed several times, each time with more of it: audio shorter than the last is another's.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.lines: list[str | Exception] = ["hello world"]
        self.heard: list[float] = []

    def transcribe(self, samples: Samples, *, cancel: Event | None = None, **options: Any) -> Transcript:
        known = super().transcribe(samples, cancel=cancel, **options)
        if self.heard and known.duration < self.heard[-1] and len(self.lines) > 1:
            self.lines.pop(0)
        self.heard.append(known.duration)
        line = self.lines[0]
        if isinstance(line, Exception):
            raise line
        return Transcript(line, known.language, known.duration, 0.9)


class ScriptedResponder:
    """Says what `answer` makes of the conversation; a part may be an error to raise, or an event to wait for."""

    context_tokens = 4096

    def __init__(self, work: Work) -> None:
        self.work = work
        self.answer: Callable[..., Sequence[Any]] = lambda messages, tools: [f"You said {messages[-1].content}."]
        self.prompts: list[list[Message]] = []
        self.samplings: list[Sampling | None] = []

    def respond(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        sampling: Sampling | None = None,
        cancel: Event | None = None,
    ) -> Iterator[ReplyEvent]:
        self.prompts.append(list(messages))
        self.samplings.append(sampling)
        called = False
        with self.work():
            for part in self.answer(messages, tools if tool_choice != "none" else ()):
                self.work.step(cancel)
                if isinstance(part, Exception):
                    raise part
                if isinstance(part, Event):
                    while not part.wait(0.01):
                        self.work.step(cancel)
                elif isinstance(part, ToolCall):
                    called = True
                    yield part
                else:
                    yield TextDelta(part)
            yield Finish("tool_calls" if called else "stop", 20, 5, 10)

    def warm(self, messages, tools=(), *, words="", cancel=None):
        """Reads nothing ahead."""

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        return sum(len(message.content.split()) for message in messages)

    def close(self) -> None: ...


class TalkBundle(FakeBundle):
    """The fake bundle, with a scripted transcriber and responder."""

    transcriber: ScriptedTranscriber
    responder: ScriptedResponder  # type: ignore[assignment]

    def __init__(self, pace: float = 0.0) -> None:
        super().__init__(pace)
        self.transcriber = ScriptedTranscriber(self.work)
        self.responder = ScriptedResponder(self.work)  # type: ignore[assignment]


class Client:
    """A client of the protocol. Every event it reads is checked against OpenAI's types, but for `stepaudio.*`."""

    def __init__(self, socket: ClientConnection, *, strict: bool = True) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self.strict = strict

    def send(self, type: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": type, **fields}))

    def update(self, **session: Any) -> dict[str, Any]:
        self.send("session.update", session={"type": "realtime", **session})
        return self.until("session.updated", "error")

    def say(self, samples: Samples, step: float = 0.1) -> None:
        for start in range(0, len(samples), int(step * RATE)):
            self.send("input_audio_buffer.append", audio=pcm(samples[start : start + int(step * RATE)]))

    def read(self, timeout: float = 10.0) -> dict[str, Any]:
        event = json.loads(self.socket.recv(timeout=timeout))
        if self.strict and not event["type"].startswith("stepaudio."):
            check(event)
        self.events.append(event)
        return event

    def until(self, *types: str, timeout: float = 10.0) -> dict[str, Any]:
        """Read on to the next event of one of these types."""
        end = time.monotonic() + timeout
        while True:
            event = self.read(end - time.monotonic())
            if event["type"] in types:
                return event

    def all(self, *types: str) -> list[dict[str, Any]]:
        """Those that were read so far."""
        return [event for event in self.events if event["type"] in types]

    def types(self) -> list[str]:
        """What was read so far, repeated deltas once."""
        seen: list[str] = []
        for event in self.events:
            if not (seen and seen[-1] == event["type"] and seen[-1].endswith(".delta")):
                seen.append(event["type"])
        return seen

    def quiet(self, seconds: float = 0.3) -> None:
        """Read whatever comes within so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self.read(left)
            except TimeoutError:
                return


async def within(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    """Wait for something that must come about. Time in which the whole process was stopped does not count: a machine
    that is suspended, or busy with something else, breaks nothing."""
    task, left = asyncio.ensure_future(work), seconds
    while left > 0:
        before = time.monotonic()
        done, _ = await asyncio.wait({task}, timeout=0.25)
        if done:
            return task.result()
        left -= min(time.monotonic() - before, 0.5)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    raise TimeoutError(f"it did not come about within {seconds:g} s")


@contextmanager
def client(url: str, path: str = "/v1/realtime?model=fake", *, strict: bool = True, **options: Any) -> Iterator[Client]:
    """Connect, and read the greeting."""
    with connect(url.replace("http", "ws", 1) + path, compression=None, max_size=None, **options) as socket:
        talker = Client(socket, strict=strict)
        talker.until("conversation.created")
        yield talker
