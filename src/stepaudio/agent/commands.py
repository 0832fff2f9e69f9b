"""What the conversation core wants done: commands, for the session to carry out in order."""

from __future__ import annotations

from dataclasses import dataclass

from stepaudio.speech.roles import Message, Sampling, Speech, Tool, ToolCall


@dataclass(frozen=True, slots=True)
class Transcribe:
    """Transcribe the input from `start` to `end` (seconds of input audio), or, with no span, the item's own audio.

    `final` says that the turn is over and somebody waits for this.
    """

    job: str
    item_id: str
    start: float | None
    end: float | None
    final: bool
    language: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Overhear:
    """Transcribe the input from `start` to `end` while the user speaks on; may fail at once on a busy machine."""

    job: str
    start: float
    end: float
    language: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class CancelTranscribe:
    """Of `Transcribe` and `Overhear`."""

    job: str


@dataclass(frozen=True, slots=True)
class Warm:
    """Have the responder read the history, and the `words` that the user has said since, before anybody waits for it.

    The latest one counts. With a `job`, `Scored` tells how likely the words end a sentence, and a speculation waits for
    it; without, a reply that is to be made ends it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    words: str
    job: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Ask the acoustic `TurnScorer` whether the turn from `start` to `end` (seconds of input audio) is over."""

    job: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class StartReply:
    """Make a reply. With `text` set, speak just that and do not ask the Responder."""

    reply_id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    tool_choice: str
    sampling: Sampling
    speak: bool
    voice: str | None
    speed: float
    speculative: bool
    text: str | None = None


@dataclass(frozen=True, slots=True)
class PauseReply:
    """Let the work on a speculative reply wait: its ring is full, or the user speaks again."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class ResumeReply:
    """Go on with a reply that was told to wait."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class CommitReply:
    """A speculative reply is wanted now: go on if it waits, with the priority of a committed one."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class CancelReply:
    """Stop the work on a reply; nothing it still produces is wanted."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class Play:
    """Send this audio to the listener, behind what was sent before."""

    reply_id: str
    item_id: str
    speech: Speech


@dataclass(frozen=True, slots=True)
class StopPlayback:
    """Be silent at once and drop all audio that was not heard yet."""


@dataclass(frozen=True, slots=True)
class RunTool:
    call: ToolCall
    timeout: float


@dataclass(frozen=True, slots=True)
class CancelTool:
    call_id: str


@dataclass(frozen=True, slots=True)
class Summarise:
    """Ask the Responder, in the background, for a summary."""

    job: str
    messages: tuple[Message, ...]


Command = (
    Transcribe | Overhear | CancelTranscribe | Score | Warm | StartReply | PauseReply | ResumeReply | CommitReply
    | CancelReply | Play | StopPlayback | RunTool | CancelTool | Summarise
)  # fmt: skip
