"""Samples and the integers they travel as. Everything inside stepaudio is mono float32 in [-1, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import AudioError, InputError

Samples = NDArray[np.float32]
"""Mono float32 samples in [-1, 1], shape [T]."""

MIN_RATE = 1_000
MAX_RATE = 768_000


def to_int16(samples: Samples) -> NDArray[np.int16]:
    """Finite samples of any shape to 16-bit integers: rounded to nearest, clamped at full scale, never wrapped."""
    scaled = np.rint(np.asarray(samples, dtype=np.float32) * np.float32(32_768))
    pcm: NDArray[np.int16] = np.clip(scaled, -32_768, 32_767).astype(np.int16)
    return pcm


def to_float(pcm: NDArray[Any]) -> NDArray[np.float32]:
    """Integers of full scale (uint8 is offset binary) or floats, of any shape, to float32 in [-1, 1]."""
    if pcm.dtype.kind == "f":
        # A float64 beyond float32 becomes infinite, which every reader refuses.
        with np.errstate(over="ignore"):
            return pcm.astype(np.float32)
    if pcm.dtype == np.uint8:
        return (pcm.astype(np.float32) - np.float32(128)) / np.float32(128)
    return pcm.astype(np.float32) * np.float32(2.0 ** (1 - 8 * pcm.dtype.itemsize))


def check_rate(rate: int) -> int:
    """Return the rate. Raises InputError outside 1 to 768 kHz."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"a sample rate of {rate} Hz is out of range: use {MIN_RATE} to {MAX_RATE} Hz", param="rate")
    return rate


def check_finite(samples: NDArray[np.float32], rate: int, start: int = 0) -> None:
    """Raise AudioError naming the first NaN or infinity in samples [T, ...], whose first is sample `start`."""
    if np.isfinite(samples).all():
        return
    bad = ~np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
    position = start + int(bad.argmax())
    raise AudioError(
        f"sample {position} (at {position / rate:.3f} s) is NaN or infinite: "
        "repair the file, or export it again as 16-bit integers"
    )
