"""The user's side of the conversation: turns, their transcripts, barge-in and backchannels.

`Listener` decides when a turn begins, is confirmed, pauses and is over, and what its words mean. It has `Transcripts`
get the words, and asks `Replies` to be silent, to prepare a reply, to commit it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from stepaudio.agent import commands as cmd
from stepaudio.agent import notices as note
from stepaudio.agent.context import Context, MessageItem
from stepaudio.agent.errors import RequestError
from stepaudio.agent.playback import Playback
from stepaudio.agent.replies import Replies
from stepaudio.agent.settings import Settings
from stepaudio.agent.speculation import TurnClock
from stepaudio.agent.transcripts import Transcripts
from stepaudio.agent.turn import WINDOW, Ended, Paused, Resumed, Started, TurnConfig, TurnDetector, combine, heard_end
from stepaudio.agent.user_turn import UserTurn
from stepaudio.agent.wording import (
    TextTurnScorer,
    end_of_turn,
    is_backchannel,
    is_question,
    may_be_hum,
    same_request,
    settled,
    spoken_part,
)

_SHORTEST_COMMIT = 0.1
_LONG_MURMUR = 0.4
"""Seconds by which what has only said "okay" may last longer than other speech before it interrupts."""


class Listener:
    """Follows the input of one conversation. `out` takes what is to be done and told, in order."""

    def __init__(
        self,
        settings: Settings,
        context: Context,
        playback: Playback,
        replies: Replies,
        new_id: Callable[[str], str],
        out: Callable[[note.Output], None],
    ) -> None:
        self.settings = settings
        self.context = context
        self.playback = playback
        self.detector = TurnDetector(settings.turn)
        self.turn: UserTurn | None = None
        """The turn that is running, confirmed or not."""
        self.transcripts = Transcripts(settings, self.detector, new_id, out)
        self.input_start = 0.0
        """Where the input that belongs to no turn begins."""
        self._replies = replies
        self._scorer = TextTurnScorer()
        self._opening = Settings().opening  # the responder has read it
        self._new_id = new_id
        self._out = out

    @property
    def floor_free(self) -> bool:
        """Whether nobody speaks, and everything that was said is known."""
        return not self.transcripts.late and (self.turn is None or not self.turn.confirmed)

    @property
    def state(self) -> note.State:
        """The state of the conversation as far as the user makes it."""
        if self.turn is not None and self.turn.confirmed:
            return note.State.USER_PAUSED if self.detector.phase == "paused" else note.State.USER_SPEAKING
        owed = any(turn.reply for turn in self.transcripts.late.values())
        return note.State.BOT_REPLYING if owed else note.State.SILENCE

    @property
    def keep_from(self) -> float:
        """Seconds of input audio before which nothing will be asked for any more."""
        starts = [turn.start for turn in self.transcripts.late.values()]
        if self.turn is not None:
            starts.append(self.turn.start)
        elif self.settings.turn is None:
            starts.append(self.input_start)
        else:
            ahead = self.settings.turn.prefix_padding + self.settings.turn.min_speech + WINDOW
            starts.append(max(self.input_start, self.detector.position - ahead))
        return min(starts)

    def configure(self, settings: Settings, now: float) -> None:
        if settings.turn != self.settings.turn:
            self._abandon_turn(now)
            self.detector.config = settings.turn or TurnConfig()
            self.input_start = self.detector.position
        self.settings = self.transcripts.settings = settings
        if settings.opening != self._opening and self._may_speculate and self.turn is None:
            self._opening = settings.opening
            self._replies.warm("")

    # ------------------------------------------------------------ the turn

    def on_window(self, probability: float, now: float) -> None:
        """The next window of input."""
        detector = self.detector
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
        turn = self.turn
        if turn is None or detector.phase != "speaking":
            return
        if not turn.confirmed:
            if self._interrupts(turn) or not self.playback.audible(now):
                self._confirm(turn, now)
        elif detector.voiced - turn.voiced > self.settings.speculation.filler:
            speculation = self._replies.speculation
            if speculation is not None and speculation.suspended:
                self._replies.discard("resumed", now)
        if self._may_speculate or not turn.confirmed:
            self.transcripts.overhear(turn)

    def _on_started(self, at: float, now: float) -> None:
        assert self.settings.turn is not None
        if self.turn is not None:  # what looked like a backchannel is not decided yet, and goes on
            self.turn.over = False
            self.transcripts.forget(self.turn)
            return
        start = max(self.input_start, at - self.settings.turn.prefix_padding)
        self.turn = UserTurn(self._new_id("item"), start, at)
        if self.settings.turn.interrupt_after == 0 or not self.playback.audible(now):
            self._confirm(self.turn, now)

    def _confirm(self, turn: UserTurn, now: float) -> None:
        """This is a turn, whatever the agent is doing."""
        assert self.settings.turn is not None
        turn.confirmed = True
        self._out(note.SpeechStarted(turn.item_id, turn.start))
        if self.settings.turn.interrupt_response and self._replies.busy(now):
            turn.owed = self._replies.interrupt(now)
        if self._may_speculate:
            self._replies.warm("")

    def _interrupts(self, turn: UserTurn) -> bool:
        """Whether it has been said for too long to be a murmur; a little longer if it sounds like one."""
        longest = self.detector.config.interrupt_after + (_LONG_MURMUR if turn.murmured else 0.0)
        return self.detector.voiced >= longest

    def _on_paused(self, at: float, now: float) -> None:
        turn, config = self.turn, self.settings.turn
        assert turn is not None
        assert config is not None
        turn.end, turn.spoke_until, turn.voiced = at, now - self.detector.silence, self.detector.voiced
        if turn.confirmed:
            self._out(note.SpeechPaused(turn.item_id, at))
        if config.adaptive or not turn.confirmed or self._may_speculate:
            heard = self.transcripts.at_pause(turn)
            if heard is not None:
                self._take_words(turn, *heard, now)
        if self.settings.acoustic:
            turn.score_job = self._new_id("job")
            self._out(cmd.Score(turn.score_job, turn.start, self.detector.position))

    def _on_resumed(self, at: float) -> None:
        turn = self.turn
        assert turn is not None
        self.transcripts.forget(turn)
        self._replies.suspend()
        if turn.confirmed:
            self._out(note.SpeechResumed(turn.item_id, at))

    def _on_ended(self, end: float, now: float) -> None:
        turn = self.turn
        assert turn is not None
        turn.end, turn.decided = end, now
        turn.spoke_until = now - (self.detector.position - end)
        if turn.confirmed:
            self._close(turn, now)
        elif turn.transcript is not None:
            self._end_murmur(turn, now)
        else:
            turn.over = True
            if turn.text_job is None:
                self.transcripts.ask(turn)

    def _close(self, turn: UserTurn, now: float) -> None:
        """The turn is over: its item enters the conversation, with its transcript if that is known."""
        self.turn = None
        self.transcripts.stop_overhearing(turn)
        config = self.settings.turn
        if config is not None:
            turn.reply = config.create_response
            self._out(note.SpeechStopped(turn.item_id, turn.end))
        self.input_start = turn.end
        item = MessageItem(turn.item_id, "user", None, seconds=turn.end - turn.start, status="in_progress")
        with self._replies.own_change():
            previous = self.context.add(item)
        self._out(note.InputCommitted(item.id, previous))
        self._out(note.ItemAdded(item, previous))
        if turn.transcript is not None and turn.text_job is None:
            self._finish(turn, now)
        else:
            self._await_words(turn, now)

    def _finish(self, turn: UserTurn, now: float) -> None:
        """The transcript of a closed turn is final: commit the speculation that answers it, or ask for a reply."""
        replies, text = self._replies, turn.transcript or ""
        with replies.own_change():
            item = self.context.update(turn.item_id, text=text, status="completed")
        self._out(note.TranscriptDone(item.id, text, turn.language, item.seconds))
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
    def _clock(turn: UserTurn) -> TurnClock:
        return TurnClock(turn.item_id, turn.spoke_until, turn.decided, turn.transcribed)

    def _end_murmur(self, turn: UserTurn, now: float) -> None:
        """Speech while the agent spoke is over and was no turn, unless it answers what the agent has just asked."""
        if turn.transcript and not self.playback.audible(now) and self._has_asked():
            self._confirm(turn, now)
            self._close(turn, now)
            return
        self.turn = None
        self.transcripts.stop_overhearing(turn)
        if turn.transcript:
            self._out(note.Backchannel(turn.transcript))

    def _has_asked(self) -> bool:
        last = self.context.get(self.context.last_id) if self.context.last_id else None
        return isinstance(last, MessageItem) and last.role == "assistant" and is_question(last.text or "")

    # ------------------------------------------------------------ transcripts and scores

    def on_transcript(self, job: str, text: str, language: str | None, now: float) -> None:
        """The words of a running or a closed turn are known."""
        if self.turn is not None and self.turn.overhearing.job == job:
            self._on_overheard(self.turn, text, language, now)
        elif (turn := self.transcripts.settle(job, self.turn)) is not None:
            self._take_words(turn, text, language, now)

    def _on_overheard(self, turn: UserTurn, text: str, language: str | None, now: float) -> None:
        turn.overhearing.take(text, language)
        turn.murmured = is_backchannel(text)
        if turn.text_job is not None:
            heard = self.transcripts.nearly_all(turn)
            if heard is not None:
                self._take_words(turn, *heard, now)
        elif text and turn.confirmed and turn.transcript is None:
            self._out(note.TranscriptPartial(turn.item_id, text))
            self._replies.warm(spoken_part(text) if self.detector.silence else settled(text))

    def _take_words(self, turn: UserTurn, text: str, language: str | None, now: float) -> None:
        again = text == turn.transcript
        turn.transcript, turn.language = text, language
        turn.transcribed = turn.transcribed if again else now
        if turn is not self.turn:
            self._finish(turn, now)
            return
        if again:
            return
        if not turn.confirmed:
            if not text or is_backchannel(text) or may_be_hum(text, turn.voiced):
                if turn.over:
                    self._end_murmur(turn, now)
                return
            self._confirm(turn, now)
            if turn.over:
                self._close(turn, now)
                return
            self._out(note.SpeechPaused(turn.item_id, turn.end))
        self._out(note.TranscriptPartial(turn.item_id, text))
        score = self._scorer.score(None, text, language)
        if score is not None:
            self._score(turn, "text", score)
        if text and self.settings.turn is not None and self.settings.turn.adaptive:
            turn.words_job = self._new_id("job")
            self._replies.warm(spoken_part(text), turn.words_job)
        self._attempt(turn, now)

    def on_no_transcript(self, job: str, message: str, now: float) -> None:
        """The transcriber has failed."""
        if self.turn is not None and self.turn.overhearing.job == job:
            self.turn.overhearing.job = None
        elif (turn := self.transcripts.settle(job, self.turn)) is None:
            return
        elif turn.overhearing.adopted == job:
            if turn is self.turn:
                self.transcripts.ask(turn)
            else:
                self._await_words(turn, now)
        elif turn is not self.turn:
            self._close_without(turn, message, now)
        elif turn.over:
            self._end_murmur(turn, now)

    def _await_words(self, turn: UserTurn, now: float, *, own_audio: bool = False) -> None:
        given_up = self.transcripts.at_end(turn, own_audio=own_audio)
        if given_up is not None:
            self._close_without(given_up, "The transcriber does not keep up.", now)

    def _close_without(self, turn: UserTurn, message: str, now: float) -> None:
        """A closed turn gets no transcript of its whole: it has nearly all of its words, or nobody replies to it."""
        if turn.transcript is not None:
            self._finish(turn, now)
            return
        with self._replies.own_change():
            self.context.update(turn.item_id, text="", status="incomplete")
        self._out(note.TranscriptFailed(turn.item_id, message))
        speculation = self._replies.speculation
        if speculation is not None and speculation.user.id == turn.item_id:
            self._replies.discard("failed", now)
        if turn.owed:
            self._replies.want()

    def on_score(self, job: str, probability: float | None) -> None:
        """The acoustic scorer has judged the pause, or the responder the words; None is no opinion."""
        if self.turn is None or probability is None:
            return
        if self.turn.score_job == job:
            self._score(self.turn, "acoustic", heard_end(probability))
        elif self.turn.words_job == job:
            self._score(self.turn, "words", end_of_turn(probability))

    def hear_item(self, item_id: str, now: float) -> None:
        """Have the audio transcribed that came with an item."""
        turn = UserTurn(item_id, self.detector.position, self.detector.position)
        self._await_words(turn, now, own_audio=True)

    def retry(self, now: float) -> None:
        """The history has changed under the speculation: prepare another if the user still pauses."""
        if self.turn is not None and self.turn.transcript is not None and self.detector.phase == "paused":
            self._attempt(self.turn, now)

    def _score(self, turn: UserTurn, scorer: str, probability: float) -> None:
        turn.scores[scorer] = probability
        self.detector.score = combine(turn.scores.values())

    @property
    def _may_speculate(self) -> bool:
        config = self.settings.turn
        return self.settings.speculation.enabled and config is not None and config.create_response

    def _attempt(self, turn: UserTurn, now: float) -> None:
        """The user has paused and the words are known: prepare a reply, unless there is one to the same words."""
        replies, text = self._replies, turn.transcript or ""
        if replies.speculation is not None:
            if replies.speculation.answers(text, self.context.version):
                replies.keep()
                return
            replies.discard("changed", now)
        likely = self.detector.score or 0.0
        if (
            self._may_speculate
            and replies.active is None
            and not replies.asked
            and not self.transcripts.late
            and turn.attempts < self.settings.speculation.attempts
            and not same_request("", text)
            and likely >= self.settings.speculation.least
            and replies.throttle.allows(likely)
        ):
            turn.attempts += 1
            replies.speculate(MessageItem(turn.item_id, "user", text), now)

    # ------------------------------------------------------------ requests of the client

    def commit_input(self, now: float) -> None:
        """End the turn by hand."""
        turn, position = self.turn, self.detector.position
        if self.settings.turn is None:
            if position - self.input_start < _SHORTEST_COMMIT:
                self._refuse_commit()
            turn = UserTurn(self._new_id("item"), self.input_start, position, confirmed=True)
        elif turn is None:
            self._refuse_commit()
        else:
            ended = self.detector.finish()
            if ended is not None:
                turn.end = ended.end
            if not turn.confirmed:
                self._confirm(turn, now)
        assert turn is not None
        turn.spoke_until = now - (position - turn.end)
        turn.decided = now
        self._close(turn, now)

    def _refuse_commit(self) -> NoReturn:
        raise RequestError(
            f"There is less than {_SHORTEST_COMMIT * 1000:.0f} ms of audio to commit: append some first.",
            code="input_audio_buffer_commit_empty",
        )

    def clear_input(self, now: float) -> None:
        """Drop the turn."""
        self._abandon_turn(now)
        self.input_start = self.detector.position
        self._out(note.InputCleared())

    def _abandon_turn(self, now: float) -> None:
        turn, self.turn = self.turn, None
        self.detector.reset()
        if turn is not None:
            self.transcripts.forget(turn)
            self._replies.discard("cleared", now)
            if turn.owed:
                self._replies.want()
