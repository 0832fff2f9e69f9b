"""The conversation machine: Silence, UserSpeaking, UserPaused, BotReplying.

`Controller.handle(event, now)` takes one event and returns what follows from it. `Listener` has the user's side,
`Replies` the agent's; the controller hands the floor from one to the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.context import Context, Fold, MessageItem, estimate_tokens
from stepaudio.agent.listening import Listener
from stepaudio.agent.playback import Playback
from stepaudio.agent.replies import Replies
from stepaudio.agent.settings import Settings
from stepaudio.agent.speculation import Statistics


class Controller:
    """One conversation. Times are seconds on any monotonic clock; one that goes back is taken as the last one.

    `rate` is the agent's sample rate, `lag` the listener's buffer in seconds where it is known. `new_id(kind)` makes
    the ids of items ("item"), replies ("resp"), tool calls ("call") and jobs ("job").
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        rate: int = 24_000,
        lag: float = 0.0,
        new_id: Callable[[str], str] | None = None,
        count_tokens: Callable[[str], int] = estimate_tokens,
    ) -> None:
        self.settings = settings or Settings()
        self.state = note.State.SILENCE
        self.context = Context(self.settings.context, count_tokens=count_tokens)
        self.context.instructions = self.settings.instructions
        self.playback = Playback(rate, lag)
        numbers = itertools.count(1)
        self._new_id = new_id or (lambda kind: f"{kind}_{next(numbers)}")
        self._output: list[note.Output] = []
        self._replies = Replies(self.settings, self.context, self.playback, self._new_id, self._output.append)
        self._listener = Listener(
            self.settings, self.context, self.playback, self._replies, self._new_id, self._output.append
        )
        self._fold: tuple[str, Fold] | None = None
        self._summary: str | None = None
        self._budgeted = -1
        self._idle_since: float | None = None
        self._now = 0.0

    # ------------------------------------------------------------ for the session

    def handle(self, event: ev.Event, now: float) -> list[note.Output]:
        """Take an event; returns commands and notices in the order in which they are to be carried out and told.

        Raises RequestError when a request of the client does not fit; nothing has changed then.
        """
        self._now = now = max(now, self._now)
        self.playback.advance(now)
        self._dispatch(event, now)
        self._settle(now)
        output = list(self._output)
        self._output.clear()
        return output

    @property
    def wake_at(self) -> float | None:
        """When the next `Tick` is due at the latest, if nothing else happens before; None when nothing waits."""
        replies = self._replies
        times = (self.playback.ends_at, replies.tools.deadline, replies.filler_at, self._idle_at)
        return min((time for time in times if time is not None), default=None)

    @property
    def keep_from(self) -> float:
        """Seconds of input audio before which nothing will be asked for any more."""
        return self._listener.keep_from

    @property
    def position(self) -> float:
        """Seconds of input audio seen."""
        return self._listener.detector.position

    @property
    def statistics(self) -> Statistics:
        """What speculation did so far."""
        return self._replies.statistics

    # ------------------------------------------------------------ dispatch

    def _dispatch(self, event: ev.Event, now: float) -> None:
        replies, listener = self._replies, self._listener
        match event:
            case ev.Window(probability):
                listener.on_window(probability, now)
            case ev.ReplyText() | ev.ReplySpeech() | ev.ReplyCall() | ev.ReplyFinished() | ev.ReplyFailed():
                replies.on_event(event, now)
            case ev.ToolFinished() | ev.ToolFailed():
                replies.on_tool(event, now)
            case ev.Transcribed(job, text, language):
                listener.on_transcript(job, text.strip(), language, now)
            case ev.TranscribeFailed(job, message):
                listener.on_no_transcript(job, message, now)
            case ev.Scored(job, probability):
                listener.on_score(job, probability)
            case ev.Played(item_id, seconds):
                self.playback.report(item_id, seconds, now)
            case ev.Tick():
                self._on_tick(now)
            case ev.Load(pressure):
                replies.throttle.observe(pressure)
                if replies.throttle.closed:
                    replies.discard("throttled", now)
            case ev.Summarised(job, text):
                if self._fold is not None and self._fold[0] == job:
                    self._summary = text.strip()
            case ev.SummariseFailed(job):
                if self._fold is not None and self._fold[0] == job:
                    self._fold = None
            case _:
                self._on_request(event, now)

    def _on_request(self, event: ev.Event, now: float) -> None:
        replies, listener = self._replies, self._listener
        match event:
            case ev.Configure(settings):
                self._configure(settings, now)
            case ev.CommitInput():
                listener.commit_input(now)
            case ev.ClearInput():
                listener.clear_input(now)
            case ev.CreateItem(item, after):
                self.context.check_room(item)
                self._output.append(note.ItemAdded(item, self.context.add(item, after)))
                if isinstance(item, MessageItem) and item.text is None:
                    listener.hear_item(item.id, now)
            case ev.DeleteItem(item_id):
                for item in self.context.delete(item_id):
                    replies.forget(item, now)
                    self._output.append(note.ItemDeleted(item.id))
                listener.transcripts.drop(item_id)
            case ev.TruncateItem(item_id, seconds):
                replies.truncate(item_id, seconds, now)
            case ev.CreateReply(options):
                replies.request(options, now)
            case ev.StopReply(reply_id):
                replies.stop(reply_id)
            case ev.ClearOutput():
                replies.interrupt(now, "client_cancelled")
            case ev.Say(text):
                replies.announce(text)

    def _configure(self, settings: Settings, now: float) -> None:
        if settings != self.settings:
            self._replies.discard("history", now)
        self.settings = settings
        self.context.instructions = settings.instructions
        self.context.config = settings.context
        self._replies.configure(settings)
        self._listener.configure(settings, now)

    # ------------------------------------------------------------ the clock

    def _on_tick(self, now: float) -> None:
        self._replies.tick(now, self._listener.floor_free)
        if self._idle_at is not None and now >= self._idle_at:
            self._idle_since = None
            item = MessageItem(self._new_id("item"), "user", "")
            position = self._listener.detector.position
            previous = self.context.add(item)
            self._output += [
                note.InputTimeout(item.id, min(self._listener.input_start, position), position),
                note.InputCommitted(item.id, previous),
                note.ItemAdded(item, previous),
            ]
            self._replies.want()

    @property
    def _idle_at(self) -> float | None:
        timeout = self.settings.turn.idle_timeout if self.settings.turn else None
        return None if timeout is None or self._idle_since is None else self._idle_since + timeout

    # ------------------------------------------------------------ after every event

    def _settle(self, now: float) -> None:
        replies, listener = self._replies, self._listener
        if replies.speculation is not None and replies.speculation.version != self.context.version:
            replies.discard("history", now)
            listener.retry(now)
        if listener.floor_free:
            replies.pump()
        self._summarise()
        state = listener.state
        if state is note.State.SILENCE and replies.busy(now):
            state = note.State.BOT_REPLYING
        if state is not self.state:
            fell_silent = (self.state, state) == (note.State.BOT_REPLYING, note.State.SILENCE)
            self._idle_since = now if fell_silent else None
            self.state = state
            self._output.append(note.StateChanged(state))

    def _summarise(self) -> None:
        """Keep the history inside its budget. A summary waits while a speculation relies on the history as it is."""
        if self._fold is not None and self._summary is not None and self._replies.speculation is None:
            if self._summary:
                self.context.apply(self._fold[1], self._summary)
            self._fold = self._summary = None
        if self._fold is None and self._replies.active is None and self._budgeted != self.context.version:
            self._budgeted = self.context.version
            fold = self.context.fold()
            if fold is not None:
                self._fold = (self._new_id("job"), fold)
                self._output.append(cmd.Summarise(self._fold[0], fold.messages))
