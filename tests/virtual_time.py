"""A conversation in virtual time: a scripted user, models with given delays, and a listener, around a `Controller`.

Nothing waits: the next thing that happens is taken from a heap. `World` plays the part of the session, and checks on
everything that comes out of the controller that the promises of `docs/live.md` hold (`Watch`).
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.context import CallItem, MessageItem, OutputItem
from stepaudio.agent.controller import Controller
from stepaudio.agent.settings import Settings
from stepaudio.agent.speculation import MOST_EVENTS
from stepaudio.agent.turn import WINDOW
from stepaudio.speech.roles import Finish, Message, Speech, ToolCall, Word

RATE = 24_000
_SILENCE = np.zeros(60 * RATE, np.float32)


def speech(text: str, seconds: float) -> Speech:
    """A stretch of (silent) audio whose words are spread evenly over it."""
    words = text.split()
    step = seconds / max(1, len(words))
    timed = tuple(Word(word, i * step, (i + 1) * step) for i, word in enumerate(words))
    return Speech(_SILENCE[: round(seconds * RATE)], text, timed)


class Watch:
    """Looks at every event and output of a controller, and fails when an invariant is broken."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.now = self.kept = 0.0
        self.listening: dict[str, float] = {}
        self.ran: set[str] = set()
        self.running: set[str] = set()
        self.made: dict[str, str] = {}
        self.open: dict[str, note.ReplyStarted] = {}
        self.done: set[str] = set()
        self.items: set[str] = set()
        self.deleted: set[str] = set()
        self.spoken: dict[str, str] = {}

    def handle(self, event: ev.Event, now: float) -> list[note.Output]:
        assert now >= self.now
        self.now = now
        if isinstance(event, ev.ReplyText):
            self.made[event.reply_id] = self.made.get(event.reply_id, "") + event.text
        self.kept = self.controller.keep_from
        outputs = self.controller.handle(event, now)
        if isinstance(event, ev.Transcribed | ev.TranscribeFailed):
            self.listening.pop(event.job, None)
        if isinstance(event, ev.ToolFinished | ev.ToolFailed):
            self.running.discard(event.call_id)
        for output in outputs:
            self.output(output)
        self.state()
        if isinstance(event, ev.Tick):
            wake = self.controller.wake_at
            assert wake is None or wake > now, "the session would spin"
        return outputs

    def output(self, output: note.Output) -> None:
        match output:
            case cmd.Transcribe(job=job, start=float(start)) | cmd.Overhear(job=job, start=start):
                assert start >= self.kept, "audio that may have been dropped"
                self.listening[job] = start
            case cmd.CancelTranscribe(job):
                self.listening.pop(job, None)
            case cmd.RunTool(call):
                assert call.id not in self.ran, "a tool call runs twice"
                self.ran.add(call.id)
                self.running.add(call.id)
            case cmd.CancelTool(call_id):
                assert call_id in self.ran
                self.running.discard(call_id)
            case cmd.StartReply(messages=messages):
                check_messages(messages)
            case note.ReplyStarted(reply_id, _, in_history):
                assert reply_id not in self.open
                assert reply_id not in self.done
                if in_history:
                    assert not any(reply.in_history for reply in self.open.values()), "two replies at once"
                self.open[reply_id] = output
            case note.ReplyItemAdded(reply_id, item):
                assert reply_id in self.open
                if self.open[reply_id].in_history:
                    self.items.add(item.id)
            case note.ReplyTextAdded(reply_id, item_id, _, text):
                assert reply_id in self.open
                self.spoken[item_id] = self.spoken.get(item_id, "") + text
            case cmd.Play(reply_id):
                assert reply_id in self.open, "audio of a reply that nobody was told of, or that is over"
            case note.ReplyDone(reply_id):
                del self.open[reply_id]
                self.done.add(reply_id)
            case note.ItemAdded(item):
                self.items.add(item.id)
            case note.ItemDeleted(item_id):
                self.deleted.add(item_id)
            case note.TurnTimed():
                assert min(output.endpoint, output.first_audio) >= 0
                assert output.first_token <= output.first_audio

    def state(self) -> None:
        controller = self.controller
        context, replies = controller.context, controller._replies
        assert len(self.running) <= max(controller.settings.parallel_tools, replies.tools.running)
        assert len(controller._listener.transcripts.late) <= 8
        if (speculation := replies.speculation) is not None:
            assert len(speculation.events) <= MOST_EVENTS
            assert speculation.seconds <= 2 * speculation.limit
            assert speculation.version == context.version
        if controller.state is note.State.SILENCE:
            assert not self.controller.playback.audible(self.now)
        assert all(start >= controller.keep_from for start in self.listening.values())
        ends_at = controller.playback.ends_at
        assert ends_at is None or ends_at > self.now

    def history(self) -> None:
        """The dearer checks, for the end of a conversation."""
        context = self.controller.context
        for item_id in self.items - self.deleted:
            assert context.get(item_id).id == item_id
        for item in context.items:
            if isinstance(item, MessageItem) and item.reply_id is not None:
                assert item.reply_id in self.open or item.reply_id in self.done, "discarded text in history"
                assert self.spoken.get(item.id, "").startswith(item.text or ""), "not a prefix of what was said"
            if isinstance(item, OutputItem):
                assert any(isinstance(i, CallItem) and i.call.id == item.call_id for i in context.items)
        check_messages(context.render())


def check_messages(messages: Sequence[Message]) -> None:
    """Every call is answered right behind its assistant message, every tool message answers one, once."""
    open_calls: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id in open_calls
            open_calls.remove(message.tool_call_id)
            continue
        assert not open_calls, "a call without a result"
        assert message.role == "assistant" or not message.tool_calls
        open_calls = [call.id for call in message.tool_calls]
    assert not open_calls


@dataclass
class Delays:
    """Seconds that each component takes. Audio comes in clauses, each `tts` after its text."""

    stt: float = 0.2
    ttft: float = 0.25
    tts: float = 0.05
    tool: float = 0.5
    summary: float = 1.0


@dataclass
class Said:
    """What the user says: `text` from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


Answer = list[str | ToolCall]


@dataclass
class World:
    """Runs a conversation. `answer` gives a reply's clauses and tool calls for a prompt.

    `obedient=False` lets the work on cancelled replies and transcripts go on, as real models do for a while: their
    completions arrive although nobody wants them.
    """

    said: list[Said]
    answer: Callable[[tuple[Message, ...]], Answer]
    settings: Settings = field(default_factory=Settings)
    delays: Delays = field(default_factory=Delays)
    run_tool: Callable[[ToolCall], str] = lambda call: "done"
    obedient: bool = True
    pace: float = 0.3
    """Seconds of audio per word."""

    def __post_init__(self) -> None:
        self.controller = Controller(self.settings, rate=RATE)
        self.watch = Watch(self.controller)
        self.now = 0.0
        self.log: list[tuple[float, note.Output]] = []
        self._heap: list[tuple[float, int, str, ev.Event]] = []
        self._numbers = itertools.count()
        self._windows = 0
        self._cancelled: set[str] = set()
        self._waiting: dict[str, list[tuple[float, ev.Event]]] = {}

    def at(self, time: float, event: ev.Event, owner: str = "") -> None:
        heapq.heappush(self._heap, (time, next(self._numbers), owner, event))

    def run(self, until: float) -> World:
        """Let time pass until `until`; may be called again to go on."""
        windows = int(until / WINDOW)
        for i in range(self._windows, windows):
            middle = (i + 0.5) * WINDOW
            voiced = any(part.start <= middle < part.end for part in self.said)
            self.at((i + 1) * WINDOW, ev.Window(0.95 if voiced else 0.02))
        self._windows = windows
        while True:
            wake = self.controller.wake_at
            if wake is not None and wake <= until and (not self._heap or wake < self._heap[0][0]):
                self._handle(ev.Tick(), max(wake, self.now))
            elif self._heap and self._heap[0][0] <= until:
                time, _, owner, event = heapq.heappop(self._heap)
                if owner in self._waiting:
                    self._waiting[owner].append((time, event))
                elif owner not in self._cancelled or not self.obedient:
                    self._handle(event, time)
            else:
                break
        self.watch.history()
        return self

    def _handle(self, event: ev.Event, time: float) -> None:
        self.now = time
        for output in self.watch.handle(event, time):
            self.log.append((time, output))
            self._carry_out(output, time)

    def _carry_out(self, output: note.Output, now: float) -> None:
        match output:
            case cmd.Transcribe(job=job, start=start, end=end) | cmd.Overhear(job=job, start=start, end=end):
                heard = [part.text for part in self.said if end is None or part.start < end]
                begun = [part.text for part in self.said if start is not None and part.end <= start]
                text = " ".join(heard[len(begun) :])
                self.at(now + self.delays.stt, ev.Transcribed(job, text, "en"), job)
            case cmd.CancelTranscribe(job) | cmd.CancelReply(job) | cmd.CancelTool(job):
                self._cancelled.add(job)
            case cmd.StartReply():
                self._reply(output, now)
            case cmd.PauseReply(reply_id):
                self._waiting.setdefault(reply_id, [])
            case cmd.ResumeReply(reply_id) | cmd.CommitReply(reply_id):
                for _, event in self._waiting.pop(reply_id, []):
                    self.at(now, event, reply_id)
            case cmd.RunTool(call):
                self.at(now + self.delays.tool, ev.ToolFinished(call.id, self.run_tool(call)), call.id)
            case cmd.Summarise(job):
                self.at(now + self.delays.summary, ev.Summarised(job, "They talked."))

    def _reply(self, start: cmd.StartReply, now: float) -> None:
        time = now + self.delays.ttft
        answer: Answer = [start.text] if start.text is not None else self.answer(start.messages)
        calls = False
        for part in answer:
            if isinstance(part, ToolCall):
                calls = True
                self.at(time, ev.ReplyCall(start.reply_id, part), start.reply_id)
                continue
            self.at(time, ev.ReplyText(start.reply_id, part), start.reply_id)
            if start.speak:
                time += self.delays.tts
                seconds = self.pace * len(part.split())
                self.at(time, ev.ReplySpeech(start.reply_id, speech(part, seconds)), start.reply_id)
        finish = Finish("tool_calls" if calls else "stop", 10, 0, 10)
        self.at(time, ev.ReplyFinished(start.reply_id, finish), start.reply_id)

    # ------------------------------------------------------------ looking at the result

    def all(self, kind: type) -> list:
        return [output for _, output in self.log if isinstance(output, kind)]

    def first(self, kind: type) -> tuple[float, note.Output]:
        return next((time, output) for time, output in self.log if isinstance(output, kind))

    def history(self) -> list[tuple[str, str]]:
        """Role and text of the history; the ids of calls are left out, so that runs can be compared."""
        rows = []
        for message in self.controller.context.render():
            calls = "".join(f" {call.name}{dict(call.arguments)}" for call in message.tool_calls)
            rows.append((message.role, re.sub(r"\s+", " ", message.content) + calls))
        return rows
