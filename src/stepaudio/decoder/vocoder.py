"""HiFT: mel frames to sound by a source-filter network whose last step is an inverse Fourier transform.

The vocoder of both released generations (Li et al., arXiv 2309.09493): pitch is predicted from the mel, a source
signal of that pitch is made, and a stack of transposed convolutions filters it, fed with the source's spectrum at
every rate. Every convolution here takes the signal in pieces; a stream gives to the last bit of rounding what one
call gives, `lookahead` frames later.

Shapes: B batch, M mel bands, F mel frames, C channels, S spectral frames, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.decoder.convolution import Conv1d, ConvTranspose1d, Stream, align
from stepaudio.decoder.source import Phase, Source, SourceConfig
from stepaudio.decoder.stft import InverseStft, Stft
from stepaudio.decoder.weight_norm import read_folded, write_split
from stepaudio.errors import InputError


@dataclass(frozen=True, slots=True)
class HiftConfig:
    """Sizes; the defaults are those of the 24 kHz generation, `HIFT_22K` the other's."""

    rate: int = 24_000
    bands: int = 80
    channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernels: tuple[int, ...] = (16, 11, 7)
    source_kernels: tuple[int, ...] = (7, 7, 11)
    kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    n_fft: int = 16
    stft_hop: int = 4
    harmonics: int = 9
    pitch_channels: int = 512
    phase: Phase = "frame"

    @property
    def hop(self) -> int:
        return math.prod(self.upsample_rates) * self.stft_hop


HIFT_24K = HiftConfig()
HIFT_22K = HiftConfig(
    rate=22_050, upsample_rates=(8, 8), upsample_kernels=(16, 16), source_kernels=(7, 11), phase="sample"
)

_LOUDEST_BIN = 1e2
_LOUDEST = 0.99


class Hift(nn.Module):
    """The network. Attribute names are the released tensors' names."""

    def __init__(self, config: HiftConfig = HIFT_24K) -> None:
        super().__init__()
        self.config = config
        self.rate, self.hop = config.rate, config.hop
        self.f0_predictor = PitchPredictor(config.bands, config.pitch_channels)
        self.m_source = Source(SourceConfig(config.rate, config.hop, config.phase, config.harmonics))
        self.stft = Stft(config.n_fft, config.stft_hop)
        self.istft = InverseStft(config.n_fft, config.stft_hop)
        self.conv_pre = Conv1d(config.bands, config.channels, 7)
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        below = math.prod(config.upsample_rates)
        for level, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernels, strict=True)):
            channels = config.channels >> (level + 1)
            self.ups.append(ConvTranspose1d(2 * channels, channels, kernel, stride=rate))
            below //= rate
            self.source_downs.append(_down(config.n_fft + 2, channels, below))
            self.source_resblocks.append(ResBlock(channels, config.source_kernels[level], config.dilations))
            self.resblocks.extend(ResBlock(channels, size, config.dilations) for size in config.kernels)
        self.conv_post = Conv1d(channels, config.n_fft + 2, 7)

    def forward(self, mel_BMF: Tensor, state: Stream | None = None, *, last: bool = True) -> tuple[Tensor, Stream]:
        """See `stepaudio.decoder.streaming.Vocoder`. A stream equals one call to the rounding of float32."""
        stream = (state or Stream()).following(last=last)
        source_BT = self.m_source(self.f0_predictor(mel_BMF, stream), stream)
        return self.synthesise(mel_BMF, source_BT, stream), stream

    def pitch(self, mel_BMF: Tensor) -> Tensor:
        """Pitch [B, F] in Hz of whole utterances: what a pitch loss compares."""
        pitch_BF: Tensor = self.f0_predictor(mel_BMF, Stream().following(last=True))
        return pitch_BF

    def synthesise(self, mel_BMF: Tensor, source_BT: Tensor, stream: Stream) -> Tensor:
        """Samples [B, T] of mel frames and the source that goes with them."""
        spectrum_BKS = self.stft(source_BT, stream)
        source_BCS = torch.cat([spectrum_BKS.real, spectrum_BKS.imag], 1)
        x = self.conv_pre(mel_BMF, stream)
        kinds = len(self.config.kernels)
        for level, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1), stream)
            if up is self.ups[-1]:
                x = self._mirror_first(x, stream)
            fed = self.source_resblocks[level](self.source_downs[level](source_BCS, stream), stream)
            x, fed = align((up, "fed"), stream, x, fed)
            x = x + fed
            filtered = [block(x, stream) for block in self.resblocks[level * kinds : (level + 1) * kinds]]
            x = sum(align((up, "filtered"), stream, *filtered)) / kinds
        x = self.conv_post(F.leaky_relu(x, 0.01), stream)
        log_magnitude_BKS, phase_BKS = x.split(self.config.n_fft // 2 + 1, dim=1)
        magnitude_BKS = log_magnitude_BKS.exp().clamp(max=_LOUDEST_BIN)
        samples_BT: Tensor = self.istft(torch.polar(magnitude_BKS, phase_BKS.sin()), stream)
        return samples_BT.clamp(-_LOUDEST, _LOUDEST)

    def _mirror_first(self, x_BCS: Tensor, stream: Stream) -> Tensor:
        """One step in front, the mirror of the second: the transform has one frame more than there are hops."""
        waiting = stream.take((self, "first"))
        if waiting is not None and not waiting.shape[2]:  # done
            return x_BCS
        x_BCS = x_BCS if waiting is None else torch.cat([waiting, x_BCS], 2)
        if x_BCS.shape[2] < 2:
            stream.keep((self, "first"), x_BCS if x_BCS.shape[2] else None)
            return x_BCS[..., :0]
        stream.keep((self, "first"), x_BCS[..., :0])
        return torch.cat([x_BCS[..., 1:2], x_BCS], 2)

    @property
    def lookahead(self) -> int:
        """Mel frames after which a frame's samples are complete: 19 at 22.05 kHz, 20 at 24 kHz."""
        config = self.config
        steps = math.prod(config.upsample_rates)  # per mel frame, at the finest rate
        # Both ways to the last fusion, in those steps: the mel's, and that of the source made from its pitch.
        source = (
            PitchPredictor.LAYERS + 0.5 * (config.phase == "frame")
        ) * steps + config.n_fft // 2 // config.stft_hop
        x, below = 3.0 * steps, steps
        for level, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernels, strict=True)):
            below //= rate
            x += (kernel - rate) // 2 * below
            fed = source + 1.5 * below * (below > 1) + _ahead(config.source_kernels[level], config.dilations) * below
            x = max(x, fed) + _ahead(max(config.kernels), config.dilations) * below
        return math.ceil((x + 3 + config.n_fft // 2 // config.stft_hop) / steps)


class PitchPredictor(nn.Module):
    """Mel frames [B, M, F] to pitch [B, F] in Hz."""

    LAYERS = 5

    def __init__(self, bands: int, channels: int) -> None:
        super().__init__()
        # Keyed as in the released files, where the activations between them have numbers too.
        widths = [bands] + [channels] * (self.LAYERS - 1)
        self.condnet = nn.ModuleDict({str(2 * i): Conv1d(width, channels, 3) for i, width in enumerate(widths)})
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel_BMF: Tensor, stream: Stream) -> Tensor:
        for conv in self.condnet.values():
            mel_BMF = F.elu(conv(mel_BMF, stream))
        pitch: Tensor = self.classifier(mel_BMF.transpose(1, 2)).squeeze(-1).abs()
        return pitch


class Snake(nn.Module):
    """x + sin(a x)^2 / a with a learnt a per channel (Ziyin et al., arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x_BCT: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x_BCT + torch.sin(x_BCT * alpha) ** 2 / (alpha + 1e-9)


class ResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair around a shortcut."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList([Conv1d(channels, channels, kernel, dilation=dilation) for dilation in dilations])
        self.convs2 = nn.ModuleList([Conv1d(channels, channels, kernel) for _ in dilations])
        self.activations1 = nn.ModuleList([Snake(channels) for _ in dilations])
        self.activations2 = nn.ModuleList([Snake(channels) for _ in dilations])

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for wake1, conv1, wake2, conv2 in layers:
            change = conv2(wake2(conv1(wake1(x), stream)), stream)
            x, change = align((conv1, "shortcut"), stream, x, change)
            x = x + change
        return x


def _ahead(kernel: int, dilations: tuple[int, ...]) -> int:
    """Steps that a residual block looks ahead."""
    return sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)


def _down(inputs: int, outputs: int, rate: int) -> Conv1d:
    """The source's spectrum at one `rate`-th of its frames."""
    if rate == 1:
        return Conv1d(inputs, outputs, 1)
    return Conv1d(inputs, outputs, 2 * rate, stride=rate, pads=(rate // 2, rate // 2))


# ---------------------------------------------------------------- released files


def load_hift(path: Path, settings: Mapping[str, Any] | None = None) -> Hift:
    """A vocoder from a released `hift.pt`, weight norm folded, in evaluation mode.

    `settings` is the `hift` section of the `cosyvoice.yaml` beside it. What it leaves out is told by the tensors: the
    generation by the number of upsampling layers, every width by a shape. Raises MissingError without the file,
    InputError when it is damaged or does not fit.
    """
    tensors = read_folded(path)
    model = Hift(hift_config(settings or {}, _config_of(tensors, path)))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} is not a HiFT vocoder of these sizes: {error}") from error
    return model.eval()


def _config_of(tensors: Mapping[str, Tensor], path: Path) -> HiftConfig:
    levels = sum(name.startswith("ups.") and name.endswith(".weight") for name in tensors)
    try:
        return replace(
            {2: HIFT_22K, 3: HIFT_24K}[levels],
            bands=tensors["conv_pre.weight"].shape[1],
            channels=tensors["conv_pre.weight"].shape[0],
            harmonics=tensors["m_source.l_linear.weight"].shape[1],
            pitch_channels=tensors["f0_predictor.classifier.weight"].shape[1],
        )
    except KeyError as error:
        raise InputError(f"{path} is not a HiFT vocoder of either released generation: {error}") from error


def hift_config(values: Mapping[str, Any], base: HiftConfig) -> HiftConfig:
    """The sizes written in the `hift` section of a released `cosyvoice.yaml`; what it leaves out is `base`'s."""
    transform, pitch = values.get("istft_params", {}), values.get("f0_predictor", {})
    rate = int(values.get("sampling_rate", base.rate))
    return HiftConfig(
        rate=rate,
        bands=int(values.get("in_channels", base.bands)),
        channels=int(values.get("base_channels", base.channels)),
        upsample_rates=tuple(values.get("upsample_rates", base.upsample_rates)),
        upsample_kernels=tuple(values.get("upsample_kernel_sizes", base.upsample_kernels)),
        source_kernels=tuple(values.get("source_resblock_kernel_sizes", base.source_kernels)),
        kernels=tuple(values.get("resblock_kernel_sizes", base.kernels)),
        dilations=tuple(values.get("resblock_dilation_sizes", [base.dilations])[0]),
        n_fft=int(transform.get("n_fft", base.n_fft)),
        stft_hop=int(transform.get("hop_len", base.stft_hop)),
        harmonics=int(values.get("nb_harmonics", base.harmonics - 1)) + 1,
        pitch_channels=int(pitch.get("cond_channels", base.pitch_channels)),
        phase="sample" if rate == HIFT_22K.rate else "frame",
    )


def save_hift(model: Hift, path: Path) -> None:
    """Write a vocoder in the released layout, with the convolutions' weights split into length and direction."""
    split = ("conv_pre", "conv_post", "ups.", "resblocks.", "source_resblocks.", "f0_predictor.condnet.")
    write_split(model.state_dict(), path, split)
