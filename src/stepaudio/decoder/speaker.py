"""CAM++: a clip of speech to a vector that says who speaks, for conditioning the speech decoder.

The released `campplus.onnx` runs as it is (`OnnxCampPlus`) or gives its weights to the PyTorch module here. Its
convolutions come with the batch norms behind them folded in, so the module is for inference. Source: Wang et al.,
arXiv 2303.00332.

Shapes: B batch, F feature frames, M mel bands, C channels, T half-rate frames.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stepaudio.errors import AudioError, InputError, MissingError
from stepaudio.tokenizer.fbank import RATE, Floats, KaldiFbank

# As torchaudio computes it on samples in [-1, 1]; the scale moves which frames the floor of the logarithm reaches.
_FBANK = KaldiFbank(scale=1.0, taper="povey")
_SHORTEST = 0.1
"""Seconds; a clip of less has too few frames for a deviation."""
_SEGMENT = 100
"""Half-rate frames (2 s) whose mean is a layer's local context."""
_DILATIONS = (1, 2, 2)


class SpeakerEmbedding:
    """A `stepaudio.speech.roles.SpeakerEncoder` over a network from features [1, F, 80] to a vector [1, D]."""

    rate = RATE

    def __init__(self, network: Callable[[Floats], Floats], dim: int) -> None:
        self._network = network
        self.dim = dim

    def embed(self, samples: Floats) -> NDArray[np.float32]:
        """Samples [T] at 16 kHz to a unit vector [D]. Raises AudioError for less than 0.1 s or digital silence."""
        if len(samples) < _SHORTEST * RATE or not samples.any():
            raise AudioError(f"the clip holds no speech to tell a speaker from ({len(samples) / RATE:.2f} s)")
        features = _FBANK(samples)
        vector = self._network((features - features.mean(axis=0))[None])[0]
        unit: NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return unit

    def close(self) -> None:
        """Nothing to end."""


def load_speaker(path: Path, *, backend: str = "onnx", threads: int = 1) -> SpeakerEmbedding:
    """The speaker encoder of a released `campplus.onnx`.

    `backend="onnx"` runs the file with onnxruntime; "torch" our own module with its weights (needs the package
    `onnx`). Raises MissingError and InputError.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing: download the whole repository of the model")
    if backend == "torch":
        model = load_campplus(path)
        with_torch = torch.inference_mode()(lambda features: model(torch.from_numpy(features)).numpy())
        return SpeakerEmbedding(with_torch, model.config.dim)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen unrelated classes for it
        raise InputError(f"{path} is not a model that onnxruntime can run: {error}") from error
    name = session.get_inputs()[0].name
    return SpeakerEmbedding(
        lambda features: np.asarray(session.run(None, {name: features})[0], np.float32),
        int(session.get_outputs()[0].shape[-1]),
    )


@dataclass(frozen=True, slots=True)
class CampPlusConfig:
    """Sizes; the defaults are the released ones."""

    bands: int = 80
    channels: int = 128
    growth: int = 32
    head_channels: int = 32
    layers: tuple[int, int, int] = (12, 24, 16)
    dim: int = 192


class CampPlus(nn.Module):
    """Features [B, F, M] to vectors [B, D]. Attribute names are the scopes of the released graph."""

    xvector: Any

    def __init__(self, config: CampPlusConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CampPlusConfig()
        self.head = _Head(config.head_channels)
        self.xvector = nn.ModuleDict()
        channels = config.channels
        self.xvector["tdnn"] = _named(linear=nn.Conv1d(config.head_channels * config.bands // 8, channels, 5, 2, 2))
        for number, (layers, dilation) in enumerate(zip(config.layers, _DILATIONS, strict=True), 1):
            block = nn.ModuleDict()
            for layer in range(1, layers + 1):
                block[f"tdnnd{layer}"] = _DenseLayer(channels, config.growth, dilation)
                channels += config.growth
            self.xvector[f"block{number}"] = block
            self.xvector[f"transit{number}"] = _named(
                nonlinear=_named(batchnorm=_Affine(channels)), linear=nn.Conv1d(channels, channels // 2, 1)
            )
            channels //= 2
        self.xvector["dense"] = _named(
            linear=nn.Conv1d(2 * channels, config.dim, 1), nonlinear=_named(batchnorm=_Affine(config.dim))
        )

    def forward(self, features_BFM: Tensor) -> Tensor:
        x_BCT = F.relu(self.xvector["tdnn"].linear(self.head(features_BFM.transpose(1, 2))))
        for number in range(1, len(_DILATIONS) + 1):
            for layer in self.xvector[f"block{number}"].values():
                x_BCT = torch.cat([x_BCT, layer(x_BCT)], 1)
            transit = self.xvector[f"transit{number}"]
            x_BCT = transit.linear(F.relu(transit.nonlinear.batchnorm(x_BCT)))
        x_BCT = F.relu(x_BCT)
        statistics_BC1 = torch.cat([x_BCT.mean(2, keepdim=True), x_BCT.std(2, keepdim=True)], 1)
        dense = self.xvector["dense"]
        vectors: Tensor = dense.nonlinear.batchnorm(dense.linear(statistics_BC1)).squeeze(2)
        return vectors


class _Head(nn.Module):
    """A small two-dimensional network over bands and time; bands end at an eighth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, 1, 1)
        self.layer1 = nn.ModuleList([_Residual(channels, 2), _Residual(channels, 1)])
        self.layer2 = nn.ModuleList([_Residual(channels, 2), _Residual(channels, 1)])
        self.conv2 = nn.Conv2d(channels, channels, 3, (2, 1), 1)

    def forward(self, x_BMF: Tensor) -> Tensor:
        x = F.relu(self.conv1(x_BMF.unsqueeze(1)))
        for block in [*self.layer1, *self.layer2]:
            x = block(x)
        return F.relu(self.conv2(x)).flatten(1, 2)


class _Residual(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        # A list, since that is the convolution's place in the released graph.
        self.shortcut = nn.ModuleList([nn.Conv2d(channels, channels, 1, (stride, 1))] if stride > 1 else [])

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        for conv in self.shortcut:
            x = conv(x)
        return F.relu(y + x)


class _DenseLayer(nn.Module):
    """New channels from all earlier ones, masked by what the clip and the 2 s around are like."""

    nonlinear1: Any
    cam_layer: Any

    def __init__(self, channels: int, growth: int, dilation: int) -> None:
        super().__init__()
        narrow = 4 * growth
        self.nonlinear1 = _named(batchnorm=_Affine(channels))
        self.linear1 = nn.Conv1d(channels, narrow, 1)
        self.cam_layer = _named(
            linear_local=nn.Conv1d(narrow, growth, 3, padding=dilation, dilation=dilation),
            linear1=nn.Conv1d(narrow, narrow // 2, 1),
            linear2=nn.Conv1d(narrow // 2, growth, 1),
        )

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BCT = F.relu(self.linear1(F.relu(self.nonlinear1.batchnorm(x_BCT))))
        local = F.avg_pool1d(x_BCT, _SEGMENT, _SEGMENT, ceil_mode=True)
        local = local.repeat_interleave(_SEGMENT, 2)[..., : x_BCT.shape[2]]
        context = F.relu(self.cam_layer.linear1(x_BCT.mean(2, keepdim=True) + local))
        masked: Tensor = self.cam_layer.linear_local(x_BCT) * torch.sigmoid(self.cam_layer.linear2(context))
        return masked


class _Affine(nn.Module):
    """A batch norm at inference: one factor and one summand per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT * self.weight[:, None] + self.bias[:, None]


def _named(**modules: nn.Module) -> Any:
    """Modules under the names that the released graph has for them."""
    parent = nn.Module()
    for name, module in modules.items():
        parent.add_module(name, module)
    return parent


# ---------------------------------------------------------------- the released file

_TWICE = re.compile(r"\b(\w+)\.\1\.")


def load_campplus(path: Path) -> CampPlus:
    """The PyTorch module with the weights of a released `campplus.onnx`, in evaluation mode.

    An exporter names folded weights by number, so all are found through the scope of the node that reads them.
    Raises MissingError without the package `onnx`, InputError when a weight is missing or has the wrong shape.
    """
    found = _weights_by_scope(path)
    try:
        tdnn, conv = found["xvector.tdnn.linear.weight"], found["head.conv1.weight"]
        layers = [sum(f"block{n}.tdnnd" in name and "linear_local.weight" in name for name in found) for n in (1, 2, 3)]
        config = CampPlusConfig(
            bands=8 * tdnn.shape[1] // conv.shape[0],
            channels=tdnn.shape[0],
            growth=found["xvector.block1.tdnnd1.cam_layer.linear_local.weight"].shape[0],
            head_channels=conv.shape[0],
            layers=(layers[0], layers[1], layers[2]),
            dim=found["xvector.dense.linear.weight"].shape[0],
        )
    except KeyError as error:
        raise InputError(f"{path} is not a CAM++ speaker encoder: {error} not found") from error
    model = CampPlus(config)
    biases = {name for name in model.state_dict() if name.endswith(".bias")}
    state = {name: torch.from_numpy(array) for name, array in found.items()}
    state |= {name: torch.zeros_like(model.state_dict()[name]) for name in biases - state.keys()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit CAM++: {error}") from error
    return model.eval()


def _weights_by_scope(path: Path) -> dict[str, Floats]:
    """Weights and biases of the graph's convolutions and batch norms, named by where they stand in the network."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingError("reading weights out of an ONNX file needs the package `onnx`: pip install onnx") from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's DecodeError, whichever protobuf it is
        raise InputError(f"{path} is damaged: {error}") from error
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    found: dict[str, Floats] = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in stored:  # one of several equal tensors, stored once
            stored[node.output[0]] = stored[node.input[0]]
        if node.op_type not in ("Conv", "BatchNormalization"):
            continue
        scope = _TWICE.sub(r"\1.", node.name.strip("/").replace("/", ".").rpartition(".")[0])
        arrays = [numpy_helper.to_array(stored[name]).astype(np.float32) for name in node.input if name in stored]
        if node.op_type == "BatchNormalization":
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            gain, shift, mean, variance = arrays
            scale = gain / np.sqrt(variance + epsilon)
            arrays = [np.asarray(scale, np.float32), np.asarray(shift - mean * scale, np.float32)]
        found |= {f"{scope}.{kind}": array for kind, array in zip(("weight", "bias"), arrays, strict=False)}
    return found
