"""What is asked, what comes back: the values that pass between datasets, systems and tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepaudio.audio.pcm import Samples
from stepaudio.speech.roles import Tool

Kind = Literal["transcribe", "say", "resynthesise", "converse"]


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or the part of one from `start` to `end` seconds."""

    source: Path | bytes
    start: float = 0.0
    end: float | None = None

    def samples(self, rate: int) -> Samples:
        """Samples [T]. Raises AudioError."""
        whole = _decode(self.source, rate)
        stop = None if self.end is None else round(self.end * rate)
        return whole[round(self.start * rate) : stop]

    @property
    def digest(self) -> str:
        """Of the contents, so that a file that moves is the same and one that changes is not."""
        data = self.source if isinstance(self.source, bytes) else None
        content = hashlib.sha256(data).hexdigest() if data is not None else _file_digest(self.source)
        return f"{content}:{self.start}:{self.end}"


# The segments of a long recording are asked for one after another.
@lru_cache(maxsize=2)
def _decode(source: Path | bytes, rate: int) -> Samples:
    from stepaudio.audio.io import read

    return read(source, rate=rate)


@lru_cache(maxsize=100_000)
def _file_digest(path: Path | bytes) -> str:
    assert isinstance(path, Path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user says: in writing, or in a recording of which `text` is the transcript."""

    text: str
    clip: Clip | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a system is asked, without what it should answer.

    `transcribe` and `resynthesise` a clip; `say` a text (in the voice of the clip, if there is one); `converse`: reply
    to one turn after another.
    """

    id: str
    kind: Kind
    language: str
    text: str = ""
    clip: Clip | None = None
    turns: tuple[Turn, ...] = ()
    tools: tuple[Tool, ...] = ()
    instructions: str | None = None

    def content(self) -> dict[str, Any]:
        """All of it as JSON, audio by digest."""
        return {
            "kind": self.kind,
            "language": self.language,
            "text": self.text,
            "clip": self.clip.digest if self.clip else None,
            "turns": [[turn.text, turn.clip.digest if turn.clip else None] for turn in self.turns],
            "tools": [[tool.name, tool.description, dict(tool.parameters)] for tool in self.tools],
            "instructions": self.instructions,
        }


@dataclass(frozen=True, slots=True)
class Item:
    """A request and what its score is based on.

    `group` is the set or dimension that figures are given for, `cluster` what makes items depend on each other (a
    speaker, a dialogue); by default every item is its own.
    """

    request: Request
    reference: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    cluster: str = ""

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def language(self) -> str:
        return self.request.language


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Samples [T] at `rate`."""

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    @property
    def digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.samples).tobytes() + str(self.rate).encode()).hexdigest()

    def at(self, rate: int) -> Samples:
        """Resampled."""
        from stepaudio.audio.resample import resample

        return resample(self.samples, self.rate, rate)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the system wants run."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes back: text, audio, calls. `seconds` from asking to the last of it, `first` to the first audio, or to
    the first text where there is no audio; None where the system does not say. `heard` is what it understood."""

    text: str = ""
    audio: Audio | None = None
    calls: tuple[Call, ...] = ()
    seconds: float | None = None
    first: float | None = None
    heard: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """A system's replies to one request, or why there are none: a reply to each turn of a conversation, one to anything
    else."""

    replies: tuple[Reply, ...] = ()
    error: str | None = None

    @property
    def reply(self) -> Reply:
        """The last reply; an empty one when there is none."""
        return self.replies[-1] if self.replies else Reply()
