"""The agent's side of the conversation: which replies are made, held, committed, stopped and followed by others.

What a reply does to the world is in `publishing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.context import CallItem, Context, Item, MessageItem
from stepaudio.agent.errors import RequestError
from stepaudio.agent.planning import Planner, Reply
from stepaudio.agent.playback import Playback
from stepaudio.agent.publishing import Publisher
from stepaudio.agent.settings import ReplyOptions, Settings
from stepaudio.agent.speculation import Reason, Speculation, Statistics, Throttle, TurnClock
from stepaudio.agent.tools import ToolLedger, encode

_MOST_ASIDE = 8
"""Out-of-band replies of a session at once: everybody else's wait behind them."""
_ROUNDING = 0.05
"""Seconds by which a client may truncate past the end: it counts in milliseconds and plays in frames."""


@dataclass(slots=True)
class _Wanted:
    """A reply to the history, owed as soon as the floor is free."""

    options: ReplyOptions = field(default_factory=ReplyOptions)
    by_client: bool = False


class Replies:
    """Starts, holds, commits and stops replies. `out` takes what is to be done and told, in order."""

    def __init__(
        self,
        settings: Settings,
        context: Context,
        playback: Playback,
        new_id: Callable[[str], str],
        out: Callable[[note.Output], None],
    ) -> None:
        self.settings = settings
        self.context = context
        self.playback = playback
        self.tools = ToolLedger(settings.parallel_tools)
        self.throttle = Throttle(settings.speculation.calm)
        self.statistics = Statistics()
        self.speculation: Speculation | None = None
        self.filler_at: float | None = None
        """When a filler is due because a tool keeps everybody waiting."""
        self._planner = Planner(settings, context, new_id)
        self._publisher = Publisher(context, playback, self.tools, new_id, out)
        self._new_id = new_id
        self._out = out
        self._wanted: _Wanted | None = None
        self._announcement: str | None = None
        self._rounds = 0
        self._fillers_said = 0

    def configure(self, settings: Settings) -> None:
        self.settings = self._planner.settings = settings
        self.tools.limit = settings.parallel_tools
        self.throttle.calm = settings.speculation.calm

    @property
    def active(self) -> Reply | None:
        """The reply in the history that is being made."""
        return self._publisher.active

    def busy(self, now: float) -> bool:
        """Whether the agent speaks, is making a reply, or owes one."""
        return self.active is not None or self._owes or self.playback.audible(now)

    @property
    def asked(self) -> bool:
        """Whether the next reply is one that the client has asked for: no other is to be prepared."""
        return self._wanted is not None and self._wanted.by_client

    @property
    def _owes(self) -> bool:
        return self._wanted is not None or self._announcement is not None

    # ------------------------------------------------------------ asking for replies

    def want(self, clock: TurnClock | None = None) -> None:
        """Owe a reply to the history as it will be when the floor is free; a request of the client's stands."""
        self._rounds, self._publisher.clock = 0, clock
        if self._wanted is None:
            self._wanted = _Wanted()

    def request(self, options: ReplyOptions, now: float) -> None:
        """The client asks for a reply; an out-of-band one starts at once."""
        if not options.in_history:
            if sum(not reply.options.in_history for reply in self._publisher.live.values()) >= _MOST_ASIDE:
                raise RequestError(
                    f"{_MOST_ASIDE} replies outside the conversation are being made already: wait for one to end.",
                    code="too_many_responses",
                )
            self._begin(self._planner.plan(options))
            return
        self._refuse_a_second()
        self._rounds, self._publisher.clock = 0, None
        self._wanted = _Wanted(options, by_client=True)
        self.discard("history", now)

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
            self._begin(self._planner.plan(ReplyOptions(), text=text))
        elif self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self._begin(self._planner.plan(wanted.options, rounds=self._rounds))

    def _begin(self, reply: Reply) -> None:
        self._out(reply.start)
        self._open(reply)

    def _open(self, reply: Reply) -> None:
        if reply.options.in_history:
            self.filler_at = None
        self._publisher.open(reply)

    # ------------------------------------------------------------ events of replies and tools

    def on_event(self, event: ev.ReplyEvent, now: float) -> None:
        """An event of a reply in the making. One of a reply that is not wanted any more is ignored."""
        speculation = self.speculation
        held = speculation is not None and speculation.reply.id == event.reply_id and not speculation.complete
        reply = speculation.reply if speculation and held else self._publisher.live.get(event.reply_id)
        if reply is None:
            return
        if isinstance(event, ev.ReplyCall):
            event = ev.ReplyCall(event.reply_id, replace(event.call, id=self._new_id("call")))
        elif isinstance(event, ev.ReplyText) and reply.first_text is None:
            reply.first_text = now
        if speculation and held:
            self._hold(speculation, event, now)
        else:
            self._publisher.publish(reply, event, now)
            self._follow(reply, now)

    def on_tool(self, event: ev.ToolFinished | ev.ToolFailed, now: float) -> None:
        """A result. The first one counts; a failure is told to the model."""
        if isinstance(event, ev.ToolFailed):
            event = ev.ToolFinished(event.call_id, encode({"error": event.message}), failed=True)
        if not self.tools.settle(event.call_id):
            return
        self._publisher.run(self.tools.start(now))
        if self.speculation and event.call_id in self.speculation.call_ids:
            self.speculation.hold(event, self.playback.rate)
            self._go_on(self.speculation)
        else:
            reply = self._publisher.owing[event.call_id]
            self._publisher.publish_result(event)
            self._follow(reply, now)

    def tick(self, now: float, floor_free: bool) -> None:
        """Time out tools; say a filler when one keeps everybody waiting."""
        for call_id in self.tools.expired(now):
            self._out(cmd.CancelTool(call_id))
            self.on_tool(ev.ToolFailed(call_id, "The tool did not answer in time."), now)
        if self.filler_at is None or now < self.filler_at:
            return
        self.filler_at = None
        phrases = self.settings.fillers
        if phrases and floor_free and not self.busy(now):
            self._begin(self._planner.plan(ReplyOptions(), text=phrases[self._fillers_said % len(phrases)]))
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
        reply = self._planner.plan(ReplyOptions(), (user,), speculative=True)
        limit = self.settings.speculation.seconds
        self.speculation = Speculation(reply, user, self.context.version, now, limit)
        self.statistics.started += 1
        self._out(reply.start)

    def warm(self, words: str, job: str | None = None) -> None:
        """The user speaks: have the responder read what it will have to read in any case, and say with `job` whether
        the sentence is over."""
        if self.active is None and not self._owes and (job or self.speculation is None) and self.throttle.allows(1.0):
            tools = () if self.settings.tool_choice == "none" else self.settings.tools
            self._out(cmd.Warm(tuple(self.context.render()), tuple(spec.tool for spec in tools), words, job))

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
            self._out(cmd.ResumeReply(speculation.reply.id))
        self._go_on(speculation)

    def discard(self, reason: Reason, now: float) -> None:
        speculation, self.speculation = self.speculation, None
        if speculation is None:
            return
        if not speculation.complete:
            self._out(cmd.CancelReply(speculation.reply.id))
        self._drop_calls(speculation.call_ids, now)
        self.statistics.discarded[reason] += 1
        self.statistics.wasted_tokens += speculation.tokens
        self.statistics.wasted_seconds += speculation.seconds
        lead = now - speculation.started
        self._out(note.Speculated(False, reason, lead, speculation.tokens, speculation.seconds))

    def commit(self, clock: TurnClock, now: float) -> None:
        """The turn is over and the speculation answers it: publish all of it now."""
        speculation, self.speculation = self.speculation, None
        assert speculation is not None
        if not speculation.complete:
            self._out(cmd.CommitReply(speculation.reply.id))
        lead = now - speculation.started
        self.statistics.committed += 1
        self.statistics.lead += lead
        self._out(note.Speculated(True, "", lead, speculation.tokens, speculation.seconds))
        self._wanted, self._publisher.clock, self._rounds = None, clock, len(speculation.replies) - 1
        replies = {reply.id: reply for reply in speculation.replies}
        for event in speculation.events:
            if isinstance(event, ev.ToolFinished):
                self._publisher.publish_result(event)
                continue
            reply = replies[event.reply_id]
            if not reply.opened:
                self._open(reply)
            self._publisher.publish(reply, event, now)
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
                self._publisher.run(self.tools.request(event.call, spec, now))
        if speculation.full:
            self._wait(speculation)
        self._go_on(speculation)

    def _wait(self, speculation: Speculation) -> None:
        if not speculation.waiting and not speculation.complete:
            speculation.waiting = True
            self._out(cmd.PauseReply(speculation.reply.id))

    def _go_on(self, speculation: Speculation) -> None:
        """Make the next reply inside the speculation when the last one's tools have answered."""
        rounds = len(speculation.replies)
        may = not speculation.suspended and not speculation.full and rounds <= self.settings.tool_rounds
        if may and speculation.due:
            reply = self._planner.plan(ReplyOptions(), speculation.past(), rounds=rounds, speculative=True)
            speculation.follow(reply)
            self._out(reply.start)

    # ------------------------------------------------------------ stopping

    def interrupt(self, now: float, reason: str = "turn_detected") -> bool:
        """Be silent and drop what was being made; history keeps what was heard.

        Returns whether a reply was owed of which nothing was heard: if the interruption comes to nothing, it still
        is.
        """
        owed = self._wanted is not None
        self._publisher.silence(now)
        for reply in list(self._publisher.live.values()):
            if reply.options.in_history or reply.start.speak:
                self._publisher.cancel(reply, reason)
                said = reply.message is not None and bool(reply.message.text)
                owed |= reply.options.in_history and (not said or bool(reply.call_ids))
        if not self.asked:
            self._wanted = None
        self._announcement = self._publisher.clock = self.filler_at = None
        return owed

    def stop(self, reply_id: str | None) -> None:
        """The client cancels a reply; what was sent of its audio plays on until the client says otherwise."""
        reply = self.active if reply_id is None else self._publisher.live.get(reply_id)
        if reply is not None:
            self._publisher.cancel(reply, "client_cancelled")
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
        self._publisher.cut(item_id, seconds, "client")
        if item.reply_id in self._publisher.live:
            self._publisher.cancel(self._publisher.live[item.reply_id], "client_cancelled")

    def forget(self, item: Item, now: float) -> None:
        """An item was deleted: nothing about it is wanted any more."""
        for reply in list(self._publisher.live.values()):
            if reply.message is not None and reply.message.id == item.id:
                self._publisher.cancel(reply, "client_cancelled")
        self.playback.drop(item.id, now)
        self.playback.tracks.pop(item.id, None)
        if isinstance(item, CallItem):
            self._publisher.owing.pop(item.call.id, None)
            self._drop_calls({item.call.id}, now)

    def _drop_calls(self, call_ids: set[str], now: float) -> None:
        for call_id in self.tools.drop(call_ids):
            self._out(cmd.CancelTool(call_id))
        self._publisher.run(self.tools.start(now))

    def _follow(self, reply: Reply, now: float) -> None:
        """Owe the next reply when this one is over and has the results that it asked for.

        When some calls are the client's, it is for the client to ask.
        """
        if not reply.ended or not reply.call_ids:
            return
        if any(call_id in self._publisher.owing for call_id in reply.call_ids):
            if self.settings.fillers and reply.message is None and self.filler_at is None:
                self.filler_at = now + self.settings.filler_after
        elif not reply.client_calls:
            self.filler_at = None
            if self._wanted is None and self._rounds < self.settings.tool_rounds:
                self._wanted = _Wanted()
                self._rounds += 1
