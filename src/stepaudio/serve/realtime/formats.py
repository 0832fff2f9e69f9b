"""The audio of the protocol: 16-bit PCM at 24 kHz, and G.711 at 8 kHz, streamed in both directions."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stepaudio.agent.errors import RequestError
from stepaudio.audio import g711
from stepaudio.audio.pcm import Samples, to_float, to_int16
from stepaudio.audio.resample import Resampler

PIECE_SECONDS = 0.2
"""Audio in one event: small enough for clients that limit the size of a message, and to be dropped on a barge-in."""
_LAWS: dict[str, g711.Law] = {"audio/pcmu": "mulaw", "audio/pcma": "alaw"}


def rate_of(audio_format: Mapping[str, Any]) -> int:
    return 8_000 if audio_format["type"] in _LAWS else 24_000


class AudioDecoder:
    """What a client sends, as samples at `rate`. A cut in the middle of a sample does no harm."""

    def __init__(self, audio_format: Mapping[str, Any], rate: int) -> None:
        self.format = audio_format
        self._law = _LAWS.get(audio_format["type"])
        self._resampler = Resampler(rate_of(audio_format), rate)
        self._rest = b""

    def push(self, audio: str) -> Samples:
        """Base64 to samples [T]. Raises RequestError."""
        data = self._rest + decode_base64(audio)
        if self._law is not None:
            return self._resampler.push(g711.decode(data, self._law))
        whole = len(data) & ~1
        self._rest = data[whole:]
        return self._resampler.push(to_float(np.frombuffer(data[:whole], "<i2")))

    def flush(self) -> Samples:
        """What the resampler still holds."""
        self._rest = b""
        return self._resampler.flush()


class AudioEncoder:
    """What the agent says, as a client wants it. One for each item."""

    def __init__(self, audio_format: Mapping[str, Any], rate: int) -> None:
        self._law = _LAWS.get(audio_format["type"])
        self._piece = int(PIECE_SECONDS * rate_of(audio_format))
        self._resampler = Resampler(rate, rate_of(audio_format))

    def push(self, samples: Samples) -> Iterator[str]:
        """Samples [T] to pieces of base64."""
        return self._encode(self._resampler.push(samples))

    def flush(self) -> Iterator[str]:
        """What the resampler still holds."""
        return self._encode(self._resampler.flush())

    def _encode(self, samples: Samples) -> Iterator[str]:
        for start in range(0, len(samples), self._piece):
            piece = samples[start : start + self._piece]
            data = g711.encode(piece, self._law) if self._law else to_int16(piece).astype("<i2").tobytes()
            yield base64.b64encode(data).decode("ascii")


def decode_base64(audio: str) -> bytes:
    """Raises RequestError for text that is not base64."""
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"The audio is not valid base64: {error}.", code="invalid_value", param="audio") from None
