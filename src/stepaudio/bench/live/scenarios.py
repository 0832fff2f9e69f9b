"""Conversations as data: who says what, and what it waits for.

A conversation is a list of turns, each of one or more lines. A line is (a part of) a clip and the cue that it waits
for; the player turns cues into times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, get_args

from stepaudio.bench.live.clips import Clip, Clips
from stepaudio.errors import InputError

Kind = Literal["plain", "pause", "false_start", "barge_in", "backchannel"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_PAUSE = (0.3, 1.2)
_BEFORE_BARGE_IN = (0.3, 1.0)
_BEFORE_BACKCHANNEL = (0.6, 1.2)
_BETWEEN_TURNS = (0.5, 1.0)
_FALSE_STARTS = (0.4, 0.9)


@dataclass(frozen=True, slots=True)
class Cue:
    """What a line waits for, and how much longer, in seconds: that the line before it has ended, that the reply to
    the last turn becomes audible (or is over, whatever is first), or that the agent has nothing more to say."""

    after: Literal["line", "reply", "quiet"]
    delay: float


@dataclass(frozen=True, slots=True)
class Line:
    """`clip` from `start` to `end` seconds (None: its end). A murmur asks for no reply."""

    clip: str
    cue: Cue
    start: float = 0.0
    end: float | None = None
    murmur: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says until a reply is expected, and what is murmured while it is spoken."""

    kind: Kind
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    name: str
    language: str
    turns: tuple[Turn, ...]


def build(clips: Clips, *, conversations: int, seed: int) -> list[Conversation]:
    """Conversations in which every kind of turn comes once, in an order and with times that the seed decides.

    Languages take turns. Raises InputError when no clip of a language has a place for a pause.
    """
    rng = random.Random(seed)
    languages = cycle(language for language in clips.turns if language in clips.backchannels)
    built = []
    for number in range(conversations):
        language = next(languages, None)
        if language is None:
            raise InputError("there are no clips of a language together with something to murmur in it")
        built.append(_conversation(f"{number + 1}-{language}", language, clips, rng))
    return built


def _conversation(name: str, language: str, clips: Clips, rng: random.Random) -> Conversation:
    kinds = list(KINDS)
    rng.shuffle(kinds)
    if kinds[0] == "barge_in":  # there is nothing to interrupt yet
        kinds.append(kinds.pop(0))
    every = clips.turns[language]
    split = [clip for clip in every if clip.gap is not None]
    if not split:
        raise InputError(f"no clip in '{language}' has a gap between words that is long enough for a pause")
    turns = []
    for kind in kinds:
        clip = rng.choice(split if kind in ("pause", "false_start") else every)
        turns.append(Turn(kind, _lines(kind, clip, clips.backchannels[language], rng)))
    return Conversation(name, language, tuple(turns))


def _lines(kind: Kind, clip: Clip, murmurs: Sequence[Clip], rng: random.Random) -> tuple[Line, ...]:
    opening = Cue("quiet", rng.uniform(*_BETWEEN_TURNS))
    match kind:
        case "plain":
            return (Line(clip.name, opening),)
        case "pause":
            pause = Cue("line", rng.uniform(*_PAUSE))
            return (Line(clip.name, opening, end=clip.gap), Line(clip.name, pause, start=clip.gap or 0.0))
        case "false_start":
            again = Cue("line", rng.uniform(*_FALSE_STARTS))
            return (Line(clip.name, opening, end=clip.gap), Line(clip.name, again))
        case "barge_in":
            return (Line(clip.name, Cue("reply", rng.uniform(*_BEFORE_BARGE_IN))),)
        case "backchannel":
            murmur = Cue("reply", rng.uniform(*_BEFORE_BACKCHANNEL))
            return (Line(clip.name, opening), Line(rng.choice(murmurs).name, murmur, murmur=True))
