"""Who speaks, from a clip's mel: a few convolutions and statistics over time, trained together with a flow.

The flow learns to speak in the voice of *another* clip of the same speaker, so all that helps is what the two have in
common: timbre and pitch, not words. The released decoders have CAM++ instead (`stepaudio.decoder.speaker`).

Shapes: B batch, T mel frames, M mel bands, C width, S speaker vector.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.decoder.layers import valid
from stepaudio.errors import InputError, MissingError
from stepaudio.files import save_tensors

TIMBRE = "timbre.safetensors"
FORMAT = 1
_KERNEL, _STRIDE = 5, 2


@dataclass(frozen=True)
class TimbreConfig:
    """Sizes, and the mean and deviation of the mels it reads."""

    mels: int = 80
    dim: int = 128
    layers: int = 3
    speaker: int = 128
    mel_mean: float = 0.0
    mel_std: float = 1.0


class TimbreEncoder(nn.Module):
    """Log-mel frames [B, T, M], of which the first `lengths_B` count, to speaker vectors [B, S]."""

    def __init__(self, config: TimbreConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.mels] + [config.dim] * config.layers
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, _KERNEL, stride=_STRIDE, padding=_KERNEL // 2) for a, b in pairwise(widths)
        )
        self.head = nn.Linear(2 * config.dim, config.speaker)

    def forward(self, mel_BTM: Tensor, lengths_B: Tensor) -> Tensor:
        mask_BT1 = valid(lengths_B, mel_BTM.shape[1])[..., None]
        x_BTM = (mel_BTM - self.config.mel_mean) / self.config.mel_std * mask_BT1
        x_BCT = x_BTM.transpose(1, 2)
        for conv in self.convs:
            x_BCT = F.gelu(conv(x_BCT))
            lengths_B = -(-lengths_B // _STRIDE)
            x_BCT = x_BCT * valid(lengths_B, x_BCT.shape[2])[:, None]
        x_BCT = x_BCT.float()
        mean_BC = x_BCT.sum(2) / lengths_B[:, None]
        power_BC = x_BCT.square().sum(2) / lengths_B[:, None]
        deviation_BC = (power_BC - mean_BC.square()).clamp(min=1e-5).sqrt()
        vector_BS: Tensor = self.head(torch.cat([mean_BC, deviation_BC], dim=1))
        return vector_BS

    @torch.inference_mode()
    def embed(self, mel_MT: Tensor) -> Tensor:
        """The vector [S] of one clip's mel [M, T]."""
        return self(mel_MT.T[None], torch.tensor([mel_MT.shape[1]]))[0].float()  # type: ignore[no-any-return]


def save_timbre(model: TimbreEncoder, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a safetensors file; the sizes stand in its metadata, as JSON under "timbre"."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(tensors, path, {"timbre": json.dumps({"format": FORMAT, **asdict(model.config)})})


def load_timbre(path: Path) -> TimbreEncoder:
    """Read what `save_timbre` wrote, as float32 and in evaluation mode. Raises MissingError and InputError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("timbre", "{}"))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
        if config.pop("format", None) != FORMAT:
            raise InputError(f"{path} is not a timbre encoder of format {FORMAT}")
        model = TimbreEncoder(TimbreConfig(**config))
        model.load_state_dict(tensors)
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a timbre encoder, or is damaged: {error}") from error
    return model.eval()
