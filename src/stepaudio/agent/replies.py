"""The agent's side of the conversation: replies from their first token to their last sample.

A reply's events are published one by one: into the history, to the client, to the loudspeaker, to the tools. A
speculation's events are held and published in one go when it is committed; `_publish` is the only way in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from stepaudio.agent import events as ev
from stepaudio.agent.context import CallItem, Context, Item, MessageItem, OutputItem
from stepaudio.agent.errors import RequestError
from stepaudio.agent.playback import Playback
from stepaudio.agent.settings import ReplyOptions, Settings
from stepaudio.agent.speculation import (
    NO_USAGE,
    Reason,
    Reply,
    Speculation,
    Statistics,
    Throttle,
    TurnClock,
)  # fmt: skip
from stepaudio.agent.tools import ToolLedger, ToolSpec, encode
from stepaudio.speech.roles import Finish, Message, Speech, Tool, ToolCall

_ROUNDING = 0.05
"""Seconds by which a client may truncate past the end: it counts in milliseconds and plays in frames."""


@dataclass(slots=True)
class _Wanted:
    """A reply to the history, owed as soon as the floor is free."""

    options: ReplyOptions = field(default_factory=ReplyOptions)
    by_client: bool = False


class Replies:
    """Starts, publishes, commits and ends replies, and runs their tools. `out` takes what follows, in order."""

    def __init__(
        self,
        settings: Settings,
        context: Context,
        playback: Playback,
        new_id: Callable[[str], str],
        out: Callable[[ev.Output], None],
    ) -> None:
        self.settings = settings
        self.context = context
        self.playback = playback
        self.tools = ToolLedger(settings.parallel_tools)
        self.throttle = Throttle(settings.speculation.calm)
        self.statistics = Statistics()
        self.speculation: Speculation | None = None
        self.active: Reply | None = None
        """The reply in history that is being made."""
        self.filler_at: float | None = None
        """When a filler is due because a tool keeps everybody waiting."""
        self._new_id = new_id
        self._out = out
        self._live: dict[str, Reply] = {}
        self._wanted: _Wanted | None = None
        self._announcement: str | None = None
        self._clock: TurnClock | None = None
        self._owing: dict[str, Reply] = {}
        self._rounds = 0
        self._fillers_said = 0

    def configure(self, settings: Settings) -> None:
        self.settings = settings
        self.tools.limit = settings.parallel_tools
        self.throttle.calm = settings.speculation.calm

    def busy(self, now: float) -> bool:
        """Whether the agent speaks, is making a reply, or owes one."""
        return self.active is not None or self._owes or self.playback.audible(now)

    @property
    def _owes(self) -> bool:
        return self._wanted is not None or self._announcement is not None

    # ------------------------------------------------------------ asking for replies

    def want(self, clock: TurnClock | None = None) -> None:
        """Owe a reply to the history as it will be when the floor is free; a request of the client's stands."""
        self._rounds, self._clock = 0, clock
        if self._wanted is None:
            self._wanted = _Wanted()

    def request(self, options: ReplyOptions) -> None:
        """The client asks for a reply; an out-of-band one starts at once."""
        if not options.in_history:
            self._begin(self._plan(options))
            return
        self._refuse_a_second()
        self._rounds, self._clock = 0, None
        self._wanted = _Wanted(options, by_client=True)

    def announce(self, text: str) -> None:
        """Speak a given text when the floor is free."""
        self._refuse_a_second()
        self._announcement = text

    def _refuse_a_second(self) -> None:
        if self.active is not None or self._owes:
            raise RequestError(
                "A reply is being made already: wait for its end or cancel it first.",
                code="conversation_already_has_active_response",
            )

    def pump(self) -> None:
        """The floor is free: start what is owed, one at a time."""
        if self.active is not None:
            return
        if self._announcement is not None:
            text, self._announcement = self._announcement, None
            self._begin(self._plan(ReplyOptions(), text=text))
        elif self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self._begin(self._plan(wanted.options, rounds=self._rounds))

    def _plan(
        self,
        options: ReplyOptions,
        extra: Sequence[Item] = (),
        *,
        rounds: int = 0,
        speculative: bool = False,
        text: str | None = None,
    ) -> Reply:
        session = self.settings
        offered = session.tools if options.tools is None else options.tools
        # An out-of-band reply leaves no call in history for a result to follow: only the client's tools.
        specs = {spec.tool.name: spec for spec in offered if options.in_history or spec.client_side}
        messages: list[Message] = []
        if options.input is not None:
            messages = self.context.render_items(options.input, instructions=options.instructions)
        elif text is None:
            messages = self.context.render(extra, instructions=options.instructions)
        choice = session.tool_choice if options.tool_choice is None else options.tool_choice
        start = ev.StartReply(
            reply_id=self._new_id("resp"),
            messages=tuple(messages),
            tools=tuple(spec.tool for spec in specs.values()),
            tool_choice="none" if rounds >= session.tool_rounds else choice,
            sampling=options.sampling or session.sampling,
            speak=session.speak if options.speak is None else options.speak,
            voice=options.voice or session.voice,
            speed=session.speed if options.speed is None else options.speed,
            speculative=speculative,
            text=text,
        )
        return Reply(start, options, specs)

    def _begin(self, reply: Reply) -> None:
        self._out(reply.start)
        self._open(reply)

    def _open(self, reply: Reply) -> None:
        reply.opened = True
        self._live[reply.id] = reply
        if reply.options.in_history:
            self.active, self.filler_at = reply, None
        self._out(ev.ReplyStarted(reply.id, reply.start.speak, reply.options.in_history, reply.options.metadata))

    # ------------------------------------------------------------ events of replies and tools

    def on_event(self, event: ev.ReplyEvent, now: float) -> None:
        """An event of a reply in the making. One of a reply that is not wanted any more is ignored."""
        speculation = self.speculation
        held = speculation is not None and speculation.reply.id == event.reply_id and not speculation.complete
        reply = speculation.reply if speculation and held else self._live.get(event.reply_id)
        if reply is None:
            return
        if isinstance(event, ev.ReplyCall):
            event = ev.ReplyCall(event.reply_id, replace(event.call, id=self._new_id("call")))
        elif isinstance(event, ev.ReplyText) and reply.first_text is None:
            reply.first_text = now
        if speculation and held:
            self._hold(speculation, event, now)
        else:
            self._publish(reply, event, now)
            self._follow(reply, now)

    def on_tool(self, event: ev.ToolFinished | ev.ToolFailed, now: float) -> None:
        """A result. The first one counts; a failure is told to the model."""
        if isinstance(event, ev.ToolFailed):
            event = ev.ToolFinished(event.call_id, encode({"error": event.message}))
        if not self.tools.settle(event.call_id):
            return
        self._run(self.tools.start(now))
        if self.speculation and event.call_id in self.speculation.call_ids:
            self.speculation.hold(event, self.playback.rate)
            self._go_on(self.speculation)
        else:
            reply = self._owing[event.call_id]
            self._publish_result(event)
            self._follow(reply, now)

    def tick(self, now: float, floor_free: bool) -> None:
        """Time out tools; say a filler when one keeps everybody waiting."""
        for call_id in self.tools.expired(now):
            self._out(ev.CancelTool(call_id))
            self.on_tool(ev.ToolFailed(call_id, "The tool did not answer in time."), now)
        if self.filler_at is None or now < self.filler_at:
            return
        self.filler_at = None
        phrases = self.settings.fillers
        if phrases and floor_free and not self.busy(now):
            self._begin(self._plan(ReplyOptions(), text=phrases[self._fillers_said % len(phrases)]))
            self._fillers_said += 1

    # ------------------------------------------------------------ speculation

    @contextmanager
    def own_change(self) -> Iterator[None]:
        """A change of the history that the speculation has reckoned with: the user's turn taking its place in it."""
        speculation = self.speculation
        current = speculation is not None and speculation.version == self.context.version
        yield
        if speculation is not None and current:
            speculation.version = self.context.version

    def speculate(self, user: MessageItem, now: float) -> None:
        """Prepare a reply to a turn that may be over."""
        reply = self._plan(ReplyOptions(), (user,), speculative=True)
        limit = self.settings.speculation.seconds
        self.speculation = Speculation(reply, user, self.context.version, now, limit)
        self.statistics.started += 1
        self._out(reply.start)

    def suspend(self) -> None:
        """The user speaks again: keep what there is, do no more."""
        if self.speculation is not None:
            self.speculation.suspended = True
            self._wait(self.speculation)

    def keep(self) -> None:
        """What the user said since changes nothing: go on."""
        speculation = self.speculation
        if speculation is None or not speculation.suspended:
            return
        speculation.suspended = False
        if speculation.waiting and not speculation.full:
            speculation.waiting = False
            self._out(ev.ResumeReply(speculation.reply.id))
        self._go_on(speculation)

    def discard(self, reason: Reason, now: float) -> None:
        speculation, self.speculation = self.speculation, None
        if speculation is None:
            return
        if not speculation.complete:
            self._out(ev.CancelReply(speculation.reply.id))
        self._drop_calls(speculation.call_ids, now)
        self.statistics.discarded[reason] += 1
        self.statistics.wasted_tokens += speculation.tokens
        self.statistics.wasted_seconds += speculation.seconds
        lead = now - speculation.started
        self._out(ev.Speculated(False, reason, lead, speculation.tokens, speculation.seconds))

    def commit(self, clock: TurnClock, now: float) -> None:
        """The turn is over and the speculation answers it: publish all of it now."""
        speculation, self.speculation = self.speculation, None
        assert speculation is not None
        if not speculation.complete:
            self._out(ev.CommitReply(speculation.reply.id))
        lead = now - speculation.started
        self.statistics.committed += 1
        self.statistics.lead += lead
        self._out(ev.Speculated(True, "", lead, speculation.tokens, speculation.seconds))
        self._wanted, self._clock, self._rounds = None, clock, len(speculation.replies) - 1
        replies = {reply.id: reply for reply in speculation.replies}
        for event in speculation.events:
            if isinstance(event, ev.ToolFinished):
                self._publish_result(event)
                continue
            reply = replies[event.reply_id]
            if not reply.opened:
                self._open(reply)
            self._publish(reply, event, now)
        if not speculation.reply.opened:
            self._open(speculation.reply)
        self._follow(speculation.reply, now)

    def _hold(self, speculation: Speculation, event: ev.ReplyEvent, now: float) -> None:
        if isinstance(event, ev.ReplyFailed):
            self.discard("failed", now)
            return
        speculation.hold(event, self.playback.rate)
        if speculation.overflowed:
            self.discard("overflow", now)
            return
        if isinstance(event, ev.ReplyCall):
            spec = speculation.reply.specs.get(event.call.name)
            if spec is not None and spec.tool.read_only:
                self._run(self.tools.request(event.call, spec, now))
        if speculation.full:
            self._wait(speculation)
        self._go_on(speculation)

    def _wait(self, speculation: Speculation) -> None:
        if not speculation.waiting and not speculation.complete:
            speculation.waiting = True
            self._out(ev.PauseReply(speculation.reply.id))

    def _go_on(self, speculation: Speculation) -> None:
        """Make the next reply inside the speculation when the last one's tools have answered."""
        rounds = len(speculation.replies)
        may = not speculation.suspended and not speculation.full and rounds <= self.settings.tool_rounds
        if may and speculation.due:
            reply = self._plan(ReplyOptions(), speculation.past(), rounds=rounds, speculative=True)
            speculation.follow(reply)
            self._out(reply.start)

    # ------------------------------------------------------------ stopping

    def interrupt(self, now: float, reason: str = "turn_detected") -> bool:
        """Be silent and drop what was being made; history keeps what was heard.

        Returns whether a reply was owed of which nothing was heard: if the interruption comes to nothing, it still
        is.
        """
        owed = self._wanted is not None
        self._cut_playback(now)
        for reply in list(self._live.values()):
            if reply.options.in_history or reply.start.speak:
                self._cancel(reply, reason)
                said = reply.message is not None and bool(reply.message.text)
                owed |= reply.options.in_history and (not said or bool(reply.call_ids))
        if self._wanted is not None and not self._wanted.by_client:
            self._wanted = None
        self._announcement = self._clock = self.filler_at = None
        return owed

    def stop(self, reply_id: str | None) -> None:
        """The client cancels a reply; what was sent of its audio plays on until the client says otherwise."""
        reply = self.active if reply_id is None else self._live.get(reply_id)
        if reply is not None:
            self._cancel(reply, "client_cancelled")
        elif reply_id is None and self._owes:
            self._wanted = self._announcement = None
        else:
            raise RequestError("There is no reply to cancel.", code="response_cancel_not_active", param="response_id")

    def truncate(self, item_id: str, seconds: float, now: float) -> None:
        """The client stopped playing an item after `seconds`."""
        item = self.context.get(item_id)
        track = self.playback.tracks.get(item_id)
        if not isinstance(item, MessageItem) or item.role != "assistant" or track is None:
            raise RequestError(
                "Only the agent's spoken messages can be truncated.",
                code="item_truncate_invalid_item_id",
                param="item_id",
            )
        if not 0 <= seconds <= track.seconds + _ROUNDING:
            raise RequestError(
                f"This item has {track.seconds * 1000:.0f} ms of audio: audio_end_ms must lie inside it.",
                code="item_truncate_invalid_audio_end_ms",
                param="audio_end_ms",
            )
        self.playback.drop(item_id, now)
        self._cut(item_id, seconds, "client")
        if item.reply_id in self._live:
            self._cancel(self._live[item.reply_id], "client_cancelled")

    def forget(self, item: Item, now: float) -> None:
        """An item was deleted: nothing about it is wanted any more."""
        for reply in list(self._live.values()):
            if reply.message is not None and reply.message.id == item.id:
                self._cancel(reply, "client_cancelled")
        self.playback.drop(item.id, now)
        self.playback.tracks.pop(item.id, None)
        if isinstance(item, CallItem):
            self._owing.pop(item.call.id, None)
            self._drop_calls({item.call.id}, now)

    def _cancel(self, reply: Reply, reason: str) -> None:
        self._out(ev.CancelReply(reply.id))
        self._end(reply, "cancelled", reason)

    def _drop_calls(self, call_ids: set[str], now: float) -> None:
        for call_id in self.tools.drop(call_ids):
            self._out(ev.CancelTool(call_id))
        self._run(self.tools.start(now))

    def _cut_playback(self, now: float) -> None:
        cut = self.playback.stop(now)
        if cut or self.active is not None:
            self._out(ev.StopPlayback())
        for item_id, seconds in cut:
            self._cut(item_id, seconds, "playback")

    def _cut(self, item_id: str, seconds: float, by: Literal["client", "playback"]) -> None:
        """Let an item end where it was heard to."""
        text = self.playback.tracks[item_id].heard(seconds)
        for reply in self._live.values():
            if reply.message is not None and reply.message.id == item_id:
                reply.cut = True
                self._change(reply, replace(reply.message, text=text, seconds=seconds, status="incomplete"))
        if item_id in self.context:
            self.context.update(item_id, text=text, seconds=seconds, status="incomplete")
        self._out(ev.ItemTruncated(item_id, seconds, text, by))

    # ------------------------------------------------------------ publishing

    def _publish(self, reply: Reply, event: ev.ReplyEvent, now: float) -> None:
        match event:
            case ev.ReplyText(_, text):
                self._publish_text(reply, text, now)
            case ev.ReplySpeech(_, speech):
                self._publish_speech(reply, speech, now)
            case ev.ReplyCall(_, call):
                self._publish_call(reply, call, now)
            case ev.ReplyFailed(_, message, code):
                self._end(reply, "failed", code, error=message)
            case ev.ReplyFinished(_, Finish("length") as finish):
                self._end(reply, "incomplete", "max_output_tokens", finish)
            case ev.ReplyFinished(_, finish):
                self._end(reply, "completed", "", finish)

    def _publish_text(self, reply: Reply, text: str, now: float) -> None:
        item = self._message(reply)
        item = replace(item, text=(item.text or "") + text)
        self._change(reply, item)
        self._out(ev.ReplyTextAdded(reply.id, item.id, reply.items.index(item), text))
        if reply.start.speak:
            self.playback.write(item.id, item.text or "")
        else:
            self._time(reply, now)

    def _publish_speech(self, reply: Reply, speech: Speech, now: float) -> None:
        item = self._message(reply)
        self.playback.append(item.id, speech, now)
        self._change(reply, replace(item, seconds=self.playback.tracks[item.id].seconds))
        self._out(ev.Play(reply.id, item.id, speech))
        self._time(reply, now)

    def _publish_call(self, reply: Reply, call: ToolCall, now: float) -> None:
        item = CallItem(self._new_id("item"), call, reply_id=reply.id)
        self._add(reply, item)
        self._out(ev.ReplyItemDone(reply.id, item, len(reply.items) - 1))
        spec = reply.specs.get(call.name) or ToolSpec(Tool(call.name), client_side=not reply.options.in_history)
        if spec.client_side:
            reply.client_calls = True
        else:
            reply.call_ids.append(call.id)
            self._owing[call.id] = reply
            self._run(self.tools.request(call, spec, now))

    def _publish_result(self, event: ev.ToolFinished) -> None:
        self._owing.pop(event.call_id, None)
        if self.context.awaits(event.call_id):
            item = OutputItem(self._new_id("item"), event.call_id, event.output)
            self._out(ev.ItemAdded(item, self.context.add(item)))

    def _message(self, reply: Reply) -> MessageItem:
        if reply.message is None:
            item = MessageItem(self._new_id("item"), "assistant", "", status="in_progress", reply_id=reply.id)
            reply.message = item
            self._add(reply, item)
        return reply.message

    def _add(self, reply: Reply, item: Item) -> None:
        previous = self.context.add(item) if reply.options.in_history else None
        reply.items.append(item)
        self._out(ev.ReplyItemAdded(reply.id, item, len(reply.items) - 1, previous))

    def _change(self, reply: Reply, item: MessageItem) -> None:
        """Replace the reply's message, in the history too if it is there."""
        assert reply.message is not None
        reply.items[reply.items.index(reply.message)] = reply.message = item
        if item.id in self.context:
            self.context.update(item.id, text=item.text, status=item.status, seconds=item.seconds)

    def _end(
        self,
        reply: Reply,
        status: Literal["completed", "cancelled", "failed", "incomplete"],
        reason: str,
        usage: Finish = NO_USAGE,
        error: str = "",
    ) -> None:
        """Close the reply. Of one that broke off, history keeps the words whose audio was sent."""
        if (item := reply.message) is not None:
            if reply.start.speak and status in ("cancelled", "failed") and not reply.cut:
                track = self.playback.tracks.get(item.id)
                item = replace(item, text=track.heard(track.seconds) if track else "")
            final = replace(item, status="completed" if status == "completed" else "incomplete")
            self._change(reply, final)
            self._out(ev.ReplyItemDone(reply.id, final, reply.items.index(final)))
        reply.ended = True
        del self._live[reply.id]
        if self.active is reply:
            self.active = None
        items = tuple(reply.items)
        self._out(ev.ReplyDone(reply.id, status, reason, items, usage, error, reply.options.metadata))

    def _follow(self, reply: Reply, now: float) -> None:
        """Owe the next reply when this one is over and has the results that it asked for.

        When some calls are the client's, it is for the client to ask.
        """
        if not reply.ended or not reply.call_ids:
            return
        if any(call_id in self._owing for call_id in reply.call_ids):
            if self.settings.fillers and reply.message is None and self.filler_at is None:
                self.filler_at = now + self.settings.filler_after
        elif not reply.client_calls:
            self.filler_at = None
            if self._wanted is None and self._rounds < self.settings.tool_rounds:
                self._wanted = _Wanted()
                self._rounds += 1

    def _run(self, calls: list[tuple[ToolCall, float]]) -> None:
        for call, timeout in calls:
            self._out(ev.RunTool(call, timeout))

    def _time(self, reply: Reply, now: float) -> None:
        """Report the latency of the turn with the first thing that the user gets of its reply."""
        clock, self._clock = self._clock, None
        if clock is not None:
            zero = clock.speech_end
            first_text = now if reply.first_text is None else reply.first_text
            self._out(
                ev.TurnTimed(
                    clock.item_id,
                    reply.id,
                    clock.decided - zero,
                    clock.transcribed - zero,
                    first_text - zero,
                    now - zero,
                    reply.start.speculative,
                )
            )
