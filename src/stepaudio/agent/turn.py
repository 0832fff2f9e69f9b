"""Voice activity to turns: speech started, paused, resumed, over.

Time here is audio time: the position in the input, counted in windows. It does not matter how fast the audio comes.

The turn is over when the silence outlasts `TurnDetector.delay`, a continuous function of how finished the turn looks:
`floor ** score * ceiling ** (1 - score)`, the geometric way from the ceiling (score 0) to the floor (score 1). With
floor = ceiling this is plain server VAD.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stepaudio.errors import InputError

WINDOW = 512 / 16_000
"""Seconds of audio that one VAD probability stands for."""

_PAUSE = 2 * WINDOW
_UNKNOWN_SCORE = 0.5
_EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class TurnConfig:
    """How turns are found. All times in seconds.

    A probability of at least `threshold` is speech (once it is speech, `threshold - 0.15` keeps it so); `min_speech`
    of it starts or resumes a turn. After `pause` of silence the turn is paused: a reply may be prepared. After
    `floor` to `ceiling` of silence it is over. `prefix_padding` of audio before the speech belongs to the turn. While
    the agent talks, speech counts as a barge-in once its words say so or it lasts `interrupt_after`; 0 lets any
    speech stop the agent at once. A turn that reaches `max_turn` is over. After `idle_timeout` of silence since the
    agent's last word, the agent speaks up.
    """

    threshold: float = 0.5
    min_speech: float = 0.096
    prefix_padding: float = 0.3
    pause: float = _PAUSE
    floor: float = 0.4
    ceiling: float = 2.0
    interrupt_after: float = 0.7
    max_turn: float = 120.0
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError("threshold must lie in (0, 1]", param="threshold")
        if not 0 < self.pause <= self.floor <= self.ceiling:
            raise InputError("a turn needs 0 < pause <= floor <= ceiling", param="silence_duration_ms")
        for name in ("min_speech", "prefix_padding", "interrupt_after"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative", param=name)
        if self.idle_timeout is not None and self.idle_timeout <= 0:
            raise InputError("idle_timeout must be positive", param="idle_timeout_ms")

    @property
    def adaptive(self) -> bool:
        """Whether the end of a turn depends on what was said."""
        return self.ceiling > self.floor

    @classmethod
    def server_vad(
        cls,
        *,
        threshold: float = 0.5,
        prefix_padding: float = 0.3,
        silence_duration: float = 0.5,
        create_response: bool = True,
        interrupt_response: bool = True,
        idle_timeout: float | None = None,
    ) -> TurnConfig:
        """The protocol's `server_vad`: the turn is over after a fixed silence."""
        return cls(
            threshold=threshold,
            prefix_padding=prefix_padding,
            pause=min(_PAUSE, silence_duration),
            floor=silence_duration,
            ceiling=silence_duration,
            create_response=create_response,
            interrupt_response=interrupt_response,
            idle_timeout=idle_timeout,
        )

    @classmethod
    def semantic_vad(
        cls,
        eagerness: Literal["low", "medium", "high", "auto"] = "auto",
        *,
        create_response: bool = True,
        interrupt_response: bool = True,
    ) -> TurnConfig:
        """The protocol's `semantic_vad`: waits at most 8, 4 or 2 s for a turn that looks unfinished."""
        waits = {"low": (0.8, 8.0), "medium": (0.45, 4.0), "auto": (0.45, 4.0), "high": (0.4, 2.0)}
        if eagerness not in waits:
            raise InputError("eagerness must be low, medium, high or auto", param="eagerness")
        floor, ceiling = waits[eagerness]
        return cls(
            floor=floor,
            ceiling=ceiling,
            create_response=create_response,
            interrupt_response=interrupt_response,
        )


def combine(probabilities: Iterable[float]) -> float | None:
    """One end-of-turn score from several scorers: their log odds add up. None when there are none."""
    odds = [math.log(p / (1 - p)) for p in (min(max(p, 0.01), 0.99) for p in probabilities)]
    return 1 / (1 + math.exp(-sum(odds))) if odds else None


def heard_end(probability: float) -> float:
    """What an acoustic scorer says as a score of the end of the turn: it is sure of itself, and wrong one time in
    three (docs/bench-live.md)."""
    return min(max(probability, 0.3), 0.7)


@dataclass(frozen=True, slots=True)
class Started:
    """Speech began at `at`."""

    at: float


@dataclass(frozen=True, slots=True)
class Paused:
    """Speech stopped at `at`; it may go on."""

    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """Speech went on at `at`."""

    at: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The turn that lasted from `start` to `end` (its last speech) is over."""

    start: float
    end: float


TurnEvent = Started | Paused | Resumed | Ended


class TurnDetector:
    """Feed it one probability per window; it says what they mean."""

    def __init__(self, config: TurnConfig | None = None) -> None:
        self.config = config or TurnConfig()
        self.score: float | None = None
        """How finished the paused turn looks, in [0, 1]; None when nobody has said. Forgotten when speech goes on."""
        self.phase: Literal["idle", "speaking", "paused"] = "idle"
        self.start = 0.0
        self.speech_end = 0.0
        self._windows = 0
        self._run = 0
        self._loud = False
        self._voiced = 0

    @property
    def position(self) -> float:
        """Seconds of input seen."""
        return self._windows * WINDOW

    @property
    def silence(self) -> float:
        """Seconds since the last speech of this turn."""
        return self.position - self.speech_end

    @property
    def voiced(self) -> float:
        """Seconds of speech in this turn, pauses left out."""
        return self._voiced * WINDOW

    @property
    def delay(self) -> float:
        """Silence after which the turn is over, in seconds."""
        score = _UNKNOWN_SCORE if self.score is None else min(max(self.score, 0.0), 1.0)
        return float(self.config.floor**score * self.config.ceiling ** (1 - score))

    def push(self, probability: float) -> tuple[TurnEvent, ...]:
        """Take the probability of speech in the next window; returns what it settles, in order."""
        config = self.config
        threshold = config.threshold - 0.15 if self._loud else config.threshold
        self._loud = probability >= threshold
        self._windows += 1
        self._run = self._run + 1 if self._loud else 0
        if self.phase == "idle":
            if self._run and self._run * WINDOW >= config.min_speech - _EDGE:
                return (self._start(),)
            return ()
        if self.position - self.start >= config.max_turn:
            return (self._end(),)
        if self.phase == "speaking":
            return self._speaking()
        return self._paused()

    def skip(self) -> None:
        """Count a window without looking at it: the client finds the turns."""
        self._windows += 1

    def finish(self) -> Ended | None:
        """End the turn that is running now, if one is (the client committed its audio by hand)."""
        return None if self.phase == "idle" else self._end()

    def reset(self) -> None:
        """Forget the turn that is running; the position stays."""
        self.phase, self.score, self._run, self._loud, self._voiced = "idle", None, 0, False, 0

    def _start(self) -> Started:
        self.phase, self.score, self._voiced = "speaking", None, self._run
        self.start, self.speech_end = self.position - self._run * WINDOW, self.position
        return Started(self.start)

    def _speaking(self) -> tuple[TurnEvent, ...]:
        if self._loud:
            self.speech_end = self.position
            self._voiced += 1
            return ()
        if self.silence < self.config.pause - _EDGE:
            return ()
        self.phase = "paused"
        return (Paused(self.speech_end), *self._paused())

    def _paused(self) -> tuple[TurnEvent, ...]:
        if self._loud:
            if self._run * WINDOW < self.config.min_speech - _EDGE:
                return ()
            self.phase, self.score, self.speech_end = "speaking", None, self.position
            self._voiced += self._run
            return (Resumed(self.position - self._run * WINDOW),)
        return (self._end(),) if self.silence >= self.delay - _EDGE else ()

    def _end(self) -> Ended:
        ended = Ended(self.start, self.speech_end)
        self.reset()
        return ended
