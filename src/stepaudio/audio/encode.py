"""Audio files out: samples to wav, flac, mp3, opus, aac or raw pcm, whole or as a stream of bytes.

FFmpeg (PyAV) does all six. docs/audio.md has the contracts.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from stepaudio.audio.pcm import Samples, check_finite, check_rate, to_int16
from stepaudio.audio.resample import Resampler
from stepaudio.errors import AudioError, InputError
from stepaudio.files import replacing


@dataclass(frozen=True, slots=True)
class _Codec:
    """A format in FFmpeg's terms. `rates` are those the codec can carry (any if empty); a lossy codec has a default
    `bit_rate`, in bit/s, that is transparent for mono speech."""

    mime: str
    muxer: str
    encoder: str
    rates: tuple[int, ...] = ()
    bit_rate: int | None = None


_MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_CODECS = {
    "wav": _Codec("audio/wav", "wav", "pcm_s16le"),
    "flac": _Codec("audio/flac", "flac", "flac"),
    "mp3": _Codec("audio/mpeg", "mp3", "libmp3lame", _MPEG_RATES, 64_000),
    "opus": _Codec("audio/ogg", "ogg", "libopus", (8_000, 12_000, 16_000, 24_000, 48_000), 32_000),
    "aac": _Codec("audio/aac", "adts", "aac", _MPEG_RATES, 64_000),
    "pcm": _Codec("audio/pcm", "s16le", "pcm_s16le"),
}
FORMATS: Mapping[str, str] = MappingProxyType({name: codec.mime for name, codec in _CODECS.items()})
"""Format name to MIME type. `pcm` is bare signed 16-bit little endian, `opus` is in Ogg, `aac` in ADTS."""

_EXTENSIONS = {f".{name}": name for name in FORMATS} | {".ogg": "opus", ".wave": "wav", ".raw": "pcm"}
MIN_BIT_RATE, MAX_BIT_RATE = 8_000, 320_000
_OGG_PAGE_US = 100_000  # a page is the unit that leaves; FFmpeg's default of 1 s would hold back the first sound


class Encoder:
    """Samples in, bytes of one file out, as soon as the codec has them.

    Samples are clamped to [-1, 1]. A rate that the codec cannot carry is raised to the next that it can. A stream
    cannot go back to its header: wav has 0xFFFFFFFF for both lengths, flac and mp3 none. `encode` and `write` do.
    """

    def __init__(self, format: str, rate: int, bit_rate: int | None = None) -> None:
        """Raises InputError for an unknown format, a rate outside 1 to 768 kHz, or a bit rate that does not fit."""
        self._sink = _Sink()
        self._muxer = _Muxer(self._sink, format, rate, bit_rate)

    def push(self, samples: Samples) -> bytes:
        """Samples [T] to the bytes now ready, possibly none. Raises AudioError for NaN or infinite samples."""
        self._muxer.add(samples)
        return self._sink.take()

    def flush(self) -> bytes:
        """The end of the file. The encoder is then spent."""
        self._muxer.close()
        return self._sink.take()


def encode(samples: Samples, rate: int, format: str) -> bytes:
    """Samples [T] to a whole file. Raises AudioError for empty, NaN or infinite samples, InputError as `Encoder`."""
    file = io.BytesIO()
    muxer = _Muxer(file, format, rate)
    muxer.add(samples)
    muxer.close()
    muxer.check_not_empty()
    return file.getvalue()


def write(
    path: str | os.PathLike[str],
    blocks: Iterable[Samples] | Samples,
    rate: int,
    format: str | None = None,
) -> float:
    """Write one block of samples [T], or a stream of them, to a file; return the seconds written.

    The format follows the extension unless it is named. The file appears when it is complete: whatever goes wrong
    before, an older file of that name is untouched and nothing is left behind. Raises what `encode` raises, and
    InputError when the path cannot be written.
    """
    path = Path(path)
    format = format or _format_of(path)
    try:
        with replacing(path) as part, open(part, "wb") as file:
            muxer = _Muxer(file, format, rate)
            for block in [blocks] if isinstance(blocks, np.ndarray) else blocks:
                muxer.add(block)
            muxer.close()
            muxer.check_not_empty()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror or error}", param="path") from None
    return muxer.seconds


class _Muxer:
    """Encodes samples into `file`; where that can seek, the header is completed at the end."""

    def __init__(self, file: BinaryIO | _Sink, format: str, rate: int, bit_rate: int | None = None) -> None:
        codec = _codec(format)
        if bit_rate is not None:
            _check_bit_rate(bit_rate, format, codec)
        self._rate = check_rate(rate)
        self._coded_rate = _coded_rate(rate, codec)
        self._resampler = Resampler(rate, self._coded_rate)
        self._pushed = self._encoded = 0
        self._closed = False

        import av
        from av.codec.context import Flags as CodecFlags
        from av.container.core import Flags

        self._new_frame = av.AudioFrame.from_ndarray
        options = {"metadata_header_padding": "0"}
        if codec.muxer == "ogg":
            options["page_duration"] = str(_OGG_PAGE_US)
        if codec.muxer == "wav" and file.seekable():
            options["rf64"] = "auto"  # over 4 GiB, which a plain wav header cannot say
        self._container = av.open(file, "w", format=codec.muxer, container_options=options)
        # Each packet leaves at once, and the same samples give the same bytes: no version of FFmpeg in the file.
        self._container.flags |= Flags.flush_packets.value | Flags.bitexact.value
        self._stream = self._container.add_stream(codec.encoder, rate=self._coded_rate, layout="mono")
        self._stream.codec_context.flags |= int(CodecFlags.bitexact)
        if codec.bit_rate is not None:
            self._stream.bit_rate = bit_rate or codec.bit_rate
        try:
            self._container.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            setting = f"{rate} Hz" if bit_rate is None else f"{rate} Hz at {bit_rate} bit/s"
            raise InputError(f"{format} cannot carry {setting} ({error}): try 24000 Hz without a bit rate") from None

    @property
    def seconds(self) -> float:
        """Seconds of audio added."""
        return self._pushed / self._rate

    def add(self, samples: Samples) -> None:
        if self._closed:
            raise ValueError("the end of this file was written: make a new encoder for more audio")
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise AudioError(f"samples of shape {list(samples.shape)} are not mono: give one dimension, [T]")
        check_finite(samples, self._rate, self._pushed)
        self._pushed += len(samples)
        self._encode(self._resampler.push(samples))

    def close(self) -> None:
        if self._closed:
            return
        self._encode(self._resampler.flush())
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._closed = True

    def check_not_empty(self) -> None:
        if not self._pushed:
            raise AudioError("there are no samples to write")

    def _encode(self, samples: Samples) -> None:
        if not len(samples):
            return
        frame = self._new_frame(to_int16(samples)[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = self._coded_rate
        frame.pts = self._encoded
        self._encoded += len(samples)
        self._container.mux(self._stream.encode(frame))


class _Sink:
    """The write end of a file that cannot seek."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def seekable(self) -> bool:
        return False

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def _codec(format: str) -> _Codec:
    try:
        return _CODECS[format]
    except KeyError:
        raise InputError(f"unknown audio format {format!r}: use one of {', '.join(FORMATS)}", param="format") from None


def _format_of(path: Path) -> str:
    try:
        return _EXTENSIONS[path.suffix.lower()]
    except KeyError:
        raise InputError(
            f"{path.name!r} does not say which audio format to write: end it in one of {', '.join(_EXTENSIONS)}, "
            "or name the format",
            param="format",
        ) from None


def _coded_rate(rate: int, codec: _Codec) -> int:
    """The rate itself, or the next that the codec can carry."""
    if not codec.rates:
        return rate
    return next((coded for coded in codec.rates if coded >= rate), codec.rates[-1])


def _check_bit_rate(bit_rate: int, format: str, codec: _Codec) -> None:
    if codec.bit_rate is None:
        raise InputError(f"{format} is lossless: it takes no bit rate", param="bit_rate")
    if not MIN_BIT_RATE <= bit_rate <= MAX_BIT_RATE:
        raise InputError(
            f"a bit rate of {bit_rate} bit/s is out of range: use {MIN_BIT_RATE} to {MAX_BIT_RATE}", param="bit_rate"
        )
