"""Small flow models with random weights, their tokens, and a vocoder, made on the spot."""

from __future__ import annotations

import numpy as np
import torch

from stepaudio.decoder.dit import DiTConfig
from stepaudio.decoder.encoder import EncoderConfig
from stepaudio.decoder.flow import FlowConfig, FlowModel, Reference, build
from stepaudio.decoder.unet import UNetConfig
from stepaudio.tokenizer.interleave import Codes, interleave

SPEAKER = 24
MELS = 12
DIT = FlowConfig(
    estimator=DiTConfig(dim=32, depth=2, heads=4, head_dim=8, ffn=64, frequencies=32, window=20),
    encoder=EncoderConfig(dim=32, heads=4, ffn=48, blocks=2, up_blocks=2, window=12),
    embedding=32,
    mels=MELS,
    speaker=SPEAKER,
)
UNET = FlowConfig(
    estimator=UNetConfig(channels=(32, 48), blocks=1, mid_blocks=2, heads=2, head_dim=8),
    encoder=EncoderConfig(dim=32, heads=4, ffn=48, blocks=2),
    vocab=5120,
    embedding=32,
    mels=MELS,
    speaker=SPEAKER,
    rate=22050,
    hop=256,
)
BOTH = {"unet": UNET, "dit": DIT}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that every part, gates and attention included, is seen in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator) * (
                1.0 / fan_in**0.5 if parameter.ndim > 1 else 0.2
            )
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise + is_scale)


def flow_model(config: FlowConfig, dtype: torch.dtype = torch.float32) -> FlowModel:
    torch.set_num_threads(1)
    model = build(config).eval()
    randomise(model)
    return model.to(dtype)


def audio_tokens(groups: int, seed: int = 0) -> Codes:
    rng = np.random.default_rng(seed)
    return interleave(rng.integers(0, 1024, 2 * groups), rng.integers(0, 4096, 3 * groups))


def reference(groups: int, seed: int = 0, frames: int | None = None) -> Reference:
    generator = torch.Generator().manual_seed(seed)
    speaker = torch.randn(SPEAKER, generator=generator)
    if groups == 0:
        return Reference(speaker)
    mel = torch.randn(MELS, 6 * groups if frames is None else frames, generator=generator)
    return Reference(speaker, audio_tokens(groups, seed + 100), mel)
