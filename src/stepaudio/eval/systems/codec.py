"""Codecs that everybody knows, to hold resynthesis from tokens against."""

from __future__ import annotations

import re
import time

from stepaudio.audio import g711
from stepaudio.audio.encode import Encoder
from stepaudio.audio.io import read
from stepaudio.audio.resample import resample
from stepaudio.errors import InputError
from stepaudio.eval.items import Audio, Kind, Reply, Request

_RATE = 16_000


class CodecSystem:
    """`g711` (mu-law, 64 kbit/s at 8 kHz) or `opus-12k` (any bit rate)."""

    kinds: frozenset[Kind] = frozenset(("resynthesise",))

    def __init__(self, codec: str) -> None:
        """Raises InputError for a codec that is not known."""
        found = re.fullmatch(r"g711|opus-(\d+)k", codec)
        if not found:
            raise InputError(
                f"no codec is called {codec!r}; known: g711, opus-12k (or another bit rate)", param="system"
            )
        self._bit_rate = int(found[1]) * 1000 if found[1] else None
        self.name = codec
        self.fingerprint = f"codec:{codec}"

    def parallel(self, kind: Kind) -> int:
        return 1

    def prepare(self, kind: Kind) -> None:
        """Nothing to load."""

    def run(self, request: Request) -> tuple[Reply, ...]:
        assert request.clip is not None
        samples = request.clip.samples(_RATE)
        started = time.perf_counter()
        if self._bit_rate is None:
            narrow = g711.decode(g711.encode(resample(samples, _RATE, 8_000), "mulaw"), "mulaw")
            audio = Audio(resample(narrow, 8_000, _RATE), _RATE)
        else:
            encoder = Encoder("opus", _RATE, self._bit_rate)
            audio = Audio(read(encoder.push(samples) + encoder.flush(), rate=_RATE), _RATE)
        return (Reply("", audio, seconds=time.perf_counter() - started),)

    def close(self) -> None:
        """Nothing to release."""
