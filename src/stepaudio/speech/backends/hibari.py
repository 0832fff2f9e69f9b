"""hibari's English voice: a distilled Kokoro that speaks far faster than real time on one core."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import MissingError
from stepaudio.speech.backends.onnx_graph import open_session, run
from stepaudio.speech.roles import Samples

_NOISE_SEED = 0


class Hibari:
    """Phoneme ids to samples at 24 kHz, with the duration of each phoneme.

    The model predicts a spectrum; hibari's own signal processing turns it into a waveform. Its noise is seeded, so
    the same phonemes always sound the same.
    """

    max_phonemes = 400

    def __init__(self, *, model: Path | None, threads: int) -> None:
        try:
            from hibari.tts import ASSETS
        except ImportError as error:
            raise MissingError('the voice "heart" needs hibari-tts: pip install "stepaudio[local]"') from error
        model = model or Path(ASSETS) / "hibari.onnx"
        self._session = open_session(model, threads=threads, outputs=["/Clip_output_0"])
        self.ids: dict[str, int] = json.loads((Path(ASSETS) / "vocab.json").read_text("utf-8"))

    def synthesise(
        self,
        ids: list[int],
        *,
        voice: str,
        speed: float,
        cancel: Event | None,
        pitch: float = 1.0,
        seed: int = _NOISE_SEED,
    ) -> tuple[Samples, NDArray[np.int64]]:
        """Ids [P], padded with 0 at both ends, to samples [T] and frames per id [P]; T is a multiple of their sum.

        `pitch` multiplies the fundamental frequency and leaves the formants where they are.
        """
        from hibari import dsp

        feed = {"ids": np.array([ids], np.int64), "speed": np.array([speed], np.float32)}
        *spectrum, frames = run(self._session, feed, cancel)
        *envelope, f0 = (part[0] for part in spectrum)
        samples = dsp.synth(*envelope, f0 * np.float32(pitch), np.random.default_rng(seed))
        return samples, frames.reshape(-1).astype(np.int64)
