"""DNSMOS: how good speech would be rated, predicted without a reference (Reddy et al. 2022, arXiv 2110.01763).

Microsoft's P.835 network hears windows of 9.01 s, one second apart, and gives raw scores for the signal, the background
and the whole, which published polynomials map to the opinion scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepaudio.audio.pcm import Samples, check_finite
from stepaudio.errors import AudioError

RATE = 16_000
_WINDOW = int(9.01 * RATE)
_SIGNAL = np.poly1d([-0.08397278, 1.22083953, 0.0052439])
_BACKGROUND = np.poly1d([-0.13166888, 1.60915514, -0.39604546])
_OVERALL = np.poly1d([-0.06766283, 1.11546468, 0.04602535])


@dataclass(frozen=True, slots=True)
class Mos:
    """Predicted mean opinion scores, 1 to 5."""

    overall: float
    signal: float
    background: float


class DnsMos:
    """The network, loaded from `sig_bak_ovr.onnx`. Safe to call from several threads."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def score(self, samples: Samples) -> Mos:
        """Scores of samples [T] at 16 kHz, averaged over windows; what is shorter than a window is repeated. Raises
        AudioError for no samples."""
        if not len(samples):
            raise AudioError("there is no audio to score")
        check_finite(samples, RATE)
        while len(samples) < _WINDOW:
            samples = np.concatenate([samples, samples])
        # The reference floors the length to seconds first, so the last window may be left out.
        starts = [RATE * i for i in range(int(len(samples) // RATE - 9.01) + 1)]
        windows = [samples[start : start + _WINDOW] for start in starts]
        raw = [self._session.run(None, {"input_1": w[None].astype(np.float32)})[0][0] for w in windows]
        signal, background, overall = np.stack(raw).astype(np.float64).T
        return Mos(
            float(_OVERALL(overall).mean()), float(_SIGNAL(signal).mean()), float(_BACKGROUND(background).mean())
        )
