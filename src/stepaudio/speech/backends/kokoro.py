"""Kokoro-82M (hexgrad, Apache-2.0) as an ONNX graph: English and Chinese in many voices."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import BackendError, MissingError
from stepaudio.speech.backends.onnx_convolution import Products
from stepaudio.speech.backends.onnx_graph import (
    INT64,
    Node,
    constant,
    float_input,
    integer_input,
    node,
    open_session,
    run,
)
from stepaudio.speech.roles import Samples

_STYLE_ROWS, _STYLE_DIM = 510, 256
# Frames of 25 ms: the shortest silence before the first phoneme, and how much of it is not rendered; how much is
# rendered of the last phoneme, which may be drawn out over silence, and behind it.
_LEAD, _SKIPPED = 16, 10
_LAST, _BEHIND = 16, 8

# The decoder reads the phonemes spread over frames [1, 512, F], and pitch and energy [1, 2F].
_DURATIONS = "/encoder/Clip_output_0"
_SPREAD, _PITCH, _ENERGY = "/encoder/MatMul_1_output_0", "/encoder/Reshape_output_0", "/encoder/Reshape_1_output_0"
_CHANGED = {_DURATIONS: "frames", _SPREAD: "rendered_spread", _PITCH: "rendered_pitch", _ENERGY: "rendered_energy"}
_INTEGERS = {"minus_3": -3, "minus_2": -2, "one": 1, "two": 2, "whole": np.iinfo(np.int64).max}
_PATCH = b"".join(
    [
        *(float_input(name) for name in ("shortest", "last", "behind")),
        integer_input("start"),
        *(constant(name, np.array([value])) for name, value in _INTEGERS.items()),
        node("Max", [_DURATIONS, "shortest"], "frames"),
        # The end: the last phoneme, its mark and the pad behind it.
        node("Slice", ["frames", "minus_3", "whole", "one"], "ending"),
        node("Slice", ["frames", "minus_3", "minus_2", "one"], "last_frames"),
        node("Min", ["last_frames", "last"], "last_rendered"),
        node("Add", ["last_rendered", "behind"], "rendered"),
        node("ReduceSum", ["ending"], "ending_frames", keepdims=1),
        node("Sub", ["ending_frames", "rendered"], "too_many"),
        node("Relu", ["too_many"], "skipped"),
        node("ReduceSum", ["frames"], "all_frames", keepdims=1),
        node("Sub", ["all_frames", "skipped"], "stop_frame"),
        node("Cast", ["stop_frame"], "stop_integer", to=INT64),
        node("Reshape", ["stop_integer", "one"], "stop"),
        node("Mul", ["start", "two"], "start_half"),
        node("Mul", ["stop", "two"], "stop_half"),
        node("Slice", [_SPREAD, "start", "stop", "two"], _CHANGED[_SPREAD]),
        node("Slice", [_PITCH, "start_half", "stop_half", "one"], _CHANGED[_PITCH]),
        node("Slice", [_ENERGY, "start_half", "stop_half", "one"], _CHANGED[_ENERGY]),
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

        self._session = open_session(model, threads=threads, outputs=["frames"], edit=edit, patch=_PATCH)
        try:
            content = json.loads(vocab.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise MissingError(f"the phoneme table {vocab} cannot be read ({error}); see `stepaudio doctor`") from error
        self.ids: dict[str, int] = content.get("vocab", content)
        self._styles = {path.stem: path for path in sorted(voices.glob("*.bin"))}
        self._loaded: dict[str, NDArray[np.float32]] = {}

    @property
    def voices(self) -> tuple[str, ...]:
        return tuple(self._styles)

    def synthesise(
        self, ids: list[int], *, voice: str, speed: float, cancel: Event | None
    ) -> tuple[Samples, NDArray[np.int64]]:
        """Ids [P], padded with 0 at both ends, to samples [T] and frames per id [P]; T is a multiple of their sum."""
        # The encoder has to see the silence at both ends, or the first or the last syllable is lost; most of it is cut
        # again later, so the decoder need not render it.
        slowness = 1 / speed
        shortest = np.zeros((1, len(ids)), np.float32)
        shortest[0, 0] = round(_LEAD * slowness)
        skipped, last, behind = (round(frames * slowness) for frames in (_SKIPPED, _LAST, _BEHIND))
        feed = {
            "tokens": np.array([ids], np.int64),
            "style": self._style(voice)[min(len(ids) - 2, _STYLE_ROWS - 1)],
            "speed": np.array([speed], np.float32),
            "shortest": shortest,
            "last": np.array([last], np.float32),
            "behind": np.array([behind], np.float32),
            "start": np.array([skipped]),
        }
        samples, counted = run(self._session, feed, cancel)
        frames = counted.reshape(-1).astype(np.int64)
        rendered = min(frames[-3:].sum(), min(frames[-3], last) + behind)
        frames[-3] = min(frames[-3], rendered)
        frames[-2:] = rendered - frames[-3], 0
        frames[0] -= skipped
        return samples, frames

    def _style(self, voice: str) -> NDArray[np.float32]:
        if voice not in self._loaded:
            path = self._styles[voice]
            style = np.fromfile(path, "<f4")
            if style.size != _STYLE_ROWS * _STYLE_DIM or not np.isfinite(style).all():
                raise BackendError(f"the voice file {path} is damaged; fetch it again with `stepaudio pull`")
            self._loaded[voice] = style.reshape(_STYLE_ROWS, 1, _STYLE_DIM).astype(np.float32)
        return self._loaded[voice]
