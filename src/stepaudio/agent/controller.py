"""The conversation machine: Silence, UserSpeaking, UserPaused, BotReplying.

`Controller.handle(event, now)` takes one event and returns what follows from it. It owns the user's side (turns,
transcripts, barge-in, backchannels) and the floor; `Replies` owns the agent's side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from stepaudio.agent import events as ev
from stepaudio.agent.context import Context, Fold, MessageItem, estimate_tokens
from stepaudio.agent.errors import RequestError
from stepaudio.agent.playback import Playback
from stepaudio.agent.replies import Replies
from stepaudio.agent.settings import Settings
from stepaudio.agent.speculation import Statistics, TurnClock
from stepaudio.agent.turn import WINDOW, Ended, Paused, Resumed, Started, TurnConfig, TurnDetector, combine
from stepaudio.agent.wording import TextTurnScorer, is_backchannel, same_request

_SHORTEST_COMMIT = 0.1
_MOST_PENDING = 8
"""Turns that may wait for their transcripts; beyond that the transcriber has failed the oldest."""


@dataclass(slots=True)
class _Turn:
    """A stretch of user speech: one item to be."""

    item_id: str
    start: float
    end: float
    confirmed: bool = False
    over: bool = False
    transcript: str | None = None
    """Of everything up to `end`; None while it is not known."""
    language: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    text_job: str | None = None
    score_job: str | None = None
    attempts: int = 0
    voiced_before: float = 0.0
    """Speech of this turn before it last resumed."""
    owed: bool = False
    """Whether it interrupted a reply of which nothing was heard."""
    reply: bool = False
    """Whether its end asks for a reply."""
    spoke_until: float = 0.0
    """Wall time of its last speech."""
    decided: float = 0.0
    """Wall time of the decision that it is over."""
    transcribed: float = 0.0
    """Wall time when its transcript was known."""


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
        self.state = ev.State.SILENCE
        self.context = Context(self.settings.context, count_tokens=count_tokens)
        self.context.instructions = self.settings.instructions
        self.playback = Playback(rate, lag)
        numbers = itertools.count(1)
        self._new_id = new_id or (lambda kind: f"{kind}_{next(numbers)}")
        self._output: list[ev.Output] = []
        self._replies = Replies(self.settings, self.context, self.playback, self._new_id, self._output.append)
        self._detector = TurnDetector(self.settings.turn)
        self._scorer = TextTurnScorer()
        self._input_start = 0.0
        self._turn: _Turn | None = None
        self._pending: dict[str, _Turn] = {}
        self._fold: tuple[str, Fold] | None = None
        self._summary: str | None = None
        self._budgeted = -1
        self._idle_since: float | None = None
        self._now = 0.0

    # ------------------------------------------------------------ for the session

    def handle(self, event: ev.Event, now: float) -> list[ev.Output]:
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
        starts = [turn.start for turn in self._pending.values()]
        if self._turn is not None:
            starts.append(self._turn.start)
        elif self.settings.turn is None:
            starts.append(self._input_start)
        else:
            ahead = self.settings.turn.prefix_padding + self.settings.turn.min_speech + WINDOW
            starts.append(max(self._input_start, self._detector.position - ahead))
        return min(starts)

    @property
    def position(self) -> float:
        """Seconds of input audio seen."""
        return self._detector.position

    @property
    def statistics(self) -> Statistics:
        """What speculation did so far."""
        return self._replies.statistics

    # ------------------------------------------------------------ dispatch

    def _dispatch(self, event: ev.Event, now: float) -> None:
        replies = self._replies
        match event:
            case ev.Window(probability):
                self._on_window(probability, now)
            case ev.ReplyText() | ev.ReplySpeech() | ev.ReplyCall() | ev.ReplyFinished() | ev.ReplyFailed():
                replies.on_event(event, now)
            case ev.ToolFinished() | ev.ToolFailed():
                replies.on_tool(event, now)
            case ev.Transcribed(job, text, language):
                self._on_transcript(job, text.strip(), language, now)
            case ev.TranscribeFailed(job, message):
                self._on_no_transcript(job, message, now)
            case ev.Scored(job, probability):
                if self._turn is not None and self._turn.score_job == job:
                    self._score(self._turn, "acoustic", probability)
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
        replies = self._replies
        match event:
            case ev.Configure(settings):
                self._configure(settings, now)
            case ev.CommitInput():
                self._commit_input(now)
            case ev.ClearInput():
                self._clear_input(now)
            case ev.CreateItem(item, after):
                self._output.append(ev.ItemAdded(item, self.context.add(item, after)))
                if isinstance(item, MessageItem) and item.text is None:
                    self._await_transcript(_Turn(item.id, self.position, self.position), now, own_audio=True)
            case ev.DeleteItem(item_id):
                for item in self.context.delete(item_id):
                    replies.forget(item, now)
                    self._output.append(ev.ItemDeleted(item.id))
                turn = self._pending.pop(item_id, None)
                if turn is not None:
                    self._forget_text(turn)
            case ev.TruncateItem(item_id, seconds):
                replies.truncate(item_id, seconds, now)
            case ev.CreateReply(options):
                replies.request(options)
            case ev.StopReply(reply_id):
                replies.stop(reply_id)
            case ev.ClearOutput():
                replies.interrupt(now, "client_cancelled")
            case ev.Say(text):
                replies.announce(text)

    def _configure(self, settings: Settings, now: float) -> None:
        if settings.turn != self.settings.turn:
            self._abandon_turn(now)
            self._detector.config = settings.turn or TurnConfig()
            self._input_start = self._detector.position
        elif settings != self.settings:
            self._replies.discard("history", now)
        self.settings = settings
        self.context.instructions = settings.instructions
        self.context.config = settings.context
        self._replies.configure(settings)

    # ------------------------------------------------------------ the user's turn

    def _on_window(self, probability: float, now: float) -> None:
        detector = self._detector
        if self.settings.turn is None:
            detector.skip()
            return
        for event in detector.push(probability):
            match event:
                case Started(at):
                    self._on_started(at, now)
                case Paused(at):
                    self._on_paused(at, now)
                case Resumed(at):
                    self._on_resumed(at)
                case Ended(_, end):
                    self._on_ended(end, now)
        turn = self._turn
        if turn is None or detector.phase != "speaking":
            return
        if not turn.confirmed:
            if detector.voiced >= self.settings.turn.interrupt_after or not self.playback.audible(now):
                self._confirm(turn, now)
        elif detector.voiced - turn.voiced_before > self.settings.speculation.filler:
            speculation = self._replies.speculation
            if speculation is not None and speculation.suspended:
                self._replies.discard("resumed", now)

    def _on_started(self, at: float, now: float) -> None:
        assert self.settings.turn is not None
        if self._turn is not None:  # what looked like a backchannel is not decided yet, and goes on
            self._turn.over = False
            self._forget_text(self._turn)
            return
        start = max(self._input_start, at - self.settings.turn.prefix_padding)
        self._turn = _Turn(self._new_id("item"), start, at)
        if self.settings.turn.interrupt_after == 0 or not self.playback.audible(now):
            self._confirm(self._turn, now)

    def _confirm(self, turn: _Turn, now: float) -> None:
        """This is a turn, whatever the agent is doing."""
        assert self.settings.turn is not None
        turn.confirmed = True
        self._output.append(ev.SpeechStarted(turn.item_id, turn.start))
        if self.settings.turn.interrupt_response and self._replies.busy(now):
            turn.owed = self._replies.interrupt(now)

    def _on_paused(self, at: float, now: float) -> None:
        turn, config = self._turn, self.settings.turn
        assert turn is not None
        assert config is not None
        turn.end, turn.spoke_until = at, now - self._detector.silence
        if turn.confirmed:
            self._output.append(ev.SpeechPaused(turn.item_id, at))
        if config.adaptive or not turn.confirmed or self._may_speculate:
            self._ask_text(turn, final=False)
        if self.settings.acoustic:
            turn.score_job = self._new_id("job")
            self._output.append(ev.Score(turn.score_job, turn.start, self._detector.position))

    def _on_resumed(self, at: float) -> None:
        turn = self._turn
        assert turn is not None
        turn.voiced_before = self._detector.voiced
        self._forget_text(turn)
        self._replies.suspend()
        if turn.confirmed:
            self._output.append(ev.SpeechResumed(turn.item_id, at))

    def _on_ended(self, end: float, now: float) -> None:
        turn = self._turn
        assert turn is not None
        turn.end, turn.decided = end, now
        turn.spoke_until = now - (self._detector.position - end)
        if turn.confirmed:
            self._close(turn, now)
        elif turn.transcript is not None:
            self._drop_backchannel(turn)
        else:
            turn.over = True
            if turn.text_job is None:
                self._ask_text(turn, final=False)

    def _close(self, turn: _Turn, now: float) -> None:
        """The turn is over: its item enters the conversation, with its transcript if that is known."""
        self._turn = None
        config = self.settings.turn
        if config is not None:
            turn.reply = config.create_response
            self._output.append(ev.SpeechStopped(turn.item_id, turn.end))
        self._input_start = turn.end
        item = MessageItem(turn.item_id, "user", None, seconds=turn.end - turn.start, status="in_progress")
        with self._replies.own_change():
            previous = self.context.add(item)
        self._output += [ev.InputCommitted(item.id, previous), ev.ItemAdded(item, previous)]
        if turn.transcript is not None:
            self._finish(turn, now)
        else:
            self._await_transcript(turn, now)

    def _finish(self, turn: _Turn, now: float) -> None:
        """The transcript of a closed turn is final: commit the speculation that answers it, or ask for a reply."""
        replies, text = self._replies, turn.transcript or ""
        with replies.own_change():
            item = self.context.update(turn.item_id, text=text, status="completed")
        self._output.append(ev.TranscriptDone(item.id, text, turn.language, item.seconds))
        speculation = replies.speculation
        if speculation is not None and speculation.user.id == turn.item_id:
            if text and turn.reply and speculation.answers(text, self.context.version):
                replies.commit(self._clock(turn), now)
                return
            replies.discard("changed", now)
        if text and turn.reply:
            replies.want(self._clock(turn))
        elif not text and turn.owed:
            replies.want()

    @staticmethod
    def _clock(turn: _Turn) -> TurnClock:
        return TurnClock(turn.item_id, turn.spoke_until, turn.decided, turn.transcribed)

    def _drop_backchannel(self, turn: _Turn) -> None:
        self._turn = None
        if turn.transcript:
            self._output.append(ev.Backchannel(turn.transcript))

    # ------------------------------------------------------------ transcripts and scores

    def _ask_text(self, turn: _Turn, *, final: bool, own_audio: bool = False) -> None:
        turn.text_job = self._new_id("job")
        # The tail of the pause goes along: soft final sounds lie below the threshold of the detector.
        tail = self.settings.turn.pause if self.settings.turn is not None else 0.0
        start = None if own_audio else turn.start
        end = None if own_audio else min(turn.end + tail, self._detector.position)
        language, hint = self.settings.language, self.settings.hint
        self._output.append(ev.Transcribe(turn.text_job, turn.item_id, start, end, final, language, hint))

    def _await_transcript(self, turn: _Turn, now: float, *, own_audio: bool = False) -> None:
        self._pending[turn.item_id] = turn
        if turn.text_job is None:
            self._ask_text(turn, final=True, own_audio=own_audio)
        if len(self._pending) > _MOST_PENDING:
            oldest = next(iter(self._pending.values()))
            self._output.append(ev.CancelTranscribe(oldest.text_job or ""))
            self._fail(oldest, "The transcriber does not keep up.")

    def _forget_text(self, turn: _Turn) -> None:
        """The user goes on: what was known of the words, and how finished they looked, is out of date."""
        if turn.text_job is not None:
            self._output.append(ev.CancelTranscribe(turn.text_job))
        turn.text_job = turn.score_job = turn.transcript = None
        turn.scores.clear()

    def _on_transcript(self, job: str, text: str, language: str | None, now: float) -> None:
        turn = self._find(job)
        if turn is None:
            return
        turn.text_job, turn.transcript, turn.language, turn.transcribed = None, text, language, now
        if turn is not self._turn:
            del self._pending[turn.item_id]
            self._finish(turn, now)
            return
        if not turn.confirmed:
            if not text or is_backchannel(text):
                if turn.over:
                    self._drop_backchannel(turn)
                return
            self._confirm(turn, now)
            if turn.over:
                self._close(turn, now)
                return
            self._output.append(ev.SpeechPaused(turn.item_id, turn.end))
        self._output.append(ev.TranscriptPartial(turn.item_id, text))
        self._score(turn, "text", self._scorer.score(None, text, language))
        self._attempt(turn, now)

    def _on_no_transcript(self, job: str, message: str, now: float) -> None:
        turn = self._find(job)
        if turn is None:
            return
        turn.text_job = None
        if turn is not self._turn:
            self._fail(turn, message)
        elif turn.over:
            self._drop_backchannel(turn)

    def _fail(self, turn: _Turn, message: str) -> None:
        """A closed turn stays without words; nobody replies to it."""
        del self._pending[turn.item_id]
        with self._replies.own_change():
            self.context.update(turn.item_id, text="", status="incomplete")
        self._output.append(ev.TranscriptFailed(turn.item_id, message))
        speculation = self._replies.speculation
        if speculation is not None and speculation.user.id == turn.item_id:
            self._replies.discard("failed", self._now)
        if turn.owed:
            self._replies.want()

    def _find(self, job: str) -> _Turn | None:
        turns = [*self._pending.values(), *([self._turn] if self._turn else [])]
        return next((turn for turn in turns if turn.text_job == job), None)

    def _score(self, turn: _Turn, scorer: str, probability: float) -> None:
        turn.scores[scorer] = probability
        self._detector.score = combine(turn.scores.values())

    @property
    def _may_speculate(self) -> bool:
        config = self.settings.turn
        return self.settings.speculation.enabled and config is not None and config.create_response

    def _attempt(self, turn: _Turn, now: float) -> None:
        """The user has paused and the words are known: prepare a reply, unless there is one to the same words."""
        replies, text = self._replies, turn.transcript or ""
        if replies.speculation is not None:
            if replies.speculation.answers(text, self.context.version):
                replies.keep()
                return
            replies.discard("changed", now)
        likely = self._detector.score or 0.0
        if (
            self._may_speculate
            and replies.active is None
            and not self._pending
            and turn.attempts < self.settings.speculation.attempts
            and not same_request("", text)
            and likely >= self.settings.speculation.least
            and replies.throttle.allows(likely)
        ):
            turn.attempts += 1
            replies.speculate(MessageItem(turn.item_id, "user", text), now)

    # ------------------------------------------------------------ requests and time

    def _commit_input(self, now: float) -> None:
        turn, position = self._turn, self._detector.position
        if self.settings.turn is None:
            if position - self._input_start < _SHORTEST_COMMIT:
                self._refuse_commit()
            turn = _Turn(self._new_id("item"), self._input_start, position, confirmed=True)
        elif turn is None:
            self._refuse_commit()
        else:
            ended = self._detector.finish()
            if ended is not None:
                if ended.end > turn.end:
                    self._forget_text(turn)
                turn.end = ended.end
            if not turn.confirmed:
                self._confirm(turn, now)
        assert turn is not None
        turn.spoke_until = now - (position - turn.end)
        turn.decided = now
        self._close(turn, now)
        self._input_start = position

    def _refuse_commit(self) -> NoReturn:
        raise RequestError(
            f"There is less than {_SHORTEST_COMMIT * 1000:.0f} ms of audio to commit: append some first.",
            code="input_audio_buffer_commit_empty",
        )

    def _clear_input(self, now: float) -> None:
        self._abandon_turn(now)
        self._input_start = self._detector.position
        self._output.append(ev.InputCleared())

    def _abandon_turn(self, now: float) -> None:
        turn, self._turn = self._turn, None
        self._detector.reset()
        if turn is not None:
            self._forget_text(turn)
            self._replies.discard("cleared", now)
            if turn.owed:
                self._replies.want()

    def _on_tick(self, now: float) -> None:
        self._replies.tick(now, self._floor_free)
        if self._idle_at is not None and now >= self._idle_at:
            self._idle_since = None
            item = MessageItem(self._new_id("item"), "user", "")
            position = self._detector.position
            previous = self.context.add(item)
            self._output += [
                ev.InputTimeout(item.id, min(self._input_start, position), position),
                ev.InputCommitted(item.id, previous),
                ev.ItemAdded(item, previous),
            ]
            self._replies.want()

    @property
    def _idle_at(self) -> float | None:
        timeout = self.settings.turn.idle_timeout if self.settings.turn else None
        return None if timeout is None or self._idle_since is None else self._idle_since + timeout

    # ------------------------------------------------------------ after every event

    @property
    def _floor_free(self) -> bool:
        """Whether nobody speaks, and everything that was said is known."""
        return not self._pending and (self._turn is None or not self._turn.confirmed)

    def _settle(self, now: float) -> None:
        replies, turn = self._replies, self._turn
        if replies.speculation is not None and replies.speculation.version != self.context.version:
            replies.discard("history", now)
            if turn is not None and turn.transcript is not None and self._detector.phase == "paused":
                self._attempt(turn, now)
        if self._floor_free:
            replies.pump()
        self._summarise()
        state = self._state(now)
        if state is not self.state:
            self._idle_since = now if (self.state, state) == (ev.State.BOT_REPLYING, ev.State.SILENCE) else None
            self.state = state
            self._output.append(ev.StateChanged(state))

    def _state(self, now: float) -> ev.State:
        if self._turn is not None and self._turn.confirmed:
            return ev.State.USER_PAUSED if self._detector.phase == "paused" else ev.State.USER_SPEAKING
        if self._replies.busy(now) or any(turn.reply for turn in self._pending.values()):
            return ev.State.BOT_REPLYING
        return ev.State.SILENCE

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
                self._output.append(ev.Summarise(self._fold[0], fold.messages))
