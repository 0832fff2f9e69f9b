"""What the users of the benchmark say: recordings of a folder, or sentences spoken by a bundle's own voices."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stepaudio.audio.io import read
from stepaudio.audio.pcm import Samples
from stepaudio.audio.resample import resample
from stepaudio.errors import InputError
from stepaudio.speech.bundle import Bundle
from stepaudio.speech.roles import Speech

RATE = 24_000
"""Sample rate of everything that is played and recorded."""
AUDIBLE = 0.01
"""What is louder can be heard: -40 dB of full scale."""
LANGUAGES = ("en", "zh")

QUESTIONS = {
    "en": (
        "What do you usually like to eat for breakfast?",
        "Could you tell me how far it is from London to Paris?",
        "Why does the sky turn red when the sun goes down?",
        "How many people live in the capital of Japan?",
        "I would like to know how bees make their honey.",
        "What should I wear when it snows in the mountains?",
        "Which planet has the largest number of moons?",
        "Please explain how a bicycle stays upright when it moves.",
        "Can you recommend a good book about the history of Rome?",
        "What is the difference between a frog and a toad?",
        "How long does it take to boil an egg until it is hard?",
        "Tell me something interesting about the deep ocean.",
        "Who invented the telephone, and in which year was it?",
        "What is the best way to learn a new language quickly?",
    ),
    "zh": (
        "你平时早上喜欢吃什么东西？",
        "请问从北京到上海坐火车要多长时间？",
        "为什么太阳下山的时候天空会变红？",
        "我想知道蜜蜂是怎么做蜂蜜的。",
        "冬天去山上看雪应该穿什么衣服？",
        "你能给我推荐一本关于历史的书吗？",
        "请你给我讲一讲大海里的动物。",
        "怎样才能很快学会一门新的语言？",
        "世界上最高的山叫什么名字？",
        "煮鸡蛋一般需要多少分钟才会熟？",
    ),
}
BACKCHANNELS = {"en": ("Mm-hm.", "Right.", "Yeah."), "zh": ("嗯。", "对。")}
_VOICES = 4
"""Voices a language, at most."""
_SHORTEST, _LONGEST = 1.0, 6.0
_LEVEL = 0.5
_MIDDLE = (0.3, 0.7)
"""Where in a clip a pause may be put."""
_GAP_WINDOW = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Something said, samples [T] at `RATE` from the first audible one to the last. `gap` is where, in seconds, a
    pause may be put between two of its words; None if nowhere."""

    name: str
    text: str
    language: str
    samples: Samples
    gap: float | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


@dataclass(frozen=True, slots=True)
class Clips:
    """What can be said in a benchmark: turns, and what listeners murmur; both by language."""

    turns: dict[str, tuple[Clip, ...]]
    backchannels: dict[str, tuple[Clip, ...]]

    def by_name(self) -> dict[str, Clip]:
        return {clip.name: clip for kind in (self.turns, self.backchannels) for some in kind.values() for clip in some}


def audible_span(samples: Samples) -> tuple[int, int] | None:
    """The first audible sample and the one after the last; None in silence."""
    loud = np.flatnonzero(np.abs(samples) > AUDIBLE)
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else None


def trimmed(samples: Samples) -> tuple[Samples, float]:
    """At a peak of `_LEVEL`, from the first audible sample to the last; and how many seconds of silence were in front.
    Raises InputError for silence."""
    peak = np.abs(samples).max(initial=0.0)
    levelled = samples * np.float32(_LEVEL / peak) if peak > 0 else samples
    span = audible_span(levelled)
    if span is None:
        raise InputError("a recording of the benchmark is silent: leave it out")
    return levelled[slice(*span)], span[0] / RATE


def quietest(samples: Samples) -> float | None:
    """The middle of the quietest 30 ms of the middle of a clip, in seconds; None if it is not quiet there, or short."""
    size = round(_GAP_WINDOW * RATE)
    first, last = (round(share * len(samples)) for share in _MIDDLE)
    if last - first < size:
        return None
    energies = np.convolve(samples[first:last].astype(np.float64) ** 2, np.full(size, 1 / size), "valid")
    best = int(energies.argmin())
    return (first + best + size / 2) / RATE if energies[best] < AUDIBLE**2 else None


def read_folder(folder: Path, *, most: int, seed: int) -> dict[str, tuple[Clip, ...]]:
    """Up to `most` recordings a language out of a folder's manifest.jsonl (`path`, `text`, `lang`, `seconds`): those
    of 1 to 6 s with several words. Raises InputError for a manifest that cannot be used."""
    rows: dict[str, list[dict[str, Any]]] = {language: [] for language in LANGUAGES}
    for row in _manifest(folder / "manifest.jsonl"):
        if row["lang"] in rows and _SHORTEST <= row["seconds"] <= _LONGEST and _several_words(row["text"]):
            rows[row["lang"]].append(row)
    rng = random.Random(seed)
    found: dict[str, tuple[Clip, ...]] = {}
    for language, some in rows.items():
        chosen = rng.sample(some, min(most, len(some)))
        clips = [(row, trimmed(read(folder / row["path"], rate=RATE))[0]) for row in chosen]
        if clips:
            found[language] = tuple(Clip(row["path"], row["text"], language, s, quietest(s)) for row, s in clips)
    if not found:
        raise InputError(f"{folder} has no recordings of 1 to 6 s in {' or '.join(LANGUAGES)} with several words")
    return found


def synthesise_turns(
    bundle: Bundle, *, most: int, seed: int, done: Callable[[], None] = lambda: None
) -> dict[str, tuple[Clip, ...]]:
    """Up to `most` questions a language, spoken by several of the bundle's voices."""
    return _synthesise(bundle, QUESTIONS, most, seed, done)


def synthesise_backchannels(bundle: Bundle, *, seed: int) -> dict[str, tuple[Clip, ...]]:
    """What listeners murmur, spoken by the bundle's voices."""
    return _synthesise(bundle, BACKCHANNELS, max(map(len, BACKCHANNELS.values())), seed, lambda: None)


def _synthesise(
    bundle: Bundle, texts: dict[str, tuple[str, ...]], most: int, seed: int, done: Callable[[], None]
) -> dict[str, tuple[Clip, ...]]:
    rng = random.Random(seed)
    spoken: dict[str, tuple[Clip, ...]] = {}
    for language in LANGUAGES:
        names = [voice.name for voice in bundle.speaker.voices if voice.languages[0] == language]
        voices = rng.sample(names, min(_VOICES, len(names)))
        chosen = rng.sample(texts[language], min(most, len(texts[language]))) if voices else []
        clips = []
        for i, text in enumerate(chosen):
            voice = voices[i % len(voices)]
            clips.append(_spoken(f"{voice}: {text}", text, language, list(bundle.say(text, voice=voice)), bundle))
            done()
        if clips:
            spoken[language] = tuple(clips)
    if not spoken:
        raise InputError(f"the bundle '{bundle.name}' has no voice for {' or '.join(LANGUAGES)}; choose another bundle")
    return spoken


def _spoken(name: str, text: str, language: str, chunks: Sequence[Speech], bundle: Bundle) -> Clip:
    rate = bundle.speaker.rate
    samples, lead = trimmed(resample(np.concatenate([chunk.samples for chunk in chunks]), rate, RATE))
    return Clip(name, text, language, samples, word_gap(_word_ends(chunks, rate), lead, len(samples) / RATE))


def word_gap(ends: Sequence[tuple[float, float]], lead: float, seconds: float) -> float | None:
    """The gap between two words nearest to the middle of a clip; `ends` are the end of a word and the start of the
    next, counted from `lead` seconds before the clip."""
    places = [(end + start) / 2 - lead for end, start in ends]
    inside = [place for place in places if _MIDDLE[0] * seconds <= place <= _MIDDLE[1] * seconds]
    return min(inside, key=lambda place: abs(place - seconds / 2), default=None)


def _word_ends(chunks: Sequence[Speech], rate: int) -> list[tuple[float, float]]:
    words, begin = [], 0.0
    for chunk in chunks:
        words += [(begin + word.start, begin + word.end) for word in chunk.words]
        begin += len(chunk.samples) / rate
    return [(before[1], after[0]) for before, after in pairwise(words)]


def _several_words(text: str) -> bool:
    return len(text.split()) >= 3 or (not text.isascii() and len(text) >= 4)


def _manifest(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); it lists the recordings, one JSON object a line") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            yield {
                "path": str(row["path"]),
                "text": str(row["text"]),
                "lang": str(row["lang"]),
                "seconds": float(row["seconds"]),
            }
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: {error!r}; a line has path, text, lang and seconds") from None
