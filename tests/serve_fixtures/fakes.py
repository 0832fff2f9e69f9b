"""A bundle whose roles are small, deterministic and as slow as a test asks: real implementations of the protocols."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.encode import encode
from stepaudio.audio.resample import resample
from stepaudio.audio.vad import SileroVad
from stepaudio.errors import Cancelled, InputError, NotFoundError, TextError
from stepaudio.speech.bundle import Bundle
from stepaudio.speech.roles import (
    Edit,
    Finish,
    Message,
    Reference,
    ReplyEvent,
    Samples,
    Sampling,
    Speech,
    TextDelta,
    Tool,
    ToolCall,
    Transcript,
    Voice,
    Word,
)

HEARD = "hello world"


class Work:
    """Counts what runs, and paces it: each step takes `pace` seconds unless it is cancelled."""

    def __init__(self, pace: float = 0.0) -> None:
        self.pace = pace
        self.running = 0
        self.started = 0
        self.cancelled = 0
        self._lock = Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self.running += 1
            self.started += 1
        try:
            yield
        except (Cancelled, GeneratorExit):  # between two steps a stream is closed, within one it is cancelled
            self.cancelled += 1
            raise
        finally:
            with self._lock:
                self.running -= 1

    def step(self, cancel: Event | None) -> None:
        if cancel is not None and (cancel.wait(self.pace) if self.pace else cancel.is_set()):
            raise Cancelled("cancelled")


class ToneSpeaker:
    """A tenth of a second of tone for each word."""

    rate = 24_000
    voices = (Voice("tone", ("en",), "A sine", "CC0"), Voice("zhong", ("zh",), "A higher sine", "CC0"))

    def __init__(self, work: Work) -> None:
        self.work = work

    def default_voice(self, language: str) -> Voice | None:
        return next((voice for voice in self.voices if language in voice.languages), None)

    def speak(self, clause: str, *, voice: str, speed: float = 1.0, cancel: Event | None = None) -> Iterator[Speech]:
        if voice not in ("tone", "zhong"):
            raise NotFoundError(f"There is no voice {voice}.", param="voice")
        if "unspeakable" in clause:
            raise TextError("This cannot be spoken.", param="input")
        if "crash" in clause:
            raise RuntimeError("secret detail of a crash")
        with self.work():
            for word in clause.split() or [clause]:
                self.work.step(cancel)
                time = np.arange(int(self.rate * 0.1 / speed)) / self.rate
                yield Speech(np.sin(2 * np.pi * 440 * time).astype(np.float32) / 2, word)

    def close(self) -> None: ...


class Mimic(ToneSpeaker):
    """A tone speaker that takes any clip for its voice, and whose every edit is the recording at half its level."""

    def cloned(self, reference: Reference) -> Mimic:
        return self

    def edit(self, recording: Reference, edit: Edit, *, cancel: Event | None = None) -> Iterator[Speech]:
        if edit.option == "sleepy":
            raise InputError("There is no emotion sleepy.", param="option")
        yield Speech(resample(recording.samples, recording.rate, self.rate) / 2, recording.transcript)


class EchoResponder:
    """Repeats the last user message word by word, or calls the first tool (or the one that it must call)."""

    context_tokens = 4096

    def __init__(self, work: Work) -> None:
        self.work = work
        self.seen: list[Message] = []
        self.sampling = Sampling()

    def respond(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        sampling: Sampling | None = None,
        cancel: Event | None = None,
    ) -> Iterator[ReplyEvent]:
        if (prompt := self.count_tokens(messages)) > self.context_tokens:
            raise InputError("The conversation does not fit the context.", param="messages")
        self.seen, self.sampling = list(messages), sampling or Sampling()
        with self.work():
            if tools and tool_choice != "none" and messages[-1].role == "user":
                self.work.step(cancel)
                name = tools[0].name if tool_choice in ("auto", "required") else tool_choice
                yield ToolCall("call_1", name, {"city": "Zürich"})
                yield Finish("tool_calls", prompt, 0, 3)
                return
            words = messages[-1].content.split()
            limit = self.sampling.max_tokens
            for i, word in enumerate(words[:limit]):
                self.work.step(cancel)
                yield TextDelta(word if i == 0 else f" {word}")
            yield Finish("length" if len(words) > limit else "stop", prompt, 1, min(len(words), limit))

    def warm(self, messages, tools=(), *, words="", cancel=None):
        """Reads nothing ahead."""

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        return sum(len(message.content.split()) for message in messages)

    def close(self) -> None: ...


class FixedTranscriber:
    """Hears the same two words in everything."""

    rate = 16_000
    languages = ("en", "zh")
    max_seconds = 30.0

    def __init__(self, work: Work) -> None:
        self.work = work
        self.calls = 0

    def transcribe(
        self,
        samples: Samples,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
        cancel: Event | None = None,
    ) -> Transcript:
        if language not in (None, *self.languages):
            raise InputError(f"The language {language} is not known.", param="language")
        with self.work():
            self.calls += 1
            self.work.step(cancel)
            half = len(samples) / self.rate / 2
            timed = (Word("hello", 0.0, half), Word("world", half, 2 * half)) if words else ()
            return Transcript(HEARD, language or "en", 2 * half, 0.9, timed)

    def close(self) -> None: ...


class LoudnessVad(SileroVad):
    """What is loud is speech."""

    def __init__(self) -> None: ...

    def run(self, window: Samples, state: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        return float(np.abs(window).max() > 0.1), state


class FakeBundle:
    """The bundle `fake`; `slow` is the pace of each of its models in seconds a step."""

    name = "fake"
    languages = ("en", "zh")

    def __init__(self, pace: float = 0.0) -> None:
        self.work = Work(pace)
        self.transcriber = FixedTranscriber(self.work)
        self.responder = EchoResponder(self.work)
        self.speaker = Mimic(self.work)
        self.vad = LoudnessVad()
        self.warmed = Event()
        self.warming = Event()
        self.warming.set()

    def has(self, role: str) -> bool:
        return True

    # The abilities are the real ones.
    segments, transcribe = Bundle.segments, Bundle.transcribe
    clone, edit, reference = Bundle.clone, Bundle.edit, Bundle.reference

    def warm(self) -> None:
        """Takes until `warming` is set."""
        self.warming.wait(10)
        self.warmed.set()


def tone(seconds: float, rate: int = 16_000) -> Samples:
    """Something loud."""
    return (np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate) / 2).astype(np.float32)


def recording(*seconds: float, format: str = "wav") -> bytes:
    """A file of loud stretches of that many seconds, each with three seconds of silence after it."""
    silence = np.zeros(3 * 16_000, np.float32)
    return encode(np.concatenate([part for s in seconds for part in (tone(s), silence)]), 16_000, format)
