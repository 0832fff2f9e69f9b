"""Replies prepared at a pause: when to try, what to hold back, what it cost.

A speculation is a reply that nobody has been told of. Its events are held, in order, in a bounded ring; committing it
sends them through the same code that a live reply's events go through, so the history cannot tell the two apart.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from stepaudio.agent.context import CallItem, Item, MessageItem, OutputItem, estimate_tokens
from stepaudio.agent.events import (
    ReplyCall,
    ReplyEvent,
    ReplyFinished,
    ReplySpeech,
    ReplyText,
    ToolFinished,
)  # fmt: skip
from stepaudio.agent.planning import Reply
from stepaudio.agent.wording import same_request
from stepaudio.speech.roles import Finish

Reason = Literal["changed", "resumed", "history", "throttled", "overflow", "failed", "cleared"]
"""Why a speculation was discarded: the words changed; the user went on for too long to have said only a filler; the
history or the settings changed, or the client asked for a reply of its own; the machine is loaded; it produced more
than it may; a model failed; the turn was taken back."""

MOST_EVENTS = 4096
"""Events a speculation holds at most, whatever they are."""


class Throttle:
    """Whether a speculation may run now, from observations of load.

    Pressure is 0 on an idle machine and 1 when the next committed reply would have to wait. Between `calm` and 1 the
    score that an attempt needs rises from 0 to 1, so the least likely ones are dropped first. Pressure rises at once
    and falls by halves, so that one quiet moment does not start a stampede.
    """

    def __init__(self, calm: float = 0.5) -> None:
        self.calm = calm
        self.pressure = 0.0

    def observe(self, pressure: float) -> None:
        self.pressure = max(pressure, (self.pressure + pressure) / 2)

    @property
    def closed(self) -> bool:
        """Whether even the speculation that is running should stop."""
        return self.pressure >= 1

    def allows(self, score: float) -> bool:
        return not self.closed and score >= (self.pressure - self.calm) / (1 - self.calm)


@dataclass
class Statistics:
    """What speculation did in a session. `lead` sums the seconds that committed ones were started ahead of commit."""

    started: int = 0
    committed: int = 0
    discarded: Counter[Reason] = field(default_factory=Counter)
    lead: float = 0.0
    wasted_tokens: int = 0
    wasted_seconds: float = 0.0

    @property
    def commit_rate(self) -> float:
        """Share of the settled speculations that were committed; 0 before any."""
        settled = self.committed + sum(self.discarded.values())
        return self.committed / settled if settled else 0.0


@dataclass(slots=True)
class TurnClock:
    """When a user's turn ended, was decided to be over, and was transcribed (wall time)."""

    item_id: str
    speech_end: float
    decided: float
    transcribed: float


class Speculation:
    """One attempt: the transcript it answers, and everything it has produced so far.

    A read-only tool's result starts the next reply inside the speculation, so `replies` may hold several; only the
    last is being made.
    """

    def __init__(self, reply: Reply, user: MessageItem, version: int, started: float, limit: float) -> None:
        self.replies = [reply]
        self.user = user
        self.version = version
        self.started = started
        self.limit = limit
        self.events: deque[ReplyEvent | ToolFinished] = deque()
        self.seconds = 0.0
        self.tokens = 0
        self.complete = False
        """Whether the last reply has finished."""
        self.suspended = False
        """Whether the user speaks again, and may turn out to have said only a filler."""
        self.waiting = False
        """Whether its work was told to wait."""
        self._text = ""
        self._calls: list[ReplyCall] = []
        self._outputs: dict[str, str] = {}
        self._past: list[Item] = [user]

    @property
    def reply(self) -> Reply:
        return self.replies[-1]

    @property
    def call_ids(self) -> set[str]:
        return {event.call.id for event in self.events if isinstance(event, ReplyCall)}

    def answers(self, transcript: str, version: int) -> bool:
        """Whether it is a reply to this transcript in this version of the history."""
        return self.version == version and same_request(self.user.text or "", transcript)

    @property
    def full(self) -> bool:
        return self.seconds >= self.limit

    @property
    def overflowed(self) -> bool:
        """More came although its work was told to wait."""
        return self.seconds >= 2 * self.limit or len(self.events) >= MOST_EVENTS

    def hold(self, event: ReplyEvent | ToolFinished, rate: int) -> None:
        """Keep an event for the commit."""
        self.events.append(event)
        if isinstance(event, ReplyText):
            self._text += event.text
            self.tokens += max(1, estimate_tokens(event.text) - estimate_tokens(""))
        elif isinstance(event, ReplySpeech):
            self.seconds += len(event.speech.samples) / rate
        elif isinstance(event, ReplyCall):
            self._calls.append(event)
            self.tokens += estimate_tokens(str(dict(event.call.arguments)))
        elif isinstance(event, ToolFinished):
            self._outputs[event.call_id] = event.output
        elif isinstance(event, ReplyFinished):
            self.complete = True

    @property
    def due(self) -> bool:
        """Whether the last reply has all the tool results that it asked for and can be followed by the next."""
        return self.complete and bool(self._calls) and all(e.call.id in self._outputs for e in self._calls)

    def past(self) -> list[Item]:
        """The turn and everything after it, as items that are not in history yet: the prompt of the next reply."""
        said = [MessageItem("", "assistant", self._text, reply_id=self.reply.id)] if self._text else []
        calls = [CallItem("", event.call, reply_id=self.reply.id) for event in self._calls]
        outputs = [OutputItem("", event.call.id, self._outputs[event.call.id]) for event in self._calls]
        return [*self._past, *said, *calls, *outputs]

    def follow(self, reply: Reply) -> None:
        """The next reply, to the results of the last one's tools."""
        self._past = self.past()
        self.replies.append(reply)
        self._text, self._calls, self._outputs, self.complete = "", [], {}, False


NO_USAGE = Finish("stop")
