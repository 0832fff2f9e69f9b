"""Transcribed speech as a trainer sees it: features, labels, and batches that are the same on every run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepaudio.data.manifest import Utterance
from stepaudio.errors import InputError
from stepaudio.tokenizer.fbank import RATE, Floats, KaldiFbank
from stepaudio.tokenizer.gain import normalise_peak
from stepaudio.tokenizer.lfr import LfrFrontend


def samples(utterance: Utterance) -> Floats:
    """The recording at 16 kHz, at the loudness the tokenizer hears."""
    return normalise_peak(utterance.samples(RATE))


def phoneme_labels(
    utterance: Utterance,
    ids: dict[str, int],
    frontend: LfrFrontend,
    frames: int,
    per_frame: int,
    stretch: float,
    unknown: int,
) -> NDArray[np.int64]:
    """The phoneme at `per_frame` evenly spread moments of each frame, [frames, per_frame]; the last one lasts.

    A phoneme without an id is `unknown`. `stretch` is by how much the recording became longer since it was timed.
    """
    hop = frontend.fbank.hop / frontend.fbank.rate
    centre = np.arange(frames) * frontend.skip * hop + frontend.fbank.window / frontend.fbank.rate / 2
    offset = ((np.arange(per_frame) + 0.5) / per_frame - 0.5) * frontend.skip * hop
    moments = (centre[:, None] + offset) * 1000 / stretch
    index = np.searchsorted(np.array(utterance.ends), moments, side="right").clip(max=len(utterance.ends) - 1)
    labels: NDArray[np.int64] = np.array([ids.get(symbol, unknown) for symbol in utterance.phonemes])[index]
    return labels


def phoneme_shares(utterances: Sequence[Utterance], ids: dict[str, int]) -> NDArray[np.float32]:
    """The share of all time that each phoneme takes [P], none of them 0."""
    total = np.ones(len(ids))
    for utterance in utterances:
        for symbol, begin, end in zip(utterance.phonemes, (0, *utterance.ends), utterance.ends, strict=False):
            if symbol in ids:
                total[ids[symbol]] += end - begin
    shares: NDArray[np.float32] = (total / max(1.0, total.sum())).astype(np.float32)
    return shares


def fit_frontend(utterances: Sequence[Utterance], *, stack: int, skip: int, most: int = 500) -> LfrFrontend:
    """The front end whose features have mean 0 and variance 1 per mel band, over `most` evenly spread
    utterances."""
    fbank = KaldiFbank()
    step = -(-len(utterances) // most)
    count, total, squares = 0, np.zeros(fbank.n_mels), np.zeros(fbank.n_mels)
    for utterance in utterances[::step]:
        frames = fbank(samples(utterance)).astype(np.float64)
        count += len(frames)
        total += frames.sum(axis=0)
        squares += (frames**2).sum(axis=0)
    if count == 0:
        raise InputError("the manifest's recordings are all too short to have a single frame")
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    shift, scale = (np.tile(v, stack).astype(np.float32) for v in (-mean, 1 / deviation))
    return LfrFrontend(shift, scale, stack, skip, fbank)


def batches(durations: Sequence[float], *, seconds: float, seed: int, epoch: int) -> list[list[int]]:
    """Indices of every utterance once, in batches of at most `seconds` padded audio, alike in length.

    The same arguments give the same batches, so an interrupted epoch is continued by its position. An
    utterance longer than `seconds` is a batch of its own.
    """
    rng = np.random.default_rng((seed, epoch))
    # A little noise on the lengths mixes the company an utterance keeps from epoch to epoch.
    noisy = np.asarray(durations) * rng.uniform(0.9, 1.1, len(durations))
    groups: list[list[int]] = []
    longest = 0.0
    for index in np.argsort(noisy, kind="stable").tolist():
        longest = max(longest, durations[index])
        if groups and (len(groups[-1]) + 1) * longest <= seconds:
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = durations[index]
    return [groups[i] for i in rng.permutation(len(groups))]
