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
    """"test", "dev" or "train", by the text alone, so that no sentence is ever in two of them."""
    number = int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:12], 16)
    for split, one_in in HELD_OUT.items():
        if number % one_in == 0:
            return split
        number //= one_in
    return "train"


def lines(
    sentences: Sequence[Sentence], language: str, teacher: str, speakers: Sequence[str], seed: int = 0
) -> list[Line]:
    """Each sentence once, the speakers in random order but equally often."""
    rng = np.random.default_rng((seed, 3))
    order = [speakers[i % len(speakers)] for i in range(len(sentences))]
    return [
        Line(sentence.text, language, order[place], teacher, sentence.source, split_of(sentence.text), index)
        for index, (sentence, place) in enumerate(zip(sentences, rng.permutation(len(sentences)), strict=True))
    ]


HEARTS = tuple(f"heart@{pitch:g},{size:g}" for size in (0.82, 0.88, 0.94, 1, 1.06, 1.14) for pitch in (0.6, 0.75, 0.9, 1.1))
"""Speakers made of hibari's voice: four pitches in six sizes, from a deep man to a child."""
UNHEARD = ("am_echo", "bf_lily", "zm_yunyang")
"""Kokoro's voices that no training may hear: what is said of unknown voices is measured on them."""


def nano(english: Sequence[Sentence], chinese: Sequence[Sentence], voices: Sequence[str], size: int) -> list[Line]:
    """`size` English sentences by hibari; for each 60 of them one in Kokoro's English and half of one in its Chinese
    voices, and a few for the voices that only testing hears."""
    british_american = [voice for voice in voices if voice[0] in "ab"]
    mandarin = [voice for voice in voices if voice[0] == "z"]
    said = lines(english[:size], "en", "hibari", HEARTS)
    for sentences, language, speakers, share in (
        (english[size:], "en", british_american, size // 60),
        (chinese, "zh", mandarin, size // 120),
    ):
        heard = [voice for voice in speakers if voice not in UNHEARD]
        said += lines(sentences[:share], language, "kokoro", heard)
        unheard = [voice for voice in speakers if voice in UNHEARD]
        extra = lines(sentences[share : share + size // 600], language, "kokoro", unheard)
        said += [replace(line, split="unheard") for line in extra]
    return said
