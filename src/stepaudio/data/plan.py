"""What the shipped tokenizer heard: which sentence is said by whom, and which are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stepaudio.data.synthesis import Line
from stepaudio.data.text import Sentence

HELD_OUT = {"test": 25, "dev": 100}
"""One sentence in so many belongs to the split; a sentence is in one split whoever says it."""


def split_of(text: str) -> str:
    """The split of a sentence, by its text alone, so that no sentence is ever in two of them."""
    number = int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:12], 16)
    for split, one_in in HELD_OUT.items():
        if number % one_in == 0:
            return split
        number //= one_in
    return "train"


def lines(
    sentences: Sequence[Sentence], language: str, teacher: str, speakers: Sequence[str], seed: int = 0
) -> list[Line]:
    """Each sentence once. Speakers take turns in an order that is drawn anew each round, so they speak equally often
    and a longer list begins as the shorter one."""
    order: list[str] = []
    while len(order) < len(sentences):
        rng = np.random.default_rng((seed, 3, len(order)))
        order += [speakers[i] for i in rng.permutation(len(speakers))]
    return [
        Line(sentence.text, language, speaker, teacher, sentence.source, split_of(sentence.text), index)
        for index, (sentence, speaker) in enumerate(zip(sentences, order, strict=False))
    ]


HEARTS = tuple(
    f"heart@{pitch:g},{size:g}" for size in (0.82, 0.88, 0.94, 1, 1.06, 1.14) for pitch in (0.6, 0.75, 0.9, 1.1)
)
"""Speakers made of hibari's voice: four pitches in six sizes, from a deep man to a child."""
UNHEARD = ("am_echo", "bf_lily", "zm_yunyang")
"""Kokoro's voices that no training may hear: what is said of unknown voices is measured on them."""


def nano(
    english: Sequence[Sentence], chinese: Sequence[Sentence], voices: Sequence[str], size: int, kokoro: int
) -> list[Line]:
    """`kokoro` English and half as many Chinese sentences in Kokoro's voices, a tenth as many in each language by the
    voices that only testing hears, and `size` English sentences by hibari. The slow teacher comes first."""
    said: list[Line] = []
    # From the end of the list, so that more sentences for one teacher leave the other's as they are.
    for sentences, language, initials, share in (
        (chinese, "zh", "z", kokoro // 2),
        (english[::-1], "en", "ab", kokoro),
    ):
        speakers = [voice for voice in voices if voice[0] in initials]
        heard = [voice for voice in speakers if voice not in UNHEARD]
        unheard = [voice for voice in speakers if voice in UNHEARD]
        said += lines(sentences[:share], language, "kokoro", heard)
        if unheard:
            extra = lines(sentences[share : share + kokoro // 10], language, "kokoro", unheard)
            said += [replace(line, split="unheard") for line in extra]
    return said + lines(english[:size], "en", "hibari", HEARTS)
