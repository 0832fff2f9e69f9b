"""What the conversation core tells the client: notices, for the codec to put into words in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from stepaudio.agent.commands import Command
from stepaudio.agent.context import Item
from stepaudio.speech.roles import Finish


class State(Enum):
    """Where the conversation is (Step-Audio, section 3.4)."""

    SILENCE = "silence"
    USER_SPEAKING = "user_speaking"
    USER_PAUSED = "user_paused"
    BOT_REPLYING = "bot_replying"


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
"""What the core puts out, in order."""
