"""Faster and slower speech: the mel is stretched in time before it becomes sound, so that the pitch stays.

Shapes: B batch, M mel bands, T mel frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepaudio.decoder.streaming import Vocoder
from stepaudio.errors import InputError


@dataclass(frozen=True, slots=True)
class _Stretching:
    """`given` stretched frames are out; `mel` holds the frames from number `first` on."""

    mel_BMT: Tensor
    first: int
    given: int
    vocoder: Any


class Tempo:
    """A `Vocoder` whose sound is `speed` times as fast as that of the one it is made of.

    Stretched frame k lies at frame k * speed, between two frames linearly. So of T frames, ceil(T / speed) remain,
    whatever pieces they come in.
    """

    def __init__(self, vocoder: Vocoder, speed: float) -> None:
        if not 0 < speed < float("inf"):
            raise InputError(f"a speed must be above 0, not {speed}", param="speed")
        self._vocoder = vocoder
        self._speed = speed
        self.rate, self.hop = vocoder.rate, vocoder.hop

    def __call__(
        self, mel_BMT: Tensor, state: _Stretching | None = None, *, last: bool = True
    ) -> tuple[Tensor, _Stretching]:
        state = state or _Stretching(mel_BMT[..., :0], 0, 0, None)
        mel_BMT = torch.cat([state.mel_BMT, mel_BMT], dim=2)
        held = mel_BMT.shape[2]
        # Up to the last frame, or at the end up to one beyond it, which is the last one still.
        end = state.first + held - (0 if last else 1)
        at = torch.arange(state.given, max(state.given, _ceil(end / self._speed)), dtype=torch.float64) * self._speed
        before = (at.floor().long() - state.first).clamp(max=held - 1)
        after = (before + 1).clamp(max=held - 1)
        share = (at - at.floor()).to(mel_BMT)
        stretched_BMT = torch.lerp(mel_BMT[..., before], mel_BMT[..., after], share)
        samples, inner = self._vocoder(stretched_BMT, state.vocoder, last=last)
        given = state.given + len(at)
        done = min(held, max(0, int(given * self._speed) - state.first))
        return samples, _Stretching(mel_BMT[..., done:], state.first + done, given, inner)


def _ceil(value: float) -> int:
    return -int(-value // 1)
