"""What is known of a turn while it is still being spoken."""

from __future__ import annotations

from dataclasses import dataclass

_EVERY = 0.8
"""Seconds of new speech after which it is transcribed again."""
_LEAST = 0.1
"""Seconds of new speech after which a gap is reason enough."""


@dataclass(slots=True)
class Overhearing:
    """Transcripts of a turn from its start to wherever it is, one after the other."""

    job: str | None = None
    """The transcript that is being made."""
    heard: tuple[str, str | None] | None = None
    """The text and the language of the last one, until the next is asked for."""
    end: float = 0.0
    """Where in the input the last one that was asked for ends, in seconds."""
    _voiced: float = 0.0

    def due(self, voiced: float, *, gap: bool) -> bool:
        """Whether to transcribe now, after `voiced` seconds of speech. In a gap it may be over: a transcript that is
        asked for at its first window is there sooner than one asked for at the pause, and one that is being made and
        lacks the end is not worth waiting for."""
        new = voiced - self._voiced
        return (gap and new >= _LEAST) or (self.job is None and new >= _EVERY)

    def ask(self, job: str, voiced: float, end: float) -> None:
        self.job, self.heard, self.end, self._voiced = job, None, end, voiced

    def take(self, text: str, language: str | None) -> None:
        """The transcript is there."""
        self.job, self.heard = None, (text, language)

    def stop(self) -> str | None:
        """Forget what was heard; returns the job that is to be cancelled."""
        job, self.job, self.heard = self.job, None, None
        return job
