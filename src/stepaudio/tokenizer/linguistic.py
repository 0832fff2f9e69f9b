"""The linguistic tokenizer: low-frame-rate features, the chunked SANM encoder and a codebook.

`SanmBranch` is that chain for any sizes; `load_released` builds it from StepFun's released folder, whose
encoder is Paraformer's and whose codebook is k-means over its outputs: 1024 codes at 16.67 Hz, in steps of
240 ms without look-ahead.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepaudio.errors import InputError, MissingError
from stepaudio.tokenizer.fbank import Floats, KaldiFbank
from stepaudio.tokenizer.interleave import Codes
from stepaudio.tokenizer.lfr import LfrFrontend, LfrStream, read_am_mvn
from stepaudio.tokenizer.packed import pack
from stepaudio.tokenizer.quantize import Codebook, Quantizer
from stepaudio.tokenizer.sanm import SanmConfig, SanmEncoder, SanmState

PARAFORMER = "dengcunqin/speech_paraformer-large_asr_nat-zh-cantonese-en-16k-vocab8501-online"
"""Folder of the encoder inside the released tokenizer folder."""
CENTROIDS = "linguistic_tokenizer.npy"


@dataclass
class SanmSession:
    """The encoder state of one stream, replaced by each segment that is encoded."""

    state: SanmState


@dataclass(frozen=True)
class SanmSegment:
    """Features [T, I] that continue a session. T is whole chunks, except at the end of the stream."""

    session: SanmSession
    features: Floats


class SanmBranch:
    """Samples to codes by features, SANM encoder and quantiser."""

    def __init__(self, frontend: LfrFrontend, encoder: SanmEncoder, quantizer: Quantizer) -> None:
        self.frontend = frontend
        self.encoder = encoder.eval()
        self.quantizer = quantizer.eval()
        self.codes = quantizer.codes
        self.codes_per_second = frontend.codes_per_second

    def segmenter(self) -> SanmSegmenter:
        return SanmSegmenter(self)

    @torch.inference_mode()
    def vectors(self, segments: Sequence[SanmSegment]) -> list[Tensor]:
        """Encoder outputs [T, D] of each segment, before quantisation."""
        weight = self.encoder.after_norm.weight
        outputs: list[Tensor | None] = [None] * len(segments)
        waiting = list(range(len(segments)))
        while waiting:
            # One round holds one segment per session; segments of equal length share a call.
            calls: dict[int, list[int]] = {}
            busy: set[int] = set()
            later = []
            for index in waiting:
                segment = segments[index]
                if id(segment.session) in busy:
                    later.append(index)
                else:
                    busy.add(id(segment.session))
                    calls.setdefault(len(segment.features), []).append(index)
            for indices in calls.values():
                x_BTI = torch.from_numpy(np.stack([segments[i].features for i in indices])).to(weight)
                state = SanmState.stack([segments[i].session.state for i in indices])
                y_BTD, after = self.encoder(x_BTI, None, state)
                for i, y_TD, own in zip(indices, y_BTD, after.unstack(), strict=True):
                    segments[i].session.state = own
                    outputs[i] = y_TD
            waiting = later
        return [y for y in outputs if y is not None]

    @torch.inference_mode()
    def encode(self, segments: Sequence[SanmSegment]) -> list[Codes]:
        vectors = self.vectors(segments)
        if not vectors:
            return []
        codes = self.quantizer.encode(torch.cat(vectors)).cpu().numpy()
        return np.split(codes, np.cumsum([len(v) for v in vectors])[:-1])


class SanmSegmenter:
    """Cuts a stream's features into whole chunks for the encoder."""

    def __init__(self, branch: SanmBranch) -> None:
        self._frontend = branch.frontend
        self._encoder = branch.encoder
        self._features = LfrStream(branch.frontend)
        self.reset()

    def reset(self) -> None:
        self._features.reset()
        self._session = SanmSession(self._encoder.initial_state())
        self._pending = np.zeros((0, self._encoder.config.input_dim), dtype=np.float32)
        self._given = 0  # features in segments so far
        self._waiting: list[Floats] = []
        self._received = 0

    def push(self, samples: Floats) -> list[SanmSegment]:
        chunk = self._encoder.config.chunk
        self._waiting.append(samples.copy())
        self._received += len(samples)
        # Features are worked out a chunk at a time: on few frames numpy's overhead would rule.
        if self._received < self._frontend.samples_for(self._given + chunk):
            return []
        self._work_out()
        return self._take(len(self._pending) // chunk * chunk)

    def flush(self) -> list[SanmSegment]:
        self._work_out()
        self._pending = np.concatenate([self._pending, self._features.flush()])
        segments = self._take(len(self._pending))
        self.reset()
        return segments

    def _work_out(self) -> None:
        samples = np.concatenate([np.zeros(0, dtype=np.float32), *self._waiting])
        self._pending = np.concatenate([self._pending, self._features.push(samples)])
        self._waiting = []

    def _take(self, frames: int) -> list[SanmSegment]:
        if frames == 0:
            return []
        segment = SanmSegment(self._session, self._pending[:frames])
        self._pending = self._pending[frames:].copy()
        self._given += frames
        return [segment]


def released_length(n_samples: int) -> int | None:
    """Codes that the released tokenizer gives for n samples when its tail rule takes some away, else None.

    It works in steps of 3840 samples and gives nothing for a last step of fewer than 880 samples.
    """
    steps, rest = divmod(n_samples, 3840)
    return 4 * steps if rest < 880 else None


# ---------------------------------------------------------------- the released checkpoint


def load_released(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> SanmBranch:
    """The linguistic branch of a released `Step-Audio-Tokenizer` folder.

    Reads `linguistic_tokenizer.npy` and, in the Paraformer folder, `config.yaml`, `am.mvn` and the encoder
    tensors of `model.pt`; no pickled code is ever run. Raises MissingError for a missing file and InputError
    for files that do not fit together.
    """
    paraformer = folder / PARAFORMER
    for path in (folder / CENTROIDS, *(paraformer / name for name in ("config.yaml", "am.mvn", "model.pt"))):
        if not path.is_file():
            raise MissingError(f"{path} is missing: download the whole Step-Audio-Tokenizer repository")
    config = _read_config(paraformer / "config.yaml")
    weights = _encoder_tensors(paraformer / "model.pt")
    sanm = _sanm_config(config, weights)
    with torch.device("meta"):
        encoder = SanmEncoder(sanm)
    try:
        encoder.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(f"{paraformer / 'model.pt'} is no SANM encoder of its configuration: {error}") from error
    shift, scale = read_am_mvn(paraformer / "am.mvn")
    frontend = _frontend(config, shift, scale)
    centroids = _read_centroids(folder / CENTROIDS)
    if centroids.ndim != 2 or centroids.shape[1] != sanm.dim:
        raise InputError(f"{CENTROIDS} holds {centroids.shape}; the encoder gives vectors of {sanm.dim}")
    codebook = Codebook(torch.from_numpy(centroids))
    encoder.to(device, dtype)
    pack(encoder, rows=sanm.left + sanm.chunk)
    return SanmBranch(frontend, encoder, codebook.to(device))


def _read_config(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or "encoder_conf" not in config:
        raise InputError(f"{path} has no encoder_conf: it is not a FunASR configuration")
    return config


def _read_centroids(path: Path) -> Floats:
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged, or holds more than numbers: {error}") from error


def _encoder_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors `encoder.*` of a FunASR checkpoint, without that prefix, in float32."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise InputError(f"{path} is damaged, or holds more than tensors: {error}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(stored.get(wrapper), dict):
            stored = stored[wrapper]
    prefix = "encoder."
    return {name[len(prefix) :]: tensor.float() for name, tensor in stored.items() if name.startswith(prefix)}


def _sanm_config(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> SanmConfig:
    """Widths from the tensors; heads, which no tensor shows, from the configuration."""
    first = "encoders0.0.self_attn.linear_q_k_v.weight"
    try:
        fused, input_dim = weights[first].shape
        ffn_dim = len(weights["encoders0.0.feed_forward.w_1.weight"])
        kernel = weights["encoders0.0.self_attn.fsmn_block.weight"].shape[-1]
    except KeyError as error:
        raise InputError(f"the checkpoint has no tensor encoder.{error.args[0]}") from error
    blocks = 1 + len({name.split(".")[1] for name in weights if name.startswith("encoders.")})
    return SanmConfig(
        input_dim=input_dim,
        dim=fused // 3,
        heads=int(config["encoder_conf"].get("attention_heads", 4)),
        ffn_dim=ffn_dim,
        blocks=blocks,
        kernel=kernel,
    )


def _frontend(config: Mapping[str, Any], shift: Floats, scale: Floats) -> LfrFrontend:
    conf = config.get("frontend_conf", {})
    rate = int(conf.get("fs", 16_000))
    window = conf.get("window", "hamming")
    if window != "hamming":
        raise InputError(f"the filterbank window is {window!r}; only 'hamming' is known")
    fbank = KaldiFbank(
        n_mels=int(conf.get("n_mels", 80)),
        rate=rate,
        window=rate * int(conf.get("frame_length", 25)) // 1000,
        hop=rate * int(conf.get("frame_shift", 10)) // 1000,
    )
    return LfrFrontend(shift, scale, int(conf.get("lfr_m", 7)), int(conf.get("lfr_n", 6)), fbank)
