"""A Vocos-style vocoder for small models: ConvNeXt blocks at the mel's own rate, then one inverse Fourier transform.

Source: Siuzdak, arXiv 2306.00814; the block is Liu et al.'s, arXiv 2201.03545. How far it looks ahead is chosen in
its configuration, down to nothing: live speech waits for every frame of it. With the default sizes it has 2.8 M
parameters.

Shapes: B batch, M mel bands, F mel frames, D width, K spectral bins, T samples.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.decoder.convolution import Conv1d, Stream, align
from stepaudio.decoder.mel import MelSpec
from stepaudio.decoder.stft import InverseStft
from stepaudio.errors import InputError, MissingError
from stepaudio.files import save_tensors

VOCODER = "vocoder.safetensors"
FORMAT = 1
_KERNEL = 7
_LOUDEST_BIN = 1e2


@dataclass(frozen=True, slots=True)
class VocosConfig:
    """Sizes. `ahead` is how many frames of `hop` samples the convolutions look ahead in all, at most three each; the
    first one is over mel frames, which are `upsample` frames each and of a transform so much longer."""

    rate: int = 24_000
    n_fft: int = 1024
    hop: int = 256
    bands: int = 80
    dim: int = 256
    hidden: int = 768
    blocks: int = 6
    ahead: int = 6
    upsample: int = 1

    def __post_init__(self) -> None:
        most = (_KERNEL // 2) * (self.blocks + self.upsample)
        if not 0 <= self.ahead <= most:
            raise InputError(f"a Vocos of {self.blocks} blocks looks ahead 0 to {most} frames, not {self.ahead}")

    @property
    def mel(self) -> MelSpec:
        """The mel spectrogram it inverts."""
        return MelSpec(self.rate, self.n_fft * self.upsample, self.hop * self.upsample, self.bands)


class Vocos(nn.Module):
    """Log-mel frames [B, M, F] to samples [B, F * hop], whole or in pieces; a `stepaudio.decoder.streaming.Vocoder`."""

    def __init__(self, config: VocosConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VocosConfig()
        self.rate, self.hop = config.rate, config.hop * config.upsample
        pads = _pads(config)
        self.embed = Conv1d(config.bands, config.dim * config.upsample, _KERNEL, pads=pads[0])
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.blocks = nn.ModuleList([ConvNeXtBlock(config, pads[1 + i]) for i in range(config.blocks)])
        self.final_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, config.n_fft + 2)
        self.istft = InverseStft(config.n_fft, config.hop, trim=(config.n_fft - config.hop) // 2)
        self.apply(_initialise)

    @property
    def lookahead(self) -> int:
        """Mel frames after which a frame's samples are complete."""
        return -(-(self.config.ahead + -(-self.istft.trim // self.config.hop)) // self.config.upsample)

    def forward(self, mel_BMF: Tensor, state: Stream | None = None, *, last: bool = True) -> tuple[Tensor, Stream]:
        """See `stepaudio.decoder.streaming.Vocoder`. A stream equals one call to the rounding of float32."""
        stream = (state or Stream()).following(last=last)
        x_BFD = self.embed(mel_BMF, stream).transpose(1, 2)
        x_BDF = self.norm(x_BFD.reshape(len(x_BFD), -1, self.config.dim)).transpose(1, 2)
        for block in self.blocks:
            x_BDF = block(x_BDF, stream)
        x_BKF = self.head(self.final_norm(x_BDF.transpose(1, 2))).float().transpose(1, 2)
        log_magnitude_BKF, phase_BKF = x_BKF.chunk(2, dim=1)
        magnitude_BKF = log_magnitude_BKF.exp().clamp(max=_LOUDEST_BIN)
        return self.istft(torch.polar(magnitude_BKF, phase_BKF), stream), stream


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution over time, then two linear layers over channels, around a shortcut."""

    def __init__(self, config: VocosConfig, pads: tuple[int, int]) -> None:
        super().__init__()
        self.over_time = Conv1d(config.dim, config.dim, _KERNEL, groups=config.dim, pads=pads)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.up = nn.Linear(config.dim, config.hidden)
        self.down = nn.Linear(config.hidden, config.dim)
        self.scale = nn.Parameter(torch.full((config.dim,), 1 / config.blocks))

    def forward(self, x_BDF: Tensor, stream: Stream) -> Tensor:
        y_BFD = self.norm(self.over_time(x_BDF, stream).transpose(1, 2))
        change_BDF = (self.scale * self.down(F.gelu(self.up(y_BFD)))).transpose(1, 2)
        x_BDF, change_BDF = align(self, stream, x_BDF, change_BDF)
        return x_BDF + change_BDF


def _pads(config: VocosConfig) -> list[tuple[int, int]]:
    """Pads of each convolution, the look-ahead given to the first ones: what they see early, all later ones use."""
    most = _KERNEL // 2
    rights = [min(most, config.ahead // config.upsample)]
    left = config.ahead - rights[0] * config.upsample
    rights += [max(0, min(most, left - block * most)) for block in range(config.blocks)]
    return [(_KERNEL - 1 - right, right) for right in rights]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def save_vocos(model: Vocos, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a safetensors file; the sizes stand in its metadata, as JSON under "vocos"."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(tensors, path, {"vocos": json.dumps({"format": FORMAT, **asdict(model.config)})})


def load_vocos(path: Path) -> Vocos:
    """Read what `save_vocos` wrote, as float32 and in evaluation mode. Raises MissingError and InputError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("vocos", "{}"))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
        if config.pop("format", None) != FORMAT:
            raise InputError(f"{path} is not a Vocos vocoder of format {FORMAT}")
        model = Vocos(VocosConfig(**config))
        model.load_state_dict(tensors)
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a Vocos vocoder, or is damaged: {error}") from error
    return model.eval()
