"""Low-frame-rate features as Paraformer reads speech: a Kaldi filterbank, stacked, thinned, normalised.

With the released numbers (7 frames stacked, every 6th kept) one 560-dim vector covers 60 ms. The first frame
is repeated (stack - 1) / 2 times before the start and the last one after the end, so F filterbank frames
give ceil(F / skip) vectors. Dither is off: the same samples always give the same vectors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stepaudio.errors import InputError
from stepaudio.tokenizer.fbank import Floats, KaldiFbank


@dataclass(frozen=True)
class LfrFrontend:
    """Samples to features [T, stack * n_mels]: (stacked + shift) * scale, both vectors of that width."""

    shift: Floats
    scale: Floats
    stack: int = 7
    skip: int = 6
    fbank: KaldiFbank = field(default_factory=KaldiFbank)

    def __post_init__(self) -> None:
        width = self.stack * self.fbank.n_mels
        if self.shift.shape != (width,) or self.scale.shape != (width,):
            raise InputError(
                f"normalisation has {self.shift.shape} and {self.scale.shape} values; "
                f"{self.stack} frames of {self.fbank.n_mels} mels need {width} each"
            )

    @property
    def codes_per_second(self) -> float:
        return self.fbank.rate / (self.fbank.hop * self.skip)

    def samples_for(self, features: int) -> int:
        """Samples from the start of a stream that its first n features depend on."""
        frames = (features - 1) * self.skip + self.stack - (self.stack - 1) // 2
        return (frames - 1) * self.fbank.hop + self.fbank.window

    def __call__(self, samples: Floats) -> Floats:
        stream = LfrStream(self)
        return np.concatenate([stream.push(samples), stream.flush()])


class LfrStream:
    """Features of a stream as soon as all of their samples are there."""

    def __init__(self, frontend: LfrFrontend) -> None:
        self.frontend = frontend
        self.reset()

    def reset(self) -> None:
        self._samples = np.zeros(0, dtype=np.float32)
        self._frames = np.zeros((0, self.frontend.fbank.n_mels), dtype=np.float32)
        self._started = False

    def push(self, samples: Floats) -> Floats:
        """Samples [T] to the features that became complete, [N, width]."""
        f = self.frontend
        self._samples = np.concatenate([self._samples, samples])
        frames = f.fbank(self._samples)
        self._samples = self._samples[len(frames) * f.fbank.hop :].copy()
        if len(frames) and not self._started:
            self._frames = np.repeat(frames[:1], (f.stack - 1) // 2, axis=0)
            self._started = True
        self._frames = np.concatenate([self._frames, frames])
        return self._take(max(0, (len(self._frames) - f.stack) // f.skip + 1))

    def flush(self) -> Floats:
        """The features of the end; the stream is then as new."""
        f = self.frontend
        count = max(0, -(-(len(self._frames) - (f.stack - 1) // 2) // f.skip)) if self._started else 0
        missing = (count - 1) * f.skip + f.stack - len(self._frames)
        if count and missing > 0:
            self._frames = np.concatenate([self._frames, np.repeat(self._frames[-1:], missing, axis=0)])
        features = self._take(count)
        self.reset()
        return features

    def _take(self, count: int) -> Floats:
        f = self.frontend
        if count == 0:
            return np.zeros((0, len(f.shift)), dtype=np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(self._frames, f.stack, axis=0)[:: f.skip][:count]
        features = (windows.transpose(0, 2, 1).reshape(count, -1) + f.shift) * f.scale
        self._frames = self._frames[count * f.skip :].copy()
        return features


def read_am_mvn(path: Path) -> tuple[Floats, Floats]:
    """Shift and scale from a Kaldi nnet1 text file (`am.mvn`): its <AddShift> and <Rescale> vectors."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return _component(text, "AddShift", path), _component(text, "Rescale", path)


def _component(text: str, name: str, path: Path) -> Floats:
    found = re.search(rf"<{name}>\s+(\d+)\s+\d+\s+<LearnRateCoef>\s+\S+\s+\[([^\]]*)\]", text)
    if found is None:
        raise InputError(f"{path} has no <{name}> vector: it is not a Kaldi normalisation file")
    values = np.array(found[2].split(), dtype=np.float32)
    if len(values) != int(found[1]):
        raise InputError(f"<{name}> in {path} promises {found[1]} values and holds {len(values)}")
    return values
