"""The five roles a bundle fills, and the small values that pass between them.

Abilities are roles, models are bundles: the command line, the server and the live runtime know only these
protocols. Every implementation is loaded once per process, shared by all sessions and safe to call from several
threads at once. `cancel` is a `threading.Event`; an implementation looks at it at least every 100 ms of work (or
between two model calls that cannot be split) and raises `stepaudio.errors.Cancelled`.

Shapes: T samples. Audio is mono float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples as Samples  # part of what the roles speak of

# ---------------------------------------------------------------- hearing


@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it lies in its audio, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in one stretch of audio.

    `text` is empty when no speech was found. `language` is an ISO 639-1 code, `confidence` the mean token
    probability in [0, 1] (0 when there is no text), `duration` the length of the audio in seconds.
    """

    text: str
    language: str
    duration: float
    confidence: float = 0.0
    words: tuple[Word, ...] = ()


@runtime_checkable
class Transcriber(Protocol):
    """Audio to text, one utterance at a time."""

    rate: int
    """Sample rate it listens at (16 000)."""
    languages: tuple[str, ...]
    """ISO 639-1 codes it understands."""
    max_seconds: float
    """Longest audio that one call takes; `stepaudio.speech.transcribe` cuts longer audio at pauses."""

    def transcribe(
        self,
        samples: Samples,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
        cancel: Event | None = None,
    ) -> Transcript:
        """Transcribe samples [T] at `rate`. `language=None` detects it; `prompt` biases spelling and vocabulary.

        Raises InputError for an unknown language or audio longer than `max_seconds`.
        """
        ...

    def close(self) -> None: ...


# ---------------------------------------------------------------- answering

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A request by the model to run a tool; `arguments` is valid for the tool's JSON schema."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of text history. `tool_call_id` names the call that a `tool` message answers.

    `audio` [T] at 16 kHz is what was said, for a `HearingResponder`; `content` is its transcript for all others.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    audio: Samples | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. `parameters` is a JSON schema of type object.

    A `read_only` tool changes nothing in the world and may run before it is sure that its answer is wanted.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of every reply: why it ended and what it cost, in tokens."""

    reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


ReplyEvent = TextDelta | ToolCall | Finish


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the reply is drawn. `temperature=0` is greedy; the same seed gives the same reply."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@runtime_checkable
class Responder(Protocol):
    """Text history to a stream of reply text and tool calls."""

    context_tokens: int
    """Prompt and reply together never exceed this."""

    def respond(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        sampling: Sampling | None = None,
        cancel: Event | None = None,
    ) -> Iterator[ReplyEvent]:
        """Stream a reply; the last event is a `Finish`. `tool_choice` is auto, none, required or a tool's name.

        Raises InputError when the history does not fit `context_tokens`, BackendError when the model fails.
        """
        ...

    def warm(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, words: str = "", cancel: Event | None = None
    ) -> float | None:
        """Read a history, and the words that the user has said of the turn after it, ahead of the reply to that turn.

        The reply that reads on from there starts sooner. Returns the probability that the next thing after `words` is
        the end of a sentence, as far as the words tell. A backend that keeps nothing between replies, or does not show
        its probabilities, returns None.
        """
        ...

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        """Tokens that this history takes as a prompt."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class HearingResponder(Responder, Protocol):
    """A responder that hears the turn it replies to: the last message of the user comes with its `audio`."""

    hears_seconds: float
    """Longest audio that it takes; what lasts longer comes as text alone."""


# ---------------------------------------------------------------- speaking


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice by name; `languages` are ISO 639-1 codes it reads well."""

    name: str
    languages: tuple[str, ...]
    description: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Speech:
    """A stretch of spoken audio and the text it says.

    `samples` [T] at the speaker's rate. `text` is the part of the input that is spoken here, as it was written, so
    that the texts of all chunks joined give the input back (but for white space). `words` are timed from the start
    of these samples, in seconds.
    """

    samples: Samples
    text: str
    words: tuple[Word, ...] = ()


@runtime_checkable
class Speaker(Protocol):
    """Text to audio, one clause at a time; `stepaudio.speech.say` cuts a stream of text into clauses."""

    rate: int
    """Sample rate it speaks at (24 000)."""
    voices: tuple[Voice, ...]
    """The first is the default; `default_voice` picks one by language."""

    def default_voice(self, language: str) -> Voice | None:
        """The voice that reads an ISO 639-1 language when the caller names none; None if no voice does."""
        ...

    def speak(self, clause: str, *, voice: str, speed: float = 1.0, cancel: Event | None = None) -> Iterator[Speech]:
        """Speak one clause (at most a few hundred characters) in one or more chunks. Speed 0.25 to 4.

        Raises NotFoundError for an unknown voice and TextError for a text the voice cannot read.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class StyledSpeaker(Speaker, Protocol):
    """A speaker that can be told how to speak."""

    def styled(self, style: str) -> Speaker:
        """The same voices speaking in a style: a label of the model's own, or plain words ("tired and slow")."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """A clip of somebody speaking, samples [T] at `rate`, and what they say in it."""

    samples: Samples
    rate: int
    transcript: str


@runtime_checkable
class Cloner(Speaker, Protocol):
    """A speaker that takes its voice from a clip."""

    def cloned(self, reference: Reference) -> Speaker:
        """A speaker whose only voice is that of the clip. `stepaudio.speech.clone` checks clips beforehand."""
        ...


EditKind = Literal["emotion", "style", "speed", "paralinguistic", "denoise", "trim"]


@dataclass(frozen=True, slots=True)
class Edit:
    """A change to a recording. `option` is the emotion, style or speed; `text` what a paralinguistic edit makes it
    say, sounds in square brackets: "[sigh] All right"."""

    kind: EditKind
    option: str = ""
    text: str = ""


@runtime_checkable
class Editor(Protocol):
    """Changes how something was said, and leaves who said it."""

    rate: int
    """Sample rate of the result."""

    def edit(self, recording: Reference, edit: Edit, *, cancel: Event | None = None) -> Iterator[Speech]:
        """The edited recording in one or more chunks. Raises InputError for an option that does not exist."""
        ...


# ---------------------------------------------------------------- who spoke, and is it over


@runtime_checkable
class SpeakerEncoder(Protocol):
    """Audio to a unit vector that is close for the same speaker."""

    rate: int
    dim: int

    def embed(self, samples: Samples) -> NDArray[np.float32]:
        """Samples [T] at `rate` to a unit vector [dim]. Raises AudioError when there is too little speech."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class TurnScorer(Protocol):
    """How sure is it that the user has finished?"""

    rate: int

    def score(self, samples: Samples, text: str | None, language: str | None) -> float | None:
        """Probability in [0, 1] that the turn whose last seconds are `samples` [T] (and whose transcript so far
        is `text`, when known) is over; None is no opinion."""
        ...

    def close(self) -> None: ...
