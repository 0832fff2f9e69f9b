"""How a reply reaches the world: the history, the client, the loudspeaker and the tools, one event at a time.

A live reply's events are published as they come, those of a committed speculation in one go. There is no other way
in, so both leave the same history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.context import CallItem, Context, Item, MessageItem, OutputItem
from stepaudio.agent.planning import Reply
from stepaudio.agent.playback import Playback
from stepaudio.agent.speculation import NO_USAGE, TurnClock
from stepaudio.agent.tools import ToolLedger, ToolSpec
from stepaudio.speech.roles import Finish, Speech, Tool, ToolCall


class Publisher:
    """Keeps the open replies; `out` takes what is to be done and told, in order."""

    def __init__(
        self,
        context: Context,
        playback: Playback,
        tools: ToolLedger,
        new_id: Callable[[str], str],
        out: Callable[[note.Output], None],
    ) -> None:
        self.context = context
        self.playback = playback
        self.tools = tools
        self.live: dict[str, Reply] = {}
        """The announced replies that are being made."""
        self.active: Reply | None = None
        """The one of them that goes into the history."""
        self.owing: dict[str, Reply] = {}
        """By tool call, the replies that wait for a result that is made here."""
        self.clock: TurnClock | None = None
        """The turn whose latency is to be reported with the next thing that the user gets."""
        self._new_id = new_id
        self._out = out

    def open(self, reply: Reply) -> None:
        """Announce a reply."""
        reply.opened = True
        self.live[reply.id] = reply
        if reply.options.in_history:
            self.active = reply
        start, options = reply.start, reply.options
        most = start.sampling.max_tokens
        self._out(note.ReplyStarted(reply.id, start.speak, options.in_history, options.metadata, start.voice, most))

    def cancel(self, reply: Reply, reason: str) -> None:
        """End a reply before its time."""
        self._out(cmd.CancelReply(reply.id))
        self._end(reply, "cancelled", reason)

    def silence(self, now: float) -> None:
        """Stop the playback; what was cut short ends where it was heard to."""
        cut = self.playback.stop(now)
        if cut or self.active is not None:
            self._out(cmd.StopPlayback())
        for item_id, seconds in cut:
            self.cut(item_id, seconds, "playback")

    def cut(self, item_id: str, seconds: float, by: Literal["client", "playback"]) -> None:
        """Let an item end where it was heard to."""
        text = self.playback.tracks[item_id].heard(seconds)
        for reply in self.live.values():
            if reply.message is not None and reply.message.id == item_id:
                reply.cut = True
                self._change(reply, replace(reply.message, text=text, seconds=seconds, status="incomplete"))
        if item_id in self.context:
            self.context.update(item_id, text=text, seconds=seconds, status="incomplete")
        self._out(note.ItemTruncated(item_id, seconds, text, by))

    def publish(self, reply: Reply, event: ev.ReplyEvent, now: float) -> None:
        """Let an event of a reply take effect."""
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

    def publish_result(self, event: ev.ToolFinished) -> None:
        """Put the result of a tool into the history, unless its call is gone or the client has answered it."""
        self.owing.pop(event.call_id, None)
        if self.context.awaits(event.call_id):
            item = OutputItem(self._new_id("item"), event.call_id, event.output, failed=event.failed)
            self._out(note.ItemAdded(item, self.context.add(item)))

    def run(self, calls: list[tuple[ToolCall, float]]) -> None:
        """Have tool calls run, each with its timeout."""
        for call, timeout in calls:
            self._out(cmd.RunTool(call, timeout))

    def _publish_text(self, reply: Reply, text: str, now: float) -> None:
        item = self._message(reply)
        item = replace(item, text=(item.text or "") + text)
        self._change(reply, item)
        self._out(note.ReplyTextAdded(reply.id, item.id, reply.items.index(item), text))
        if reply.start.speak:
            self.playback.write(item.id, item.text or "")
        else:
            self._time(reply, now)

    def _publish_speech(self, reply: Reply, speech: Speech, now: float) -> None:
        item = self._message(reply)
        self.playback.append(item.id, speech, now)
        self._change(reply, replace(item, seconds=self.playback.tracks[item.id].seconds))
        self._out(cmd.Play(reply.id, item.id, speech))
        self._time(reply, now)

    def _publish_call(self, reply: Reply, call: ToolCall, now: float) -> None:
        spec = reply.specs.get(call.name) or ToolSpec(Tool(call.name), client_side=not reply.options.in_history)
        server = None if spec.client_side else spec.server
        item = CallItem(self._new_id("item"), call, reply_id=reply.id, server=server)
        self._add(reply, item)
        self._out(note.ReplyItemDone(reply.id, item, len(reply.items) - 1))
        if spec.client_side:
            reply.client_calls = True
        else:
            reply.call_ids.append(call.id)
            self.owing[call.id] = reply
            self.run(self.tools.request(call, spec, now))

    def _message(self, reply: Reply) -> MessageItem:
        if reply.message is None:
            item = MessageItem(self._new_id("item"), "assistant", "", status="in_progress", reply_id=reply.id)
            reply.message = item
            self._add(reply, item)
        return reply.message

    def _add(self, reply: Reply, item: Item) -> None:
        previous = self.context.add(item) if reply.options.in_history else None
        reply.items.append(item)
        self._out(note.ReplyItemAdded(reply.id, item, len(reply.items) - 1, previous))

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
            self._out(note.ReplyItemDone(reply.id, final, reply.items.index(final)))
        reply.ended = True
        del self.live[reply.id]
        if self.active is reply:
            self.active = None
        items = tuple(reply.items)
        self._out(note.ReplyDone(reply.id, status, reason, items, usage, error, reply.options.metadata))

    def _time(self, reply: Reply, now: float) -> None:
        """Report the latency of the turn with the first thing that the user gets of its reply."""
        clock, self.clock = self.clock, None
        if clock is not None:
            zero = clock.speech_end
            first_text = now if reply.first_text is None else reply.first_text
            self._out(
                note.TurnTimed(
                    clock.item_id,
                    reply.id,
                    clock.decided - zero,
                    clock.transcribed - zero,
                    first_text - zero,
                    now - zero,
                    reply.start.speculative,
                )
            )
