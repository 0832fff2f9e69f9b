"""Recordings as a flow learns from them: rows of codes, mel frames of the same length, and the speaker.

Shapes: R rows, T mel frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepaudio.audio.pcm import Samples
from stepaudio.data.codes import read_tokenized
from stepaudio.data.manifest import Utterance
from stepaudio.decoder.flow import nearest
from stepaudio.decoder.mel import MelSpec
from stepaudio.decoder.tokens import realign
from stepaudio.tokenizer.interleave import interleave
from stepaudio.tokenizer.streaming import DualCodes

FRAMES = 2
"""Mel frames of a row."""
PEAK = 0.7
"""The loudest sample of a recording, as the decoder hears and speaks."""


@dataclass(frozen=True)
class Clip:
    """`rows` [R, 2] as `realign` gives them, and `mel` [2 R, M] in float16."""

    rows: Tensor
    mel: Tensor


class Recordings:
    """Tokenized recordings as clips; a clip is made when it is first asked for, and kept."""

    def __init__(self, tokenized: Sequence[tuple[Utterance, DualCodes]], spec: MelSpec) -> None:
        self._tokenized, self._spec = tokenized, spec
        self._made: dict[int, Clip] = {}
        self.speakers = [utterance.speaker for utterance, _ in tokenized]
        self.seconds = [utterance.duration for utterance, _ in tokenized]

    @classmethod
    def read(cls, manifest: Path, tokenizer: str, spec: MelSpec, *, split: str = "train") -> Recordings:
        """Those of a manifest that `stepaudio data tokenize` has tokenized. Raises MissingError and InputError."""
        return cls(read_tokenized(manifest, tokenizer, split=split), spec)

    def __len__(self) -> int:
        return len(self._tokenized)

    def __getitem__(self, index: int) -> Clip:
        if index not in self._made:
            utterance, codes = self._tokenized[index]
            samples = utterance.samples(self._spec.rate)
            self._made[index] = clip(samples, codes, self._spec)
        return self._made[index]


def clip(samples: Samples, codes: DualCodes, spec: MelSpec) -> Clip:
    """Samples [T] at the mel's rate and their codes; what one has more of at the end than the other is left out, and
    a last half row is completed."""
    rows = realign(interleave(codes.linguistic, codes.semantic))
    mel_TM = mel_of(samples, spec)
    count = min(len(rows), -(-len(mel_TM) // FRAMES))
    if len(mel_TM) < FRAMES * count:
        mel_TM = nearest(mel_TM, FRAMES * count)
    return Clip(torch.from_numpy(rows[:count].astype(np.int16)), mel_TM[: FRAMES * count].half())


def mel_of(samples: Samples, spec: MelSpec) -> Tensor:
    """The mel [T, M] of samples brought to the peak that the decoder knows."""
    level = np.float32(PEAK / max(float(np.abs(samples).max(initial=0.0)), 1e-3))
    return spec(torch.from_numpy(samples * level)[None])[0].T
