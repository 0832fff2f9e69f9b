"""Everything that goes into the conversation core and comes out of it. `docs/live.md` has the contract as tables.

Events go in, with the time. Commands come out for the session to carry out; notices come out for the client to be
told. Ids tie completions to what was asked for: a completion whose id is no longer wanted is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from stepaudio.agent.context import Item
from stepaudio.agent.settings import ReplyOptions, Settings
from stepaudio.speech.roles import Finish, Message, Sampling, Speech, Tool, ToolCall


class State(Enum):
    """Where the conversation is (Step-Audio, section 3.4)."""

    SILENCE = "silence"
    USER_SPEAKING = "user_speaking"
    USER_PAUSED = "user_paused"
    BOT_REPLYING = "bot_replying"


# ---------------------------------------------------------------- events in: the input audio


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


# ---------------------------------------------------------------- events in: the reply in the making


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


# ---------------------------------------------------------------- events in: tools, playback, the clock


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


# ---------------------------------------------------------------- events in: requests of the client


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


# ---------------------------------------------------------------- commands out


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


# ---------------------------------------------------------------- notices out


@dataclass(frozen=True, slots=True)
class StateChanged:
    state: State


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The user's turn began; `item_id` will be its item. Times are seconds of input audio, padding included."""

    item_id: str
    start: float


@dataclass(frozen=True, slots=True)
class SpeechPaused:
    item_id: str
    at: float


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    item_id: str
    at: float


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The user's turn is over; its last speech was at `end`."""

    item_id: str
    end: float


@dataclass(frozen=True, slots=True)
class InputCommitted:
    item_id: str
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class InputCleared:
    pass


@dataclass(frozen=True, slots=True)
class InputTimeout:
    """The user said nothing for `TurnConfig.idle_timeout`: an empty item is committed and the agent speaks up."""

    item_id: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Backchannel:
    """The user said this while the agent spoke, and it was no turn."""

    text: str


@dataclass(frozen=True, slots=True)
class TranscriptPartial:
    """What the turn says so far; each replaces the one before."""

    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class TranscriptDone:
    item_id: str
    text: str
    language: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class TranscriptFailed:
    item_id: str
    message: str


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """An item that no reply made is in the conversation."""

    item: Item
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ItemDeleted:
    item_id: str


@dataclass(frozen=True, slots=True)
class ItemTruncated:
    """An agent's item now ends where the listener's hearing did. `by` says who knew the position."""

    item_id: str
    seconds: float
    text: str
    by: Literal["client", "playback"]


@dataclass(frozen=True, slots=True)
class ReplyStarted:
    reply_id: str
    speak: bool
    in_history: bool
    metadata: Mapping[str, Any]
    voice: str | None
    """None is the default of the language."""
    max_tokens: int


@dataclass(frozen=True, slots=True)
class ReplyItemAdded:
    """The reply's item number `index` begins: empty, in progress."""

    reply_id: str
    item: Item
    index: int
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ReplyTextAdded:
    reply_id: str
    item_id: str
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ReplyItemDone:
    reply_id: str
    item: Item
    index: int


@dataclass(frozen=True, slots=True)
class ReplyDone:
    """`reason`: turn_detected or client_cancelled when cancelled, max_output_tokens when incomplete, else empty."""

    reply_id: str
    status: Literal["completed", "cancelled", "failed", "incomplete"]
    reason: str
    items: tuple[Item, ...]
    usage: Finish
    error: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Speculated:
    """What became of one speculation. `reason` is empty when it was committed.

    `lead`: seconds between its start and this. `tokens`, `seconds`: what it had produced, wasted unless committed.
    """

    committed: bool
    reason: str
    lead: float
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TurnTimed:
    """Seconds from the end of the user's speech to: the end-of-turn decision, the transcript, the first token of the
    reply, and the first audio sent (the first text where nothing is spoken). Transcript and first token may lie
    before the decision when the reply was `speculated`."""

    item_id: str
    reply_id: str
    endpoint: float
    transcript: float
    first_token: float
    first_audio: float
    speculated: bool


Notice = (
    StateChanged | SpeechStarted | SpeechPaused | SpeechResumed | SpeechStopped | InputCommitted
    | InputCleared | InputTimeout | Backchannel | TranscriptPartial | TranscriptDone | TranscriptFailed
    | ItemAdded | ItemDeleted | ItemTruncated
    | ReplyStarted | ReplyItemAdded | ReplyTextAdded | ReplyItemDone | ReplyDone | Speculated | TurnTimed
)  # fmt: skip
Output = Command | Notice
