"""The excitation of a neural source-filter vocoder: sines at the pitch and its harmonics, noise where there is none.

Two generations: SineGen adds up the phase sample by sample, SineGen2 frame by frame and interpolates it (Wang et al.,
arXiv 1904.12088; the released vocoders at 22.05 and 24 kHz). Upstream draws the noise anew on every call. Here it
depends on the seed and the position alone, so a stream, an offline call and a row of a batch give the same sound.

Shapes: B batch, F frames, H harmonics (the fundamental among them), T = F * hop samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stepaudio.decoder.convolution import Stream, align

Phase = Literal["sample", "frame"]


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """`phase` says what it adds up by; `rate` in Hz, `hop` in samples per frame. `noise` is the noise under voiced
    sound; a third of `amplitude` stands in for unvoiced sound, which is where the pitch is not above `voiced_hz`."""

    rate: int
    hop: int
    phase: Phase
    harmonics: int = 9
    amplitude: float = 0.1
    noise: float = 0.003
    voiced_hz: float = 10.0


class Source(nn.Module):
    """Pitch [B, F] in Hz, 0 where unvoiced, to an excitation [B, T]. With frame-wise phase the sound of a frame is
    complete half a frame later."""

    def __init__(self, config: SourceConfig) -> None:
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.harmonics, 1)

    def forward(self, f0_BF: Tensor, stream: Stream) -> Tensor:
        merged = torch.tanh(self.l_linear(self.sines(f0_BF, stream)))
        return merged.squeeze(-1)

    @torch.no_grad()
    def sines(self, f0_BF: Tensor, stream: Stream) -> Tensor:
        """The sines and their noise [B, T, H]."""
        config = self.config
        phase_BT = self._phase(f0_BF.double(), stream)
        pitch_BT, noise_HT = f0_BF.repeat_interleave(config.hop, 1), self._noise(f0_BF, stream)
        phase_BT, pitch_BT, noise_HT = align((self, "align"), stream, phase_BT, pitch_BT, noise_HT)
        numbers_H = torch.arange(1, config.harmonics + 1, device=f0_BF.device, dtype=torch.float64)
        cycles_BTH = phase_BT[..., None] * numbers_H
        if config.phase == "sample":
            cycles_BTH = cycles_BTH + self._first_phases(stream.seed).to(f0_BF.device)
        sines_BTH = torch.sin(2 * math.pi * (cycles_BTH % 1)).float()
        voiced_BT1 = (pitch_BT > config.voiced_hz)[..., None]
        level_BT1 = torch.where(voiced_BT1, config.noise, config.amplitude / 3)
        return voiced_BT1 * config.amplitude * sines_BTH + level_BT1 * noise_HT.T

    def _phase(self, f0_BF: Tensor, stream: Stream) -> Tensor:
        """Phase [B, T] of the fundamental in cycles, modulo whole ones; T lags half a frame if it goes by frames."""
        if self.config.phase == "sample":
            return self._sample_phase(f0_BF, stream)
        return self._frame_phase(f0_BF, stream)

    def _sample_phase(self, f0_BF: Tensor, stream: Stream) -> Tensor:
        steps_BF = f0_BF / self.config.rate
        kept_B1 = stream.take(self)
        begin_B1 = f0_BF.new_zeros(len(f0_BF), 1) if kept_B1 is None else kept_B1
        end_BF = begin_B1 + torch.cumsum(steps_BF, 1) * self.config.hop
        stream.keep(self, torch.cat([begin_B1, end_BF], 1)[:, -1:] % 1)
        within_T = torch.arange(1, self.config.hop + 1, device=f0_BF.device)
        start_BF = end_BF - steps_BF * self.config.hop
        return (start_BF[..., None] + steps_BF[..., None] * within_T).flatten(1)

    def _frame_phase(self, f0_BF: Tensor, stream: Stream) -> Tensor:
        """Each frame's phase belongs to its middle; before the first and after the last middle it stands still."""
        config = self.config
        half = config.hop // 2
        kept_B1 = stream.take(self)
        turns_BF = f0_BF * (config.hop / config.rate)
        if kept_B1 is None:
            if not f0_BF.shape[1]:
                return f0_BF
            kept_B1, turns_BF = turns_BF[:, :1], turns_BF[:, 1:]
            parts = [kept_B1.expand(-1, half)]
        else:
            parts = []
        middle_BF = kept_B1 + torch.cumsum(turns_BF, 1)
        last_B1 = torch.cat([kept_B1, middle_BF], 1)[:, -1:]
        between_T = (torch.arange(config.hop, device=f0_BF.device) + 0.5) / config.hop
        parts.append(((middle_BF - turns_BF)[..., None] + turns_BF[..., None] * between_T).flatten(1))
        if stream.last:
            parts.append(last_B1.expand(-1, config.hop - half))
        stream.keep(self, last_B1 % 1)
        return torch.cat(parts, 1)

    def _first_phases(self, seed: int) -> Tensor:
        """Where each harmonic starts, in cycles; the fundamental at 0. (Upstream's frame-wise generator draws these
        too, but adds them to a sample that its interpolation never reads.)"""
        draws = np.random.Generator(np.random.Philox(key=seed)).uniform(-0.5, 0.5, self.config.harmonics)
        draws[0] = 0
        return torch.from_numpy(draws)

    def _noise(self, f0_BF: Tensor, stream: Stream) -> Tensor:
        """Normal noise [H, T] of the frames that follow, drawn frame by frame from seed and position."""
        config = self.config
        position = stream.take((self, "frame")) or 0
        frames = f0_BF.shape[1]
        stream.keep((self, "frame"), position + frames)
        noise = np.empty((frames, config.harmonics, config.hop), np.float32)
        for frame in range(frames):
            draw = np.random.Generator(np.random.Philox(key=np.array([stream.seed, position + frame + 1], np.uint64)))
            draw.standard_normal(dtype=np.float32, out=noise[frame])
        return torch.from_numpy(noise).to(f0_BF.device).permute(1, 0, 2).flatten(1)
