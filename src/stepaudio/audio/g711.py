"""G.711, the 8-bit companding of telephone lines: mu-law (North America, Japan) and A-law (elsewhere).

Both laws are tables: 256 entries to expand, 65 536 to compress. The tables follow ITU-T Rec. G.711 (1988) with 16-bit
linear samples, negative ones taken in one's complement, as the ITU's own software tools (Rec. G.191) do.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples, to_float, to_int16

Law = Literal["mulaw", "alaw"]


def encode(samples: Samples | NDArray[np.int16], law: Law) -> bytes:
    """Samples [T], float32 or int16, to one byte each. Floats must be finite; what is over full scale is clamped."""
    pcm = samples.astype(np.int16) if samples.dtype == np.int16 else to_int16(samples.astype(np.float32))
    return _compress_table(law)[pcm.view(np.uint16)].tobytes()


def decode(data: bytes, law: Law) -> Samples:
    """Bytes to float32 samples [T]."""
    return to_float(decode_int16(data, law))


def decode_int16(data: bytes, law: Law) -> NDArray[np.int16]:
    """Bytes to int16 samples [T]."""
    return _expand_table(law)[np.frombuffer(data, np.uint8)]


@cache
def _expand_table(law: Law) -> NDArray[np.int16]:
    code = np.arange(256, dtype=np.int32)
    if law == "mulaw":
        code ^= 0xFF  # all bits travel inverted, so that silence is full of ones
        exponent, mantissa = (code >> 4) & 7, code & 15
        # 132 is the bias that makes every segment a power of two; it leaves again here.
        magnitude = ((2 * mantissa + 33) << (exponent + 2)) - 132
        negative = code >= 128
    else:
        code ^= 0x55  # even bits travel inverted
        exponent, mantissa = (code >> 4) & 7, code & 15
        # Segments 0 and 1 share one step size: only from 1 on is the leading one implied.
        magnitude = (2 * mantissa + np.where(exponent == 0, 1, 33)) << (np.maximum(exponent, 1) + 2)
        negative = code < 128
    return np.where(negative, -magnitude, magnitude).astype(np.int16)


@cache
def _compress_table(law: Law) -> NDArray[np.uint8]:
    """Indexed by the 16 bits of the sample read as unsigned."""
    pcm = np.arange(65_536, dtype=np.uint16).view(np.int16).astype(np.int32)
    negative = pcm < 0
    magnitude = np.where(negative, ~pcm, pcm)
    if law == "mulaw":
        biased = np.minimum(magnitude + 132, 0x7FFF)
        exponent = _log2(biased) - 7
        code = (exponent << 4) | ((biased >> (exponent + 3)) & 15)
        code = (code | np.where(negative, 0x80, 0)) ^ 0xFF
    else:
        exponent = np.maximum(_log2(magnitude | 1) - 7, 0)
        code = (exponent << 4) | ((magnitude >> (np.maximum(exponent, 1) + 3)) & 15)
        code = (code | np.where(negative, 0, 0x80)) ^ 0x55
    table: NDArray[np.uint8] = code.astype(np.uint8)
    return table


def _log2(positive: NDArray[np.int32]) -> NDArray[np.int32]:
    """Index of the highest set bit."""
    return (np.frexp(positive)[1] - 1).astype(np.int32)
