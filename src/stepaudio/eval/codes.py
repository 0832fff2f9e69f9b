"""What a tokenizer's codes are worth: how they are used, and what can still be read from them.

The reader (`stepaudio.train.reader`) sees semantic codes alone, so its errors are an upper bound on what the codes have
lost. It is judged by three measures: `words`, phonemes put together by its lexicon and bigram; `pieces`, text written
piece by piece without either; `phonemes`, what it hears at each moment, where the manifest tells them. Words and pieces
are English only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stepaudio.data.manifest import Utterance
from stepaudio.data.text import spoken
from stepaudio.eval.metrics.errors import count_errors
from stepaudio.eval.metrics.intervals import Estimate, ratio
from stepaudio.tokenizer.dual import DualTokenizer, find
from stepaudio.tokenizer.fbank import RATE
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.codes import perplexity, usage
from stepaudio.train.reader import FILE, Reading, load_reader


@dataclass(frozen=True)
class Heard:
    """One recording: its codes, and per measure what was said and what was read, unit by unit."""

    utterance: Utterance
    codes: DualCodes
    read: dict[str, tuple[list[str], list[str]]]


def hear(folder: str | Path, utterances: Sequence[Utterance]) -> Iterator[Heard]:
    """Tokenize recordings with the tokenizer of a folder or name, and read the codes with the reader beside it.

    A tokenizer without a reader is only counted. Raises MissingError for a tokenizer that is not there.
    """
    literate = load_reader(find(folder) / FILE) if (find(folder) / FILE).is_file() else None
    with DualTokenizer.load(folder) as tokenizer:
        for utterance in utterances:
            codes = tokenizer.encode(utterance.samples(RATE))
            read = {}
            if literate is not None:
                # A reader stands only beside a tokenizer of our kind, whose semantic branch has a quantiser.
                quantizer = tokenizer.semantic.quantizer  # type: ignore[attr-defined]
                with torch.inference_mode():
                    reading = literate.read(quantizer.decode(torch.from_numpy(codes.semantic)))
                read = _compared(utterance, reading)
            yield Heard(utterance, codes, read)


def _compared(utterance: Utterance, reading: Reading) -> dict[str, tuple[list[str], list[str]]]:
    """References and what was read instead, for the measures that apply to this recording."""
    read = {}
    if utterance.phonemes and reading.phonemes is not None:
        read["phonemes"] = (_phonemes(utterance.phonemes), _phonemes(reading.phonemes))
    if (utterance.language or "en") == "en":
        said = (utterance.spoken or spoken(utterance.text, "en")).split()
        read["pieces"] = (said, reading.text.split())
        if reading.words is not None:
            read["words"] = (said, reading.words.split())
    return read


def _phonemes(symbols: str) -> list[str]:
    """Without pauses; a phoneme twice in a row cannot be told from a long one."""
    sounds = symbols.replace(" ", "")
    return [symbol for place, symbol in enumerate(sounds) if sounds[place - 1 : place] != symbol]


def report(heard: Sequence[Heard]) -> dict[str, Any]:
    """Use and perplexity of both codebooks, and error rates by language, measure and source of the text."""
    linguistic, semantic = (
        np.bincount(np.concatenate([getattr(one.codes, name) for one in heard]), minlength=size)
        for name, size in (("linguistic", 1024), ("semantic", 4096))
    )
    errors: dict[str, dict[str, dict[str, Estimate]]] = {}
    for one in heard:
        for measure in one.read:
            errors.setdefault(one.utterance.language or "en", {}).setdefault(measure, {})
    for language, measures in errors.items():
        for measure, rates in measures.items():
            own = [one for one in heard if measure in one.read and (one.utterance.language or "en") == language]
            rates["all"] = error_rate([one.read[measure] for one in own])
            for source in sorted({one.utterance.source for one in own} - {""}):
                rates[source] = error_rate([one.read[measure] for one in own if one.utterance.source == source])
    return {
        "recordings": len(heard),
        "seconds": round(sum(one.utterance.duration for one in heard), 1),
        "linguistic": _use(linguistic),
        "semantic": _use(semantic),
        "errors": errors,
    }


def _use(counts: NDArray[np.int64]) -> dict[str, float]:
    return {"codes": len(counts), "tokens": int(counts.sum()), "usage": usage(counts), "perplexity": perplexity(counts)}


def error_rate(pairs: Sequence[tuple[list[str], list[str]]]) -> Estimate:
    """Edits over units of the references, in all, from (reference, hypothesis) of each recording."""
    errors = [count_errors(reference, hypothesis) for reference, hypothesis in pairs]
    return ratio([one.total for one in errors], [one.length for one in errors])
