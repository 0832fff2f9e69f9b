"""Training of the vocoder: spectra of the right sound at several resolutions first, then a game with discriminators.

    train_vocoder(VocoderConfig(manifest), LoopConfig(out, steps=2400))
    train_vocoder(VocoderConfig(manifest, init=out / VOCODER, adversarial=True), LoopConfig(out2, steps=1500))

The first stage learns fast and sounds dull, for it may blur what it cannot foresee; the second gives that back.
Sources: arXiv 1910.11480 (spectral losses), arXiv 2306.00814 (Vocos).

Shapes: B segments, T samples, M mel bands, F mel frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from stepaudio.data.manifest import Utterance, read_manifest
from stepaudio.decoder.mel import MelSpec
from stepaudio.decoder.vocos import VOCODER, Vocos, VocosConfig, load_vocos, save_vocos
from stepaudio.errors import InputError
from stepaudio.train.discriminators import Discriminators, adversarial_loss, feature_loss, hinge_loss
from stepaudio.train.log import Line
from stepaudio.train.loop import Epochs, Loop, LoopConfig, Loss, Task

NANO = VocosConfig(n_fft=960, hop=240, upsample=2)
"""Mel frames of 20 ms, as the flow gives them, two spectra each."""
LENGTHS = (256, 512, 1024, 2048)
"""Transforms that sounds are compared by."""
_MEL_WEIGHT, _FEATURE_WEIGHT, _ADVERSARIAL_WEIGHT = 1.0, 2.0, 0.3


@dataclass(frozen=True)
class VocoderConfig:
    """What is learned from what. `init` is the weights to begin with, which the adversarial stage needs."""

    manifest: Path
    model: VocosConfig = NANO
    init: Path | None = None
    adversarial: bool = False
    frames: int = 32
    """Mel frames of a segment."""
    batch: int = 16
    """Segments of a micro-batch."""
    learning_rate: float = 1e-3
    discriminator_rate: float = 5e-4
    seed: int = 0


@dataclass
class Segments:
    """Samples [B, T]."""

    samples: Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(self.samples.to(device))


Item = list[tuple[int, float]]
"""Recordings of a micro-batch, and where in it each segment begins, from 0 to 1."""


class _Players(nn.Module):
    """The vocoder and, in the second stage, its discriminators, under one roof for the loop."""

    vocoder: Vocos
    discriminators: Discriminators | None

    def __init__(self, vocoder: Vocos, discriminators: Discriminators | None) -> None:
        super().__init__()
        self.vocoder = vocoder
        self.discriminators = discriminators


def train_vocoder(training: VocoderConfig, config: LoopConfig) -> Iterator[Line]:
    """Learn, or go on where a run in `config.out` stopped, giving its log; at the end the folder has
    `vocoder.safetensors`. Raises MissingError and InputError."""
    task = VocoderTask(training)
    loop = Loop(task, config)
    yield from loop.run()
    with loop.averaged():
        save_vocos(task.vocoder, config.out / VOCODER, dtype=torch.float16)


class VocoderTask(Task[Item, Segments]):
    """Mel to sound, on random segments of all recordings of the split train."""

    model: _Players

    def __init__(self, config: VocoderConfig, utterances: Sequence[Utterance] | None = None) -> None:
        if config.adversarial and config.init is None:
            raise InputError("the adversarial stage goes on from weights: give those of the first stage", param="init")
        self.config = config
        self.utterances = utterances or read_manifest(config.manifest, split="train")
        torch.manual_seed(config.seed)
        vocoder = Vocos(config.model) if config.init is None else load_vocos(config.init)
        self.spec = vocoder.config.mel
        self.model = _Players(vocoder, Discriminators() if config.adversarial else None)
        self.cursor = Epochs(self._plan)
        self.identity = {
            "vocoder": asdict(vocoder.config),
            "adversarial": config.adversarial,
            "batch": config.batch,
            "rates": [config.learning_rate, config.discriminator_rate],
            "clips": [len(self.utterances), round(sum(utterance.duration for utterance in self.utterances), 3)],
        }

    @property
    def vocoder(self) -> Vocos:
        return self.model.vocoder

    def optimizers(self) -> list[Optimizer]:
        players: list[tuple[nn.Module | None, float]] = [
            (self.model.vocoder, self.config.learning_rate),
            (self.model.discriminators, self.config.discriminator_rate),
        ]
        return [AdamW(own.parameters(), lr=rate, betas=(0.8, 0.99)) for own, rate in players if own is not None]

    def _plan(self, epoch: int) -> list[Item]:
        """Every recording as often as it has segments, in batches, in an order of this epoch's own."""
        rng = np.random.default_rng((self.config.seed, epoch))
        seconds = self.config.frames * self.spec.hop / self.spec.rate
        times = [max(1, round(u.duration / seconds)) for u in self.utterances]
        order = rng.permutation(np.repeat(np.arange(len(times)), times))
        starts = rng.random(len(order))
        size = self.config.batch
        pairs = list(zip(order.tolist(), starts.tolist(), strict=True))
        return [pairs[at : at + size] for at in range(0, len(pairs) - size + 1, size)] or [pairs]

    def load(self, item: Item) -> Segments:
        length = self.config.frames * self.spec.hop
        rows = []
        for index, begin in item:
            samples = self.utterances[index].samples(self.spec.rate)
            start = int(begin * max(0, len(samples) - length))
            cut = torch.from_numpy(samples[start : start + length])
            rows.append(F.pad(cut, (0, length - len(cut))))
        return Segments(torch.stack(rows))

    def loss(self, batch: Segments, turn: int) -> Loss:
        """The vocoder's loss, or in the second turn that of the discriminators."""
        real_BT = batch.samples
        count = len(real_BT)
        judge = self.model.discriminators
        if turn == 1:
            assert judge is not None
            with torch.no_grad():
                fake_BT = self.vocoder(self.spec(real_BT))[0]
            return Loss(count * hinge_loss(judge(real_BT), judge(fake_BT)), count)
        fake_BT = self.vocoder(self.spec(real_BT))[0].float()
        spectra, mel = spectral_loss(fake_BT, real_BT), mel_loss(fake_BT, real_BT, self.spec.rate)
        total = spectra + _MEL_WEIGHT * mel
        figures: dict[str, tuple[Tensor | float, float]] = {
            "spectra": (spectra * count, count),
            "mel": (mel * count, count),
        }
        if judge is not None:
            fake = judge(fake_BT)
            with torch.no_grad():
                real = judge(real_BT)
            features, fooled = feature_loss(real, fake), adversarial_loss(fake)
            total = total + _FEATURE_WEIGHT * features + _ADVERSARIAL_WEIGHT * fooled
            figures |= {"features": (features * count, count), "fooled": (fooled * count, count)}
        return Loss(total * count, count, figures)


def spectral_loss(made_BT: Tensor, real_BT: Tensor, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """Over transforms, the mean of spectral convergence |R - M| / |R| (Frobenius norms of magnitudes, over the whole
    batch) and of the mean |log R - log M|."""
    losses = []
    with torch.autocast(made_BT.device.type, enabled=False):
        for n_fft in lengths:
            made, real = (magnitudes(x_BT.float(), n_fft) for x_BT in (made_BT, real_BT))
            convergence = (real - made).norm() / real.norm().clamp(min=1e-6)
            losses.append(convergence + (real.log() - made.log()).abs().mean())
    return torch.stack(losses).mean()


def magnitudes(x_BT: Tensor, n_fft: int) -> Tensor:
    """Magnitudes [B, n_fft / 2 + 1, F] of a Hann window's spectrum at quarter-window hops, at least 1e-4."""
    window = torch.hann_window(n_fft, device=x_BT.device)
    spectrum = torch.stft(x_BT, n_fft, n_fft // 4, window=window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-8).sqrt()


def mel_loss(made_BT: Tensor, real_BT: Tensor, rate: int) -> Tensor:
    """The mean distance of log-mel frames, 100 bands over all frequencies every 256 samples."""
    spec = MelSpec(rate, 1024, 256, bands=100, high_hz=rate / 2)
    with torch.autocast(made_BT.device.type, enabled=False):
        return F.l1_loss(spec(made_BT.float()), spec(real_BT.float()))
