"""What a tokenizer's codes are worth: how they are used, and what can still be read from them.

The reader (`stepaudio.train.reader`) writes text from semantic codes alone, so its error is an upper bound on what the
codes have lost. English is judged by words, Chinese by toned pinyin syllables, since Chinese characters cannot be told
from their sound by so small a reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stepaudio.audio import io
from stepaudio.data.manifest import Utterance
from stepaudio.data.text import spoken
from stepaudio.tokenizer.dual import DualTokenizer, find
from stepaudio.tokenizer.fbank import RATE
from stepaudio.tokenizer.linguistic import SanmBranch
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.codes import perplexity, usage
from stepaudio.train.reader import FILE, Reader, load_reader

ROUNDS = 2000
LANGUAGES = {"en": "word", "zh": "syllable"}
"""What is read and judged, and in which units; other languages count for the use of the codes alone."""


@dataclass(frozen=True)
class Reading:
    """One recording: its codes, what was said and what was read (None where nothing is read)."""

    utterance: Utterance
    codes: DualCodes
    reference: str | None
    hypothesis: str | None


@dataclass(frozen=True)
class Rate:
    """Errors over reference units, with a 95 % bootstrap interval over recordings."""

    value: float
    low: float
    high: float
    units: int
    recordings: int


def read(folder: str | Path, utterances: Sequence[Utterance]) -> Iterator[Reading]:
    """Tokenize recordings with the tokenizer of a folder or name, and read the codes with the reader beside it.

    A tokenizer without a reader is only counted. Raises MissingError for a tokenizer that is not there.
    """
    reader = load_reader(find(folder) / FILE) if (find(folder) / FILE).is_file() else None
    with DualTokenizer.load(folder) as tokenizer:
        for utterance in utterances:
            codes = tokenizer.encode(io.read(utterance.audio, rate=RATE))
            language = utterance.language or "en"
            if reader is None or language not in LANGUAGES:
                yield Reading(utterance, codes, None, None)
                continue
            reference = utterance.spoken or spoken(utterance.text, language)
            yield Reading(utterance, codes, reference, _text(tokenizer, *reader, codes))


@torch.inference_mode()
def _text(tokenizer: DualTokenizer, reader: Reader, pieces: list[str], codes: DualCodes) -> str:
    branch = tokenizer.semantic
    assert isinstance(branch, SanmBranch)  # a reader stands only beside a tokenizer of our kind
    vectors = branch.quantizer.decode(torch.from_numpy(codes.semantic))[None]
    return reader.read(vectors, torch.tensor([vectors.shape[1]]), pieces)[0]


def report(readings: Sequence[Reading], *, codebooks: tuple[int, int] = (1024, 4096)) -> dict[str, Any]:
    """Use and perplexity of both codebooks, and error rates by language and by source."""
    linguistic, semantic = (
        np.bincount(np.concatenate([getattr(reading.codes, name) for reading in readings]), minlength=size)
        for name, size in zip(("linguistic", "semantic"), codebooks, strict=True)
    )
    figures: dict[str, Any] = {
        "recordings": len(readings),
        "seconds": round(sum(reading.utterance.duration for reading in readings), 1),
        "linguistic": _use(linguistic),
        "semantic": _use(semantic),
        "errors": {},
    }
    for language, unit in LANGUAGES.items():
        own = [r for r in readings if r.reference and (r.utterance.language or "en") == language]
        if own:
            by_source = {
                source: error_rate([r for r in own if r.utterance.source == source])
                for source in sorted({r.utterance.source for r in own})
            }
            figures["errors"][language] = {"unit": unit, "all": error_rate(own), "by_source": by_source}
    return figures


def _use(counts: NDArray[np.int64]) -> dict[str, float]:
    return {"codes": len(counts), "tokens": int(counts.sum()), "usage": usage(counts), "perplexity": perplexity(counts)}


def error_rate(readings: Sequence[Reading], seed: int = 0) -> Rate:
    """Edits over units of the references, in all; recordings are resampled for the interval (Bisani and Ney 2004)."""
    from rapidfuzz.distance import Levenshtein

    pairs = [((r.reference or "").split(), (r.hypothesis or "").split()) for r in readings]
    edits = np.array([Levenshtein.distance(reference, hypothesis) for reference, hypothesis in pairs])
    units = np.array([len(reference) for reference, _ in pairs])
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(ROUNDS, len(pairs)))
    low, high = np.percentile(edits[drawn].sum(axis=1) / np.maximum(units[drawn].sum(axis=1), 1), [2.5, 97.5])
    return Rate(float(edits.sum() / max(units.sum(), 1)), float(low), float(high), int(units.sum()), len(pairs))
