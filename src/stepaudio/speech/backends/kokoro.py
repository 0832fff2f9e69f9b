"""Kokoro-82M (hexgrad, Apache-2.0) as an ONNX graph: English and Chinese in many voices."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import BackendError, MissingError
from stepaudio.speech.backends.onnx_graph import open_session, run
from stepaudio.speech.backends.phonemes import PAUSE
from stepaudio.speech.roles import Samples

_STYLE_ROWS, _STYLE_DIM = 510, 256
_LONGEST_SOUND, _LONGEST_END = 12.0, 8.0  # frames of 25 ms for a phoneme, and for the last mark and the end


class Kokoro:
    """Phoneme ids to samples at 24 kHz, with the duration of each phoneme.

    `model` takes tokens [1, P], style [1, 256] and speed [1]; `vocab` is the JSON of phoneme ids; `voices` is a folder
    of raw float32 files [510, 1, 256], one per voice, whose row is chosen by the number of phonemes.
    """

    # The context is 512 ids; a shorter run bounds the time to the first sound of a long clause.
    max_phonemes = 300

    def __init__(self, *, model: Path, vocab: Path, voices: Path, threads: int) -> None:
        self._session = open_session(
            model,
            durations="/encoder/Clip_output_0",
            limited=("/encoder/Cast_output_0", "/encoder/Clip_capped_0"),
            threads=threads,
        )
        try:
            content = json.loads(vocab.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise MissingError(f"the phoneme table {vocab} cannot be read ({error}); see `stepaudio doctor`") from error
        self.ids: dict[str, int] = content.get("vocab", content)
        self._pauses = {number for symbol, number in self.ids.items() if PAUSE.match(symbol)}
        self._styles = {path.stem: path for path in sorted(voices.glob("*.bin"))}
        self._loaded: dict[str, NDArray[np.float32]] = {}

    @property
    def voices(self) -> tuple[str, ...]:
        return tuple(self._styles)

    def synthesise(
        self, ids: list[int], *, voice: str, speed: float, cancel: Event | None
    ) -> tuple[Samples, NDArray[np.int64]]:
        """Ids [P], padded with 0 at both ends, to samples [T] and frames per id [P]; T is a multiple of their sum."""
        style = self._style(voice)[min(len(ids) - 2, _STYLE_ROWS - 1)]
        # A last vowel is drawn out over silence and the last mark adds its own; both are cut again later, so they
        # need not be rendered in full. The silence before the first phoneme cannot be shortened: the first syllable
        # would be lost.
        longest = np.array([[np.inf if token in self._pauses else _LONGEST_SOUND for token in ids]], np.float32)
        longest[0, 0] = np.inf
        longest[0, -2:] = _LONGEST_END
        longest /= min(speed, 1.0)
        feed = {
            "tokens": np.array([ids], np.int64),
            "style": style,
            "speed": np.array([speed], np.float32),
            "longest": longest,
        }
        samples, frames = run(self._session, feed, cancel)
        return samples, frames.reshape(-1).astype(np.int64)

    def _style(self, voice: str) -> NDArray[np.float32]:
        if voice not in self._loaded:
            path = self._styles[voice]
            style = np.fromfile(path, "<f4")
            if style.size != _STYLE_ROWS * _STYLE_DIM or not np.isfinite(style).all():
                raise BackendError(f"the voice file {path} is damaged; fetch it again with `stepaudio pull`")
            self._loaded[voice] = style.reshape(_STYLE_ROWS, 1, _STYLE_DIM).astype(np.float32)
        return self._loaded[voice]
