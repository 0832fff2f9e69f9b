"""The S3 encoder, 25 Hz: CosyVoice's first speech tokenizer, in PyTorch from its ONNX file or by onnxruntime.

Whisper's log-mel (128 mels) goes through two convolutions of stride 2 and six Whisper blocks; the unit
vector of each output is coded by the nearest of 4096 codewords (arXiv 2407.05407). Every frame sees the
whole clip.

Shapes: B clips, M mels, T mel frames, F = ceil(T / 4) code frames, D width, H heads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.audio.features import whisper_log_mel
from stepaudio.errors import InputError, MissingError
from stepaudio.tokenizer.fbank import Floats
from stepaudio.tokenizer.interleave import SEMANTIC_CODES, Codes
from stepaudio.tokenizer.packed import pack
from stepaudio.tokenizer.quantize import Codebook

HEAD_DIM = 64
"""Width of a head in every Whisper model."""
LIVE_FRAMES = 84
"""Code frames of a live window, which the layers are laid out for."""
MAX_BATCH = 8
"""Clips encoded at once: more costs memory and gains nothing on a CPU."""


@dataclass(frozen=True)
class S3Config:
    """Sizes; the defaults are the released ones."""

    n_mels: int = 128
    dim: int = 1280
    blocks: int = 6
    ffn_dim: int = 5120
    positions: int = 1500
    codes: int = 4096


class S3Encoder(nn.Module):
    """Mel clips [B, M, T] to vectors [B, F, D]."""

    positional_embedding: Tensor

    def __init__(self, config: S3Config) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.n_mels, config.dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(config.dim, config.dim, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", torch.zeros(config.positions, config.dim))
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.blocks)])

    def forward(self, mel_BMT: Tensor) -> Tensor:
        x = F.gelu(self.conv1(mel_BMT))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positional_embedding[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x


class _Block(nn.Module):
    def __init__(self, config: S3Config) -> None:
        super().__init__()
        self.heads = config.dim // HEAD_DIM
        self.attn_ln = nn.LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.mlp_ln = nn.LayerNorm(config.dim)
        self.up = nn.Linear(config.dim, config.ffn_dim)
        self.down = nn.Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attn_ln(x))
        qkv = qkv.view(*x.shape[:2], 3, self.heads, HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        y: Tensor = x + self.down(F.gelu(self.up(self.mlp_ln(x))))
        return y


class TorchS3:
    """Clips of samples to codes by the PyTorch encoder."""

    def __init__(self, encoder: S3Encoder, codebook: Codebook) -> None:
        self.encoder = encoder.eval()
        self.codebook = codebook.eval()
        self.codes = codebook.codes

    @torch.inference_mode()
    def __call__(self, clips: Sequence[Floats]) -> list[Codes]:
        """Codes [ceil(floor(T / 160) / 4)] of each clip [T]. Clips of one length share a call."""
        codes: dict[int, Codes] = {}
        by_length: dict[int, list[int]] = {}
        for index, clip in enumerate(clips):
            by_length.setdefault(len(clip), []).append(index)
        for indices in by_length.values():
            for start in range(0, len(indices), MAX_BATCH):
                batch = indices[start : start + MAX_BATCH]
                for index, row in zip(batch, self._encode([clips[i] for i in batch]), strict=True):
                    codes[index] = row
        return [codes[index] for index in range(len(clips))]

    def _encode(self, clips: Sequence[Floats]) -> Codes:
        mel = np.stack([whisper_log_mel(clip, self.encoder.config.n_mels) for clip in clips])
        vectors = self.encoder(torch.from_numpy(mel).to(self.encoder.conv1.weight))
        return self.codebook.encode(vectors).cpu().numpy()


class OnnxS3:
    """Clips of samples to codes by the released ONNX file itself."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen unrelated classes for it
            raise InputError(f"{path} is not a model that onnxruntime can run: {error}") from error
        self._mel, self._length = (value.name for value in self._session.get_inputs())
        self._n_mels = int(self._session.get_inputs()[0].shape[1])
        self.codes = SEMANTIC_CODES

    def __call__(self, clips: Sequence[Floats]) -> list[Codes]:
        return [self._encode(clip) for clip in clips]

    def _encode(self, clip: Floats) -> Codes:
        mel = whisper_log_mel(clip, self._n_mels)[None]
        feed = {self._mel: mel, self._length: np.array([mel.shape[2]], dtype=np.int32)}
        return np.asarray(self._session.run(None, feed)[0], dtype=np.int64).ravel()


# ---------------------------------------------------------------- the released file

_BLOCK_NODE = re.compile(
    r"/blocks\.(\d+)/(attn_ln|mlp_ln|attn/query|attn/key|attn/value|attn/out|mlp/mlp\.0|mlp/mlp\.2)/"
)

_RENAMED = {
    "attn_ln": "attn_ln",
    "out": "attn/out",
    "mlp_ln": "mlp_ln",
    "up": "mlp/mlp.0",
    "down": "mlp/mlp.2",
}


def load_onnx_weights(path: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TorchS3:
    """The PyTorch encoder with the weights of the released `speech_tokenizer_v1.onnx`.

    An exporter names most weights by number, so they are found through the named graph nodes that read them.
    Every size is read from the tensors. Raises InputError when a weight is missing or has the wrong shape.
    """
    found = _named_weights(path)
    try:
        conv1, positions = found["conv1.weight"], found["positional_embedding"]
        config = S3Config(
            n_mels=conv1.shape[1],
            dim=conv1.shape[0],
            blocks=1 + max(int(name.split(".")[1]) for name in found if name.startswith("blocks.")),
            ffn_dim=found["blocks.0.mlp/mlp.0.weight"].shape[0],
            positions=len(positions),
            codes=len(found["codebook"]),
        )
        state = {name: found[name] for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")}
        state["positional_embedding"] = positions
        for index in range(config.blocks):
            state |= _block_state(found, f"blocks.{index}.", config.dim)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is not the 25 Hz S3 tokenizer: {error} not found") from error
    with torch.device("meta"):
        encoder = S3Encoder(config)
    try:
        encoder.load_state_dict({name: torch.from_numpy(w) for name, w in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the S3 encoder: {error}") from error
    codebook = Codebook(torch.from_numpy(found["codebook"]), normalise=True)
    encoder.to(device, dtype)
    pack(encoder, rows=LIVE_FRAMES)
    return TorchS3(encoder, codebook.to(device))


def _block_state(found: dict[str, Floats], prefix: str, dim: int) -> dict[str, Floats]:
    query, key, value = (found[f"{prefix}attn/{part}.weight"] for part in ("query", "key", "value"))
    query_bias, value_bias = (found[f"{prefix}attn/{part}.bias"] for part in ("query", "value"))
    state = {
        "qkv.weight": np.concatenate([query, key, value]),
        "qkv.bias": np.concatenate([query_bias, np.zeros(dim, dtype=np.float32), value_bias]),
    }
    for ours, theirs in _RENAMED.items():
        state[f"{ours}.weight"] = found[f"{prefix}{theirs}.weight"]
        state[f"{ours}.bias"] = found[f"{prefix}{theirs}.bias"]
    return {prefix + name: tensor for name, tensor in state.items()}


def _named_weights(path: Path) -> dict[str, Floats]:
    """Weights of the graph by their place in the network, linear ones as [out, in]."""
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
    convs = 0
    found: dict[str, Floats] = {}
    for node in graph.node:
        weights = [numpy_helper.to_array(stored[name]) for name in node.input if name in stored]
        weights = [w.astype(np.float32) for w in weights if w.dtype.kind == "f" and w.size > 1]
        if not weights:
            continue
        block = _BLOCK_NODE.search(node.name)
        if block:
            place = f"blocks.{block[1]}.{block[2]}"
            if node.op_type == "LayerNormalization":
                found[f"{place}.weight"], found[f"{place}.bias"] = weights
            elif node.op_type == "MatMul":
                found[f"{place}.weight"] = np.ascontiguousarray(weights[0].T)
            elif node.op_type in ("Mul", "Add"):
                found[f"{place}.{'weight' if node.op_type == 'Mul' else 'bias'}"] = weights[0]
        elif node.op_type == "Conv":
            convs += 1
            found[f"conv{convs}.weight"], found[f"conv{convs}.bias"] = weights
        elif "codebook" in node.name and weights[0].ndim == 2:
            # Stored as [D, codes], ready to be multiplied.
            found["codebook"] = np.ascontiguousarray(weights[0].T)
        elif any("positional_embedding" in name for name in node.input):
            found["positional_embedding"] = weights[0]
    return found
