"""Kokoro-82M (hexgrad, Apache-2.0) as an ONNX graph: English and Chinese in many voices."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import BackendError, MissingError
from stepaudio.speech.backends.onnx_convolution import Products
from stepaudio.speech.backends.onnx_graph import Node, float_input, integer_input, node, open_session, run
from stepaudio.speech.backends.phonemes import PAUSE
from stepaudio.speech.roles import Samples

_STYLE_ROWS, _STYLE_DIM = 510, 256
# Frames of 25 ms: the longest phoneme; the shortest silence before the first phoneme and the length of the last mark
# and of the end; how much of the silence at either end is not rendered.
_SOUND, _LEAD, _MARK, _END = 16, 16, 16, 24
_SKIPPED_LEAD, _SKIPPED_END = 10, 32

# The decoder reads the phonemes spread over frames [1, 512, F], and pitch and energy [1, 2F].
_DURATIONS = "/encoder/Clip_output_0"
_SPREAD, _PITCH, _ENERGY = "/encoder/MatMul_1_output_0", "/encoder/Reshape_output_0", "/encoder/Reshape_1_output_0"
_CHANGED = {_DURATIONS: "frames", _SPREAD: "rendered_spread", _PITCH: "rendered_pitch", _ENERGY: "rendered_energy"}
_PATCH = b"".join(
    [
        *(float_input(name) for name in ("longest", "shortest")),
        *(integer_input(name) for name in ("start", "stop", "start_half", "stop_half")),
        node("Min", [_DURATIONS, "longest"], "not_longer"),
        node("Max", ["not_longer", "shortest"], _CHANGED[_DURATIONS]),
        node("Slice", [_SPREAD, "start", "stop"], _CHANGED[_SPREAD]),
        node("Slice", [_PITCH, "start_half", "stop_half"], _CHANGED[_PITCH]),
        node("Slice", [_ENERGY, "start_half", "stop_half"], _CHANGED[_ENERGY]),
    ]
)


class Kokoro:
    """Phoneme ids to samples at 24 kHz, with the duration of each phoneme.

    `model` takes tokens [1, P], style [1, 256] and speed [1]; `vocab` is the JSON of phoneme ids; `voices` is a folder
    of raw float32 files [510, 1, 256], one per voice, whose row is chosen by the number of phonemes.
    """

    # The context is 512 ids; a shorter run bounds the time to the first sound of a long clause.
    max_phonemes = 300

    def __init__(self, *, model: Path, vocab: Path, voices: Path, threads: int) -> None:
        products = Products(threads=threads)

        def edit(each: Node) -> bytes:
            return products(each.reading(_CHANGED))

        self._session = open_session(model, threads=threads, outputs=[_CHANGED[_DURATIONS]], edit=edit, patch=_PATCH)
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
        # A last vowel is drawn out over silence and the last mark adds its own; both would be cut again later. The
        # encoder has to see the silence at both ends, or the first or the last syllable is lost; the decoder need not
        # render it.
        slowness = 1 / speed
        sound = round(_SOUND * max(slowness, 1.0))
        longest = np.array([[np.inf if token in self._pauses else sound for token in ids]], np.float32)
        shortest = np.zeros_like(longest)
        longest[0, 0], shortest[0, 0] = np.inf, round(_LEAD * slowness)
        longest[0, -2:] = shortest[0, -2:] = round(_MARK * slowness), round(_END * slowness)
        lead, end = round(_SKIPPED_LEAD * slowness), round(_SKIPPED_END * slowness)
        whole = np.iinfo(np.int64).max
        feed = {
            "tokens": np.array([ids], np.int64),
            "style": self._style(voice)[min(len(ids) - 2, _STYLE_ROWS - 1)],
            "speed": np.array([speed], np.float32),
            "longest": longest,
            "shortest": shortest,
            "start": np.array([0, 0, lead]),
            "stop": np.array([whole, whole, -end]),
            "start_half": np.array([0, 2 * lead]),
            "stop_half": np.array([whole, -2 * end]),
        }
        samples, counted = run(self._session, feed, cancel)
        frames = counted.reshape(-1).astype(np.int64)
        frames[0] -= lead
        frames[-2] -= end - frames[-1]
        frames[-1] = 0
        return samples, frames

    def _style(self, voice: str) -> NDArray[np.float32]:
        if voice not in self._loaded:
            path = self._styles[voice]
            style = np.fromfile(path, "<f4")
            if style.size != _STYLE_ROWS * _STYLE_DIM or not np.isfinite(style).all():
                raise BackendError(f"the voice file {path} is damaged; fetch it again with `stepaudio pull`")
            self._loaded[voice] = style.reshape(_STYLE_ROWS, 1, _STYLE_DIM).astype(np.float32)
        return self._loaded[voice]
