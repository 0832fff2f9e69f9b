"""What the two halves of the tokenizer have in common: segments of one stream, encoded together with others'.

A branch cuts every session's audio into segments (cheap, one segmenter per session) and encodes segments of
many sessions in one call (expensive, shared). Offline encoding is the stream, fed in blocks, so it takes
constant memory and cannot differ from live encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from stepaudio.tokenizer.fbank import RATE, Floats
from stepaudio.tokenizer.interleave import Codes

BLOCK = 20 * RATE
"""Samples worked on at once, however much is pushed."""

S = TypeVar("S")


class Segmenter(Protocol[S]):
    """One session's audio, cut where the encoder wants it. How the samples were pushed never matters."""

    def push(self, samples: Floats) -> list[S]:
        """Take samples [T] at 16 kHz and give the segments that became complete, in order."""
        ...

    def flush(self) -> list[S]:
        """Give the last segments. The segmenter is then as new."""
        ...

    def reset(self) -> None: ...


class Branch(Protocol[S]):
    """An encoder of 16 kHz speech to codes in range(codes)."""

    codes: int
    codes_per_second: float

    def segmenter(self) -> Segmenter[S]: ...

    def encode(self, segments: Sequence[S]) -> list[Codes]:
        """Codes of each segment. A session's segments must come in order, each of them once."""
        ...


class BranchStream:
    """One branch on one stream, without sharing: samples in, codes out."""

    def __init__(self, branch: Branch[S]) -> None:
        self._branch: Branch[object] = branch  # type: ignore[assignment]  # S ties only segmenter and encode
        self._segmenter = self._branch.segmenter()

    def push(self, samples: Floats) -> Codes:
        parts = [
            self._encode(self._segmenter.push(samples[start : start + BLOCK]))
            for start in range(0, len(samples), BLOCK)
        ]
        return np.concatenate([NO_CODES, *parts])

    def flush(self) -> Codes:
        return self._encode(self._segmenter.flush())

    def reset(self) -> None:
        self._segmenter.reset()

    def _encode(self, segments: Sequence[object]) -> Codes:
        return np.concatenate([NO_CODES, *self._branch.encode(segments)])


def encode(branch: Branch[S], samples: Floats) -> Codes:
    """All codes of samples [T] at 16 kHz."""
    stream = BranchStream(branch)
    return np.concatenate([stream.push(samples), stream.flush()])


NO_CODES: Codes = np.zeros(0, dtype=np.int64)
