"""What is known of a turn of the user's, while it is spoken and until its transcript is there."""

from __future__ import annotations

from dataclasses import dataclass, field

Heard = tuple[str, str | None]
"""A text and its language."""

EVERY = 0.8
"""Seconds of new speech after which it is transcribed again."""
_LEAST = 0.1
"""Seconds of new speech after which a gap is reason enough."""


@dataclass(slots=True)
class Overhearing:
    """Transcripts of a turn from its start to wherever it is, one after the other."""

    job: str | None = None
    """The transcript that is being made."""
    adopted: str | None = None
    """The one that a pause waits for, and that may have given way to others before."""
    heard: Heard | None = None
    """The last one, until the next is asked for."""
    end: float = 0.0
    """Where in the input the last one that was asked for ends, in seconds."""
    _voiced: float = 0.0

    def due(self, voiced: float, *, every: float = EVERY, gap: bool) -> bool:
        """Whether to transcribe now, after `voiced` seconds of speech. In a gap it may be over: a transcript that is
        asked for at its first window is there sooner than one asked for at the pause, and one that is being made and
        lacks the end is not worth waiting for."""
        new = voiced - self._voiced
        return (gap and new >= _LEAST) or (self.job is None and new >= every)

    def nearly_all(self, voiced: float) -> bool:
        """Whether what was transcribed last lacks less of `voiced` seconds of speech than is worth another time."""
        return voiced - self._voiced < _LEAST

    def ask(self, job: str, voiced: float, end: float) -> None:
        self.job, self.heard, self.end, self._voiced = job, None, end, voiced

    def take(self, text: str, language: str | None) -> None:
        """The transcript is there."""
        self.job, self.heard = None, (text, language)

    def stop(self) -> str | None:
        """Forget what was heard; returns the job that is to be cancelled."""
        job, self.job, self.heard = self.job, None, None
        return job


@dataclass(slots=True)
class UserTurn:
    """A stretch of user speech: one item to be."""

    item_id: str
    start: float
    end: float
    confirmed: bool = False
    over: bool = False
    murmured: bool = False
    """Whether what was overheard of it says no more than "I am listening"."""
    transcript: str | None = None
    """Of everything up to `end`; None while it is not known."""
    language: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    text_job: str | None = None
    overhearing: Overhearing = field(default_factory=Overhearing)
    score_job: str | None = None
    words_job: str | None = None
    attempts: int = 0
    voiced: float = 0.0
    """Seconds of speech up to its last pause."""
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
