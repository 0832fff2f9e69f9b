"""Recordings that nothing should learn from: those that do not say their text, or say it strangely.

Four measures, each with a reason that stands in the manifest: what a recogniser hears against the text, the pace
against that of the same teacher's other recordings (quartiles and their distance, as Emilia, arXiv 2407.05361), the
predicted quality (DNSMOS), and how near the voice is to the speaker's others. A rejected line is kept, in a split of
its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stepaudio.data.manifest import Utterance
from stepaudio.data.text import spoken

REJECTED = "rejected"
"""The split of what was rejected."""


@dataclass(frozen=True)
class Limits:
    """What is still good. `words`: errors per word of the text. `spread`: distances between the quartiles of seconds
    per phoneme (or letter), beyond them, in logarithms. `similarity`: cosine to the mean of the speaker's voices."""

    words: float = 0.34
    spread: float = 1.5
    quality: float = 2.0
    similarity: float = 0.6


@dataclass(frozen=True)
class Ears:
    """What judges recordings; None where a measure is left out."""

    words: Callable[[Utterance], str] | None = None
    """What is heard in it."""
    quality: Callable[[Utterance], float] | None = None
    voice: Callable[[Utterance], NDArray[np.float32]] | None = None
    """A unit vector of who speaks."""


def judged(
    utterances: Sequence[Utterance],
    ears: Ears,
    limits: Limits = Limits(),
    *,
    sample: int | None = None,
) -> Iterator[Utterance]:
    """The utterances in order, rejected ones marked. All are judged by their pace, `sample` evenly spread ones by ear
    (all, if None); the speaker's mean voice is that of the ones heard so far."""
    paces = _paces(utterances)
    step = 1 if sample is None else max(1, len(utterances) // max(1, sample))
    sums: dict[str, NDArray[np.float32]] = {}
    for index, (utterance, odd) in enumerate(zip(utterances, _outliers(utterances, paces, limits.spread), strict=True)):
        reason = f"pace of {paces[index]:.3f} s per symbol" if odd else ""
        if not reason and index % step == 0:
            reason = _heard(utterance, ears, limits, sums)
        yield replace(utterance, split=REJECTED, rejected=reason) if reason else utterance


def _heard(utterance: Utterance, ears: Ears, limits: Limits, sums: dict[str, NDArray[np.float32]]) -> str:
    """Why an utterance is rejected by ear, or nothing; `sums` are the voices of those that were not."""
    if ears.words is not None:
        heard = ears.words(utterance)
        wanted = tokens(utterance.text, utterance.language)
        if word_errors(wanted, tokens(heard, utterance.language)) > limits.words * len(wanted):
            return f"heard as {heard!r}"
    if ears.quality is not None and (quality := ears.quality(utterance)) < limits.quality:
        return f"quality {quality:.2f}"
    if ears.voice is not None and utterance.speaker:
        vector = ears.voice(utterance)
        known = sums.get(utterance.speaker)
        if known is not None and (near := float(vector @ known / np.linalg.norm(known))) < limits.similarity:
            return f"similarity {near:.2f} to {utterance.speaker}"
        sums[utterance.speaker] = vector if known is None else known + vector
    return ""


def tokens(text: str, language: str) -> list[str]:
    """What is compared of a text and of what was heard: English words by OpenAI's normaliser, which writes numbers as
    figures as recognisers do; Chinese as pinyin."""
    from stepaudio.eval.normalise.english import whisper_en

    return spoken(text, "zh").split() if language == "zh" else whisper_en(text)


def word_errors(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """The least number of words to replace, leave out or put in."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(wanted, heard)


def _paces(utterances: Sequence[Utterance]) -> NDArray[np.float64]:
    """Seconds per phoneme, or per letter where phonemes are not known."""
    symbols = [len((u.phonemes or u.text).replace(" ", "")) for u in utterances]
    return np.array([u.duration for u in utterances]) / np.maximum(1, symbols)


def _outliers(utterances: Sequence[Utterance], paces: NDArray[np.float64], spread: float) -> NDArray[np.bool_]:
    """Those whose pace lies far outside of what their teacher's half in the middle have in their language."""
    far = np.zeros(len(utterances), dtype=bool)
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for index, utterance in enumerate(utterances):
        groups.setdefault((utterance.teacher, utterance.language, bool(utterance.phonemes)), []).append(index)
    for own in groups.values():
        logs = np.log(paces[own])
        low, high = np.percentile(logs, [25, 75])
        reach = spread * (high - low)
        far[own] = (logs < low - reach - 1e-9) | (logs > high + reach + 1e-9)
    return far
