"""Speaker encoder: the GE2E network that Resemblyzer released (Wan et al. 2018, arXiv 1710.10467).

A log-free power mel spectrogram (40 bands, 25 ms window, 10 ms hop, 16 kHz) goes through a three-layer LSTM; the
last hidden state, projected, rectified and normalised, is the embedding of one window of 1.6 s. An utterance is the
normalised mean over windows taken 1.3 times a second. Loads torch, so it is built only when asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.features import mel_filters
from stepaudio.errors import AudioError, IntegrityError
from stepaudio.speech.roles import Samples

_FFT, _HOP, _MELS = 400, 160, 40
_WINDOW_FRAMES, _STEP_FRAMES, _MIN_COVERAGE = 160, 77, 0.75
_MIN_SECONDS = 0.5
_TARGET_DBFS = -30.0


class ResemblyzerEncoder:
    """Implements `stepaudio.speech.roles.SpeakerEncoder`; embeddings are 256-dimensional."""

    rate = 16_000
    dim = 256

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load the released checkpoint (`encoder.pt`), tensors only. Raises IntegrityError if it is something else."""
        import torch

        self._torch = torch
        torch.set_num_threads(threads)
        self._lstm = torch.nn.LSTM(_MELS, self.dim, num_layers=3, batch_first=True)
        self._linear = torch.nn.Linear(self.dim, self.dim)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
            self._lstm.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("lstm.")})
            self._linear.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("linear.")})
        except (KeyError, RuntimeError, TypeError) as error:
            raise IntegrityError(f"{path} is not the Resemblyzer checkpoint: {error}") from None
        self._filters = mel_filters(_MELS)

    def embed(self, samples: Samples) -> NDArray[np.float32]:
        """Samples [T] at 16 kHz to a unit vector [256]. Raises AudioError under half a second of sound."""
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise AudioError("a speaker embedding needs finite mono samples of shape [T]")
        power = float(np.mean(samples**2)) if samples.size else 0.0
        if samples.size < _MIN_SECONDS * self.rate or power < 1e-10:
            raise AudioError(f"a speaker embedding needs at least {_MIN_SECONDS} s of sound")
        # The network was trained on speech brought up to -30 dBFS; louder speech was left as it was.
        gain = max(1.0, 10 ** ((_TARGET_DBFS - 10 * np.log10(power)) / 20))
        frames = self._mel(samples * np.float32(gain))
        starts = list(range(0, max(1, len(frames) - _WINDOW_FRAMES + _STEP_FRAMES + 1), _STEP_FRAMES))
        if len(starts) > 1 and len(frames) - starts[-1] < _MIN_COVERAGE * _WINDOW_FRAMES:
            starts.pop()  # mostly padding, which the network was not trained on
        windows = np.zeros((len(starts), _WINDOW_FRAMES, _MELS), np.float32)
        for window, start in zip(windows, starts, strict=True):
            part = frames[start : start + _WINDOW_FRAMES]
            window[: len(part)] = part
        with self._torch.inference_mode():
            _, (hidden, _) = self._lstm(self._torch.from_numpy(windows))
            vectors = self._torch.relu(self._linear(hidden[-1]))
            vectors = vectors / vectors.norm(dim=1, keepdim=True)
            mean = vectors.mean(dim=0)
        embedding: NDArray[np.float32] = (mean / mean.norm()).numpy()
        return embedding

    def close(self) -> None:
        """Nothing to release."""

    def _mel(self, samples: Samples) -> NDArray[np.float32]:
        """Power mel spectrogram [frames, 40], frames centred and the ends zero-padded."""
        padded = np.pad(samples, _FFT // 2)
        framed = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)
        power = np.abs(np.fft.rfft(framed * hann, axis=1)) ** 2
        return (power @ self._filters.T).astype(np.float32)
