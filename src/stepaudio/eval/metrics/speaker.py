"""Whether two recordings are of one speaker: cosine similarity, always labelled with the model that gave it.

Offline there is Resemblyzer. Published figures use WavLM-large with an ECAPA head (SEED-TTS) or ERes2Net (Step-Audio);
both are read by path from an ONNX export, so their scores can be had where their weights are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples
from stepaudio.errors import AudioError, InputError, NotFoundError


def similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Cosine of two embeddings [D]."""
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    if not scale:
        raise AudioError("an embedding of a speaker is zero")
    return float(first @ second) / scale


class OnnxSpeakerEncoder:
    """An exported encoder, known by its input: [1, T] is a waveform at 16 kHz (WavLM), [1, frames, 80] a Kaldi
    filterbank less its mean over time (ERes2Net, CAM++). Implements `stepaudio.speech.roles.SpeakerEncoder`."""

    rate = 16_000

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Raises NotFoundError, and InputError for a graph of another shape."""
        if not path.is_file():
            raise NotFoundError(f"there is no speaker encoder at {path}; name an ONNX file", param="speaker_model")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base
            raise InputError(f"{path} cannot be loaded as ONNX: {error}", param="speaker_model") from None
        (given, *more), (self._out, *_) = self._session.get_inputs(), self._session.get_outputs()
        bands = given.shape[-1] if len(given.shape) == 3 else None
        if more or len(given.shape) not in (2, 3) or bands not in (None, 80):
            raise InputError(
                f"{path} takes {[each.shape for each in (given, *more)]}; an encoder takes [1, T] or [1, frames, 80]",
                param="speaker_model",
            )
        self._name, self._banks = given.name, bands == 80
        self.name = path.stem
        self.dim = int(self._out.shape[-1]) if isinstance(self._out.shape[-1], int) else 0

    def embed(self, samples: Samples) -> NDArray[np.float32]:
        """Samples [T] at 16 kHz to a unit vector [D]."""
        if len(samples) < self.rate // 10:
            raise AudioError("a speaker embedding needs at least a tenth of a second")
        batch = self._filterbank(samples) if self._banks else samples.astype(np.float32)
        vector = np.asarray(self._session.run([self._out.name], {self._name: batch[None]})[0], np.float32).reshape(-1)
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(norm) or not norm:
            raise AudioError("the speaker encoder gave no embedding")
        unit: NDArray[np.float32] = vector / np.float32(norm)
        return unit

    def close(self) -> None:
        """Nothing to release."""

    @staticmethod
    def _filterbank(samples: Samples) -> NDArray[np.float32]:
        from stepaudio.tokenizer.fbank import KaldiFbank

        features = KaldiFbank(taper="povey")(samples)
        centred: NDArray[np.float32] = features - features.mean(axis=0, keepdims=True)
        return centred
