"""The packaged voices as teachers (`stepaudio.data.synthesis`): speech with phonemes and their times.

hibari has one voice but shows its pitch, so it speaks for many: a speaker "heart@PITCH,SIZE" has the pitch multiplied
by PITCH and the whole spectrum, formants and pitch, by SIZE (the sound is resampled while the pace is kept). Kokoro
speaks with its own voices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soxr

from stepaudio.data.synthesis import RATE, Line, Spoken
from stepaudio.data.text import spoken
from stepaudio.errors import TextError
from stepaudio.speech.backends.hibari import Hibari
from stepaudio.speech.backends.kokoro import Kokoro
from stepaudio.speech.backends.phonemes import PAUSE, Phonemizer, Pronunciation
from stepaudio.speech.reading import spans
from stepaudio.tokenizer.fbank import Floats

_EARLY = 0.05
"""Seconds by which sound comes before the place its duration gives it (as in `backends.onnx_voice`)."""
_MARGIN = 0.12
"""Seconds of silence kept at both ends, at most."""
_STRESS = "ˈˌ"
_PEAK = 0.7


class HibariTeacher:
    """English, about 170 times faster than real time on one core."""

    def __init__(self) -> None:
        self._engine = Hibari(model=None, threads=1)
        self._phonemes = Phonemizer()

    def say(self, line: Line) -> Spoken:
        pitch, size = _shape(line.speaker)
        rng = np.random.default_rng(line.seed)
        ids, said = _pronounce(self._phonemes, line, self._engine.ids)
        # Resampling by `size` also changes the pace; asking for the inverse undoes that.
        samples, frames = self._engine.synthesise(
            ids, voice="", speed=_pace(rng) / size, cancel=None, pitch=pitch, seed=line.seed
        )
        return _cut(line, said, samples, frames, rate=RATE * size)


class KokoroTeacher:
    """English and Chinese in Kokoro's voices, from the folders of its weights."""

    def __init__(self, model: Path, voices: Path) -> None:
        self._engine = Kokoro(model=model / "model.onnx", vocab=model / "vocab.json", voices=voices, threads=1)
        self._phonemes = Phonemizer()

    def say(self, line: Line) -> Spoken:
        ids, said = _pronounce(self._phonemes, line, self._engine.ids)
        pace = _pace(np.random.default_rng(line.seed))
        samples, frames = self._engine.synthesise(ids, voice=line.speaker, speed=pace, cancel=None)
        return _cut(line, said, samples, frames, rate=RATE)


def _shape(speaker: str) -> tuple[float, float]:
    match = re.fullmatch(r"heart(?:@([\d.]+),([\d.]+))?", speaker)
    if match is None:
        raise TextError(f"hibari has no speaker {speaker!r}")
    return float(match[1] or 1), float(match[2] or 1)


def _pace(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.85, 1.2))


def _pronounce(phonemizer: Phonemizer, line: Line, known: dict[str, int]) -> tuple[list[int], str]:
    """Ids with pads and an end mark, and their symbols."""
    said: Pronunciation = phonemizer(line.text, line.language, british=line.speaker.startswith("b"))
    symbols = [symbol for symbol in said.phonemes if symbol in known]
    if not symbols:
        raise TextError(f"there is nothing to say in {line.text[:40]!r}")
    if not PAUSE.match(symbols[-1]):
        symbols.append(".")
    if len(symbols) > 300:
        raise TextError(f"{line.text[:40]!r} is too long for one line")
    return [0, *(known[symbol] for symbol in symbols), 0], "".join(symbols)


def _cut(line: Line, symbols: str, samples: Floats, frames: np.ndarray, *, rate: float) -> Spoken:
    """Cut the silence around the speech and time its phonemes; stress marks and pauses get no time of their own.

    `rate` is that of the samples as they are to be heard.
    """
    edges = np.cumsum(frames) * (len(samples) / frames.sum()) / rate - _EARLY
    phonemes: list[str] = []
    ends: list[float] = []
    for symbol, end in zip(symbols, edges[1:-1], strict=True):
        if symbol in _STRESS:
            continue
        symbol = " " if PAUSE.match(symbol) else symbol
        if phonemes and phonemes[-1] == symbol == " ":
            ends[-1] = end
        else:
            phonemes.append(symbol)
            ends.append(end)
    begin = max(0.0, edges[0] - _MARGIN)
    last = ends[-2] if phonemes[-1] == " " and len(ends) > 1 else ends[-1]
    stop = min(len(samples) / rate, last + _MARGIN)
    heard = samples[round(begin * rate) : round(stop * rate)]
    heard = soxr.resample(heard, rate, RATE).astype(np.float32)
    heard *= np.float32(_PEAK / max(float(np.abs(heard).max(initial=0.0)), 1e-3))
    # The silence before the first phoneme is a pause like any other.
    timed = [(" ", edges[0]), *zip(phonemes, ends, strict=True)]
    said = spoken_words(line.text, line.language)
    milliseconds = tuple(round(1000 * (min(max(end, begin), stop) - begin)) for _, end in timed)
    return Spoken(heard, said, "".join(symbol for symbol, _ in timed), milliseconds)


def pronounce(sentences: Iterable[str]) -> Iterator[tuple[str, str]]:
    """English sentences as the words that are said and the phonemes that say them, both with spaces between words."""
    phonemizer = Phonemizer()
    for sentence in sentences:
        symbols = (" " if PAUSE.match(s) else s for s in phonemizer(sentence, "en").phonemes if s not in _STRESS)
        yield spoken_words(sentence, "en"), " ".join("".join(symbols).split())


def spoken_words(text: str, language: str) -> str:
    """A text as it is said: numbers written out, then English in lower-case words, Chinese in pinyin."""
    return spoken("".join(span.spoken for span in spans(text, language)), language)
