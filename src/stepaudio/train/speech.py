"""Transcribed speech for training: a manifest, its features, and batches that are the same on every run.

A manifest is JSON lines with at least `audio` (a path, relative to the manifest), `text` and `duration` in
seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepaudio.audio import io
from stepaudio.errors import InputError
from stepaudio.tokenizer.fbank import RATE, Floats, KaldiFbank
from stepaudio.tokenizer.gain import normalise_peak
from stepaudio.tokenizer.lfr import LfrFrontend


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest."""

    audio: Path
    text: str
    duration: float

    def samples(self) -> Floats:
        """The recording at 16 kHz, at the loudness the tokenizer hears."""
        return normalise_peak(io.read(self.audio, rate=RATE))


def read_manifest(path: Path) -> list[Utterance]:
    """All lines of a manifest. Raises InputError with the number of the first bad one."""
    utterances = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                audio, text, duration = path.parent / entry["audio"], str(entry["text"]), float(entry["duration"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"line {number} of {path} is no manifest entry: {error!r}") from error
            if not text.strip() or not duration > 0:
                raise InputError(f"line {number} of {path} has no text or no duration")
            utterances.append(Utterance(audio, text, duration))
    if not utterances:
        raise InputError(f"{path} is empty")
    return utterances


def fit_frontend(utterances: Sequence[Utterance], *, stack: int, skip: int, most: int = 500) -> LfrFrontend:
    """The front end whose features have mean 0 and variance 1 per mel band, over `most` evenly spread
    utterances."""
    fbank = KaldiFbank()
    step = -(-len(utterances) // most)
    count, total, squares = 0, np.zeros(fbank.n_mels), np.zeros(fbank.n_mels)
    for utterance in utterances[::step]:
        frames = fbank(utterance.samples()).astype(np.float64)
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
