"""G.711 against a slow reference written from the decision values of the Recommendation."""

from __future__ import annotations

import bisect
from functools import cache

import numpy as np
import pytest

from stepaudio.audio import g711

ALL_CODES = bytes(range(256))
ALL_INT16 = np.arange(-32_768, 32_768).astype(np.int16)


@cache
def _levels(law: g711.Law) -> tuple[list[int], list[int]]:
    """Decision values x_0..x_127 and output values y_0..y_127 of the positive half, on the 16-bit scale.

    Rec. G.711 gives eight segments of sixteen equal steps. mu-law (table 2, 14 bits): the step doubles from segment
    to segment starting at 2, the very first step is half as wide. A-law (table 1, 13 bits): steps of 2, 2, 4, 8, ...
    """
    edges, outputs = [0], []
    if law == "mulaw":
        steps = [1] + [2] * 15 + [2 << segment for segment in range(1, 8) for _ in range(16)]
        scale = 4
    else:
        steps = [2] * 32 + [2 << segment for segment in range(1, 7) for _ in range(16)]
        scale = 8
    for step in steps:
        edges.append(edges[-1] + step)
        outputs.append((edges[-2] + edges[-1]) * scale // 2)
    if law == "mulaw":
        outputs[0] = 0
    return [edge * scale for edge in edges[:-1]], outputs


def _reference_encode(pcm: int, law: g711.Law) -> int:
    edges, _ = _levels(law)
    magnitude = -pcm - 1 if pcm < 0 else pcm
    level = bisect.bisect_right(edges, magnitude) - 1
    if law == "mulaw":
        return ~(level | (0x80 if pcm < 0 else 0)) & 0xFF
    return (level | (0 if pcm < 0 else 0x80)) ^ 0x55


def _reference_decode(code: int, law: g711.Law) -> int:
    _, outputs = _levels(law)
    bits = ~code & 0xFF if law == "mulaw" else code ^ 0x55
    negative = bool(bits & 0x80) == (law == "mulaw")
    return -outputs[bits & 0x7F] if negative else outputs[bits & 0x7F]


@pytest.fixture(params=["mulaw", "alaw"])
def law(request: pytest.FixtureRequest) -> g711.Law:
    return request.param


def test_every_code_expands_as_the_recommendation_says(law: g711.Law) -> None:
    expected = [_reference_decode(code, law) for code in ALL_CODES]
    assert g711.decode_int16(ALL_CODES, law).tolist() == expected


def test_every_sample_compresses_as_the_recommendation_says(law: g711.Law) -> None:
    expected = [_reference_encode(pcm, law) for pcm in ALL_INT16.tolist()]
    assert list(g711.encode(ALL_INT16, law)) == expected


def test_known_values() -> None:
    # Rec. G.711, tables 1 and 2: the outermost output values, and silence as it travels.
    assert g711.decode_int16(b"\x80\x00\xff", "mulaw").tolist() == [32_124, -32_124, 0]
    assert g711.decode_int16(b"\xaa\x2a\xd5", "alaw").tolist() == [32_256, -32_256, 8]
    assert g711.encode(np.zeros(2, np.int16), "mulaw") == b"\xff\xff"
    assert g711.encode(np.zeros(2, np.int16), "alaw") == b"\xd5\xd5"


def test_codes_survive_a_round_trip(law: g711.Law) -> None:
    again = g711.encode(g711.decode_int16(ALL_CODES, law), law)
    changed = [code for code in ALL_CODES if again[code] != code]
    assert changed == ([0x7F] if law == "mulaw" else [])  # mu-law has a second zero


def test_floats_are_int16_scaled_and_clamped(law: g711.Law) -> None:
    floats = ALL_INT16.astype(np.float32) / 32_768
    assert g711.encode(floats, law) == g711.encode(ALL_INT16, law)
    beyond = np.array([2.5, -2.5], np.float32)
    assert g711.encode(beyond, law) == g711.encode(np.array([32_767, -32_768], np.int16), law)
    decoded = g711.decode(ALL_CODES, law)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded * 32_768, g711.decode_int16(ALL_CODES, law))


def test_nothing_in_nothing_out(law: g711.Law) -> None:
    assert g711.encode(np.empty(0, np.float32), law) == b""
    assert len(g711.decode(b"", law)) == 0
