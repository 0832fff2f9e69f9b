"""What goes into the conversation core, with the time. `docs/live.md` has the contract as tables.

`commands` and `notices` come out. Ids tie completions to what was asked for: a completion whose id is no longer wanted
is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stepaudio.agent.context import Item
from stepaudio.agent.settings import ReplyOptions, Settings
from stepaudio.speech.roles import Finish, Speech, ToolCall

# ---------------------------------------------------------------- the input audio


@dataclass(frozen=True, slots=True)
class Window:
    """The next 32 ms of input holds speech with this probability."""

    probability: float


@dataclass(frozen=True, slots=True)
class CommitInput:
    """The client says that its turn is over."""


@dataclass(frozen=True, slots=True)
class ClearInput:
    """The client takes back the audio that is not committed yet."""


@dataclass(frozen=True, slots=True)
class Transcribed:
    """The answer to `Transcribe`."""

    job: str
    text: str
    language: str | None = None


@dataclass(frozen=True, slots=True)
class TranscribeFailed:
    """The answer to `Transcribe` when the transcriber failed."""

    job: str
    message: str


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to `Score`, the probability that the turn is over, or to `Warm`, that the sentence is; None is no
    opinion."""

    job: str
    probability: float | None


# ---------------------------------------------------------------- the reply in the making


@dataclass(frozen=True, slots=True)
class ReplyText:
    """The Responder's next piece of text."""

    reply_id: str
    text: str


@dataclass(frozen=True, slots=True)
class ReplySpeech:
    """The Speaker's next stretch of audio."""

    reply_id: str
    speech: Speech


@dataclass(frozen=True, slots=True)
class ReplyCall:
    """The Responder asks for a tool. The core gives the call an id of its own."""

    reply_id: str
    call: ToolCall


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """The reply is complete, its audio included."""

    reply_id: str
    finish: Finish


@dataclass(frozen=True, slots=True)
class ReplyFailed:
    """A model failed; the reply ends here."""

    reply_id: str
    message: str
    code: str = "backend_error"


# ---------------------------------------------------------------- tools, playback, the clock


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """The result of a tool run by `RunTool`, as the model will read it; of one that `failed`, that it did."""

    call_id: str
    output: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class ToolFailed:
    """A tool run by `RunTool` failed. The model is told, the user is not."""

    call_id: str
    message: str


@dataclass(frozen=True, slots=True)
class Summarised:
    """The answer to `Summarise`."""

    job: str
    text: str


@dataclass(frozen=True, slots=True)
class SummariseFailed:
    """The answer to `Summarise` when the Responder failed; it is tried again after the next turn."""

    job: str


@dataclass(frozen=True, slots=True)
class Played:
    """A media clock or an acknowledgement: `seconds` of an item have been heard."""

    item_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """How loaded the machine is: 0 idle, 1 when the next committed reply would have to wait."""

    pressure: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at `Controller.wake_at`."""


# ---------------------------------------------------------------- requests of the client


@dataclass(frozen=True, slots=True)
class Configure:
    """New settings for the session."""

    settings: Settings


@dataclass(frozen=True, slots=True)
class CreateItem:
    """Insert an item; `after` is an item id, "root" for the front, None for the end.

    A user message with `text=None` has audio of its own that the session keeps: it is transcribed.
    """

    item: Item
    after: str | None = None


@dataclass(frozen=True, slots=True)
class DeleteItem:
    item_id: str


@dataclass(frozen=True, slots=True)
class TruncateItem:
    """The client stopped playing an item after `seconds` of it."""

    item_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class CreateReply:
    """The client asks for a reply."""

    options: ReplyOptions = field(default_factory=ReplyOptions)


@dataclass(frozen=True, slots=True)
class StopReply:
    """The client cancels a reply; None means the one being made."""

    reply_id: str | None = None


@dataclass(frozen=True, slots=True)
class ClearOutput:
    """The client wants silence now: stop the playback and the reply."""


@dataclass(frozen=True, slots=True)
class Say:
    """Speak this text as the agent: a greeting, an announcement."""

    text: str


ReplyEvent = ReplyText | ReplySpeech | ReplyCall | ReplyFinished | ReplyFailed
Event = (
    Window | CommitInput | ClearInput | Transcribed | TranscribeFailed | Scored | ReplyEvent
    | ToolFinished | ToolFailed | Summarised | SummariseFailed | Played | Load | Tick
    | Configure | CreateItem | DeleteItem | TruncateItem | CreateReply | StopReply | ClearOutput | Say
)  # fmt: skip
