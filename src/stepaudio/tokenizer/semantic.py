"""The semantic tokenizer: a bidirectional encoder over clips, applied to streams and long audio by windows.

A plan cuts the audio into consecutive stretches. Each stretch is encoded inside a window that also holds up
to `left` seconds before and `right` seconds after it, and only the stretch's own codes are kept. One rule,
three plans:

| plan     | stretch         | left   | right  | for                                                     |
| LONG     | 28 s, then 26 s | 2 s    | 2 s    | files: up to 30 s is one window, longer has no seams    |
| LIVE     | 0.24 s          | 2.88 s | 0.22 s | streams: a code is final 0.22 to 0.46 s after its sound |
| RELEASED | 30 s            | 0      | 0      | the released tokenizer's cut, with its seams            |

All cuts lie on the 40 ms grid of codes, so code j always covers samples [640 j, 640 (j + 1)) whatever the
plan. A window starts its work when one sample more than it needs is there or the stream has ended; streamed
and offline codes of one plan are therefore the same. Windows shorter than 480 samples give no codes, as in
the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from stepaudio.errors import InputError, MissingError
from stepaudio.tokenizer import s3
from stepaudio.tokenizer.fbank import HOP, RATE, Floats
from stepaudio.tokenizer.interleave import Codes

SAMPLES_PER_CODE = 640
SHORTEST = 480
"""Samples of the shortest clip that is encoded."""
RELEASED_FILE = "speech_tokenizer_v1.onnx"

ClipEncoder = Callable[[Sequence[Floats]], list[Codes]]


@dataclass(frozen=True)
class WindowPlan:
    """Stretches and their context, in samples. `first`: the first stretch (0: like all others)."""

    stretch: int
    left: int = 0
    right: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        if self.stretch <= 0 or any(n % SAMPLES_PER_CODE for n in (self.stretch, self.left, self.first)):
            raise InputError(f"stretches and left context must be whole codes of {SAMPLES_PER_CODE} samples")


LONG = WindowPlan(stretch=26 * RATE, left=2 * RATE, right=2 * RATE, first=28 * RATE)
LIVE = WindowPlan(stretch=RATE * 24 // 100, left=RATE * 288 // 100, right=RATE * 22 // 100)
RELEASED = WindowPlan(stretch=30 * RATE)


@dataclass(frozen=True)
class WindowSegment:
    """A window [T] of samples, of whose codes `take` are kept after the first `skip`."""

    clip: Floats
    skip: int
    take: int


class WindowBranch:
    """Samples to codes at 25 Hz by a clip encoder and a plan of windows."""

    codes_per_second = RATE / SAMPLES_PER_CODE

    def __init__(self, encode_clips: ClipEncoder, plan: WindowPlan = LONG, *, codes: int = 4096) -> None:
        self.encode_clips = encode_clips
        self.plan = plan
        self.codes = codes

    def with_plan(self, plan: WindowPlan) -> WindowBranch:
        """The same encoder on other windows."""
        return WindowBranch(self.encode_clips, plan, codes=self.codes)

    def segmenter(self) -> WindowSegmenter:
        return WindowSegmenter(self.plan)

    def encode(self, segments: Sequence[WindowSegment]) -> list[Codes]:
        codes = self.encode_clips([segment.clip for segment in segments])
        return [c[s.skip : s.skip + s.take] for c, s in zip(codes, segments, strict=True)]


class WindowSegmenter:
    """Cuts one stream into the windows of a plan."""

    def __init__(self, plan: WindowPlan) -> None:
        self.plan = plan
        self.reset()

    def reset(self) -> None:
        self._buffer = np.zeros(0, dtype=np.float32)
        self._context = 0  # samples of the buffer that are left context, their codes given already
        self._stretch = self.plan.first or self.plan.stretch

    def push(self, samples: Floats) -> list[WindowSegment]:
        self._buffer = np.concatenate([self._buffer, samples])
        segments = []
        while len(self._buffer) > (end := self._context + self._stretch + self.plan.right):
            segments.append(self._segment(end, self._stretch // SAMPLES_PER_CODE))
            done = self._context + self._stretch
            start = max(0, done - self.plan.left)
            self._buffer = self._buffer[start:].copy()
            self._context = done - start
            self._stretch = self.plan.stretch
        return segments

    def flush(self) -> list[WindowSegment]:
        left = self._context // SAMPLES_PER_CODE
        take = -(-(len(self._buffer) // HOP) // (SAMPLES_PER_CODE // HOP)) - left
        segments = []
        if take > 0 and len(self._buffer) >= SHORTEST:
            segments.append(self._segment(len(self._buffer), take))
        self.reset()
        return segments

    def _segment(self, end: int, take: int) -> WindowSegment:
        return WindowSegment(self._buffer[:end].copy(), self._context // SAMPLES_PER_CODE, take)


def load_released(
    folder: Path,
    *,
    backend: Literal["torch", "onnx"] = "torch",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WindowBranch:
    """The semantic branch of a released `Step-Audio-Tokenizer` folder.

    `backend="torch"` reads the weights of the ONNX file into our own encoder (needs the package `onnx`;
    streams are batched, any device and precision); "onnx" runs the file itself on the CPU.
    """
    path = folder / RELEASED_FILE
    if not path.is_file():
        raise MissingError(f"{path} is missing: download the whole Step-Audio-Tokenizer repository")
    if backend == "onnx":
        session = s3.OnnxS3(path)
        return WindowBranch(session, codes=session.codes)
    encoder = s3.load_onnx_weights(path, device=device, dtype=dtype)
    return WindowBranch(encoder, codes=encoder.codes)
