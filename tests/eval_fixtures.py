"""Systems, judges and instruments for the tests of the harness: they say what they are told to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import BackendError, MissingError
from stepaudio.eval.instruments import Instruments, Setup
from stepaudio.eval.items import Audio, Clip, Item, Kind, Reply, Request
from stepaudio.eval.judges.judge import Judge
from stepaudio.eval.metrics.mos import Mos
from stepaudio.eval.store import Store
from stepaudio.speech.roles import Finish, Message, ReplyEvent, Samples, Tool, ToolCall

RATE = 16_000


def sound(seconds: float = 0.5, hertz: float = 200.0) -> Samples:
    """A tone whose samples are those of a 16-bit file."""
    tone = np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE) / 2
    return (np.round(tone * 32768) / 32768 + 0.0).astype(np.float32)  # there is no negative zero in a file


class Scripted:
    """Answers with `answer`, and counts how often it is asked."""

    kinds: frozenset[Kind] = frozenset(("transcribe", "say", "resynthesise", "converse"))

    def __init__(self, answer: Callable[[Request], Sequence[Reply]], name: str = "scripted") -> None:
        self.name = self.fingerprint = name
        self.asked: list[str] = []
        self._answer = answer

    def parallel(self, kind: Kind) -> int:
        return 3

    def prepare(self, kind: Kind) -> None: ...

    def run(self, request: Request) -> tuple[Reply, ...]:
        self.asked.append(request.id)
        return tuple(self._answer(request))

    def close(self) -> None: ...


class Faulty(Scripted):
    """Another system, of which a random share of the requests fails: by an error, with nothing, or with silence."""

    def __init__(self, system: Scripted, share: float, seed: int = 0) -> None:
        super().__init__(system._answer, f"{system.name}-faulty")
        self._share, self._seed = share, seed

    def fails(self, name: str) -> bool:
        return random.Random(f"{self._seed}:{name}").random() < self._share

    def run(self, request: Request) -> tuple[Reply, ...]:
        if not self.fails(request.id):
            return super().run(request)
        match random.Random(f"how:{request.id}").randrange(4):
            case 0:
                raise BackendError("out of order")
            case 1:
                raise ValueError("a defect")
            case 2:
                return ()
            case _:
                return tuple(Reply(audio=Audio(np.zeros(800, np.float32), RATE)) for _ in request.turns or (0,))


class Telepath(Instruments):
    """Instruments without models: what is said in audio is known by its first sample, its quality is its loudness."""

    asr_label = "telepathy"
    speaker_label = "pitch"

    def __init__(self, store: Store, *, judge: Judge | None = None) -> None:
        self.setup, self.store = Setup(), store
        self.said: dict[str, str] = {}
        self.__dict__["judge"] = judge

    def hear(self, audio: Audio | None, language: str) -> str:
        return "" if audio is None else self.said.get(audio.digest, "")

    def mos(self, audio: Audio) -> Mos:
        level = float(np.abs(audio.samples).max(initial=0.0))
        return Mos(1 + 4 * level, 1 + 4 * level, 1 + 4 * level)

    def voice(self, audio: Audio) -> NDArray[np.float32]:
        return np.array([1.0, float(len(audio.samples) > 0)], np.float32)

    def can(self, what: str) -> str | None:
        return None

    def close(self) -> None: ...


class JudgeModel:
    """A language model that gives the verdicts of `decide`; what is no dictionary is said in words instead."""

    context_tokens = 4096

    def __init__(self, decide: Callable[[str, Tool], Any]) -> None:
        self._decide = decide
        self.asked: list[str] = []

    def respond(self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), **options: Any) -> list[ReplyEvent]:
        self.asked.append(messages[-1].content)
        verdict = self._decide(messages[-1].content, tools[0])
        if isinstance(verdict, Exception):
            raise verdict
        call = [ToolCall("1", tools[0].name, verdict)] if isinstance(verdict, dict) else []
        return [*call, Finish("tool_calls" if call else "stop")]

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        return 1

    def close(self) -> None: ...


def judge(decide: Callable[[str, Tool], Any], store: Store, **options: Any) -> tuple[Judge, JudgeModel]:
    model = JudgeModel(decide)
    return Judge("tester", "tester", lambda: model, store=store, **options), model


def heard(text: str, number: int, *, folder: Path | None = None, language: str = "en") -> Item:
    """An item to transcribe."""
    from stepaudio.audio.encode import encode

    clip = Clip(encode(sound(hertz=100.0 + number), RATE, "wav"))
    return Item(Request(f"{number:03}", "transcribe", language, clip=clip), {"text": text, "seconds": 0.5}, "set")


def missing(what: str) -> MissingError:
    return MissingError(f"{what} is not installed")
