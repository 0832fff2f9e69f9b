"""The words of the user's turns: asked for while a turn is spoken, at its pauses and at its end; answers that come late
find the turn that they belong to.

What follows from the words is up to `listening`.
"""

from __future__ import annotations

from collections.abc import Callable

from stepaudio.agent import commands as cmd
from stepaudio.agent import notices as note
from stepaudio.agent.settings import Settings
from stepaudio.agent.turn import TurnDetector
from stepaudio.agent.user_turn import EVERY, Heard, UserTurn

_TO_HEAR = 0.25
"""Seconds in which the first words of somebody who may be interrupting are to be known."""
_MOST_LATE = 8
"""Turns that may wait for their words; beyond that the transcriber has failed the oldest."""


class Transcripts:
    """Has the turns of one conversation transcribed. `out` takes what is to be done, in order."""

    def __init__(
        self,
        settings: Settings,
        detector: TurnDetector,
        new_id: Callable[[str], str],
        out: Callable[[note.Output], None],
    ) -> None:
        self.settings = settings
        self.late: dict[str, UserTurn] = {}
        """The turns that are over and wait for their words, by item."""
        self._detector = detector
        self._new_id = new_id
        self._out = out

    # ------------------------------------------------------------ asking

    def ask(self, turn: UserTurn, *, final: bool = False, own_audio: bool = False) -> None:
        """Have all of a turn transcribed; `own_audio`: not the input, but what came with its item."""
        turn.text_job = self._new_id("job")
        # The tail of the pause goes along: soft final sounds lie below the threshold of the detector.
        tail = self.settings.turn.pause if self.settings.turn is not None else 0.0
        start = None if own_audio else turn.start
        end = None if own_audio else min(turn.end + tail, self._detector.position)
        language, hint = self.settings.language, self.settings.hint
        self._out(cmd.Transcribe(turn.text_job, turn.item_id, start, end, final, language, hint))

    def overhear(self, turn: UserTurn) -> None:
        """Get to know what is said before it is over, whenever there is enough that is new."""
        voiced, end = self._detector.voiced, self._detector.position
        every = EVERY if turn.confirmed else self._detector.config.interrupt_after - _TO_HEAR
        if turn.overhearing.due(voiced, every=every, gap=self._detector.silence > 0):
            self.stop_overhearing(turn)
            job = self._new_id("job")
            turn.overhearing.ask(job, voiced, end)
            self._out(cmd.Overhear(job, turn.start, end, self.settings.language, self.settings.hint))

    def stop_overhearing(self, turn: UserTurn) -> None:
        job = turn.overhearing.stop()
        if job is not None:
            self._out(cmd.CancelTranscribe(job))

    def at_pause(self, turn: UserTurn) -> Heard | None:
        """Get the words of a turn that pauses; returned are those that were overheard, if that is nearly all."""
        overhearing = turn.overhearing
        complete = overhearing.end >= turn.end
        if complete and overhearing.job is not None:
            turn.text_job = overhearing.adopted = overhearing.job
            overhearing.job = None
        elif complete and overhearing.heard is not None:
            return overhearing.heard
        else:
            self.ask(turn)
        return self.nearly_all(turn)

    @staticmethod
    def nearly_all(turn: UserTurn) -> Heard | None:
        """Words that lack next to nothing of a turn whose whole transcript is being made."""
        known = turn.confirmed and turn.overhearing.nearly_all(turn.voiced)
        return turn.overhearing.heard if known else None

    def at_end(self, turn: UserTurn, *, own_audio: bool = False) -> UserTurn | None:
        """A turn that is over waits for its words. Returned is another that has waited for too long: it is given up."""
        self.late[turn.item_id] = turn
        if turn.text_job is None:
            self.ask(turn, final=True, own_audio=own_audio)
        if len(self.late) <= _MOST_LATE:
            return None
        oldest = self.late.pop(next(iter(self.late)))
        self._out(cmd.CancelTranscribe(oldest.text_job or ""))
        return oldest

    def forget(self, turn: UserTurn) -> None:
        """The user goes on: what was known of the words, and how finished they looked, is out of date."""
        if turn.text_job is not None:
            self._out(cmd.CancelTranscribe(turn.text_job))
        self.stop_overhearing(turn)
        turn.text_job = turn.score_job = turn.words_job = turn.transcript = None
        turn.murmured = False
        turn.scores.clear()

    def drop(self, item_id: str) -> None:
        """An item was deleted: its words are not wanted any more."""
        turn = self.late.pop(item_id, None)
        if turn is not None:
            self.forget(turn)

    # ------------------------------------------------------------ answers

    def settle(self, job: str, running: UserTurn | None) -> UserTurn | None:
        """An answer has come: the turn that it is for, late or `running`, which waits no more. None if nobody does."""
        turns = [*self.late.values(), *([running] if running else [])]
        turn = next((turn for turn in turns if turn.text_job == job), None)
        if turn is not None:
            turn.text_job = None
            self.late.pop(turn.item_id, None)
        return turn
