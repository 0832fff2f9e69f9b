"""Audio files in: anything that FFmpeg or libsndfile decodes, as a stream of mono float32 samples.

FFmpeg (PyAV) opens everything first, since it knows most containers and plays on after damage. libsndfile takes over
what it decodes better, and what FFmpeg does not open. docs/audio.md has the contracts.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import MAX_RATE, MIN_RATE, Samples, check_finite, check_rate, to_float
from stepaudio.audio.resample import Resampler
from stepaudio.errors import AudioError, TooLargeError

Source = str | os.PathLike[str] | bytes | BinaryIO
"""A path, the bytes of a file, or a file opened for reading bytes (read from its start where it can seek, never
closed). A string is always a path, never a URL."""

MAX_CHANNELS = 64

_log = logging.getLogger(__name__)
_UNKNOWN = "this is not audio, or its header is damaged: send a whole wav, flac, mp3, m4a, ogg or webm file"
_SNDFILE_BLOCK = 16_384
_FFMPEG_CLOCK = Fraction(1, 1_000_000)  # the unit of a container's duration

# FFmpeg opens only these: its playlist formats (hls, dash, concat, sdp, ...) would open whatever other file or
# address the input names, and its text and image formats take anything for a film.
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,dsf,dts,eac3,epaf,flac,flv,gsm,iff,ircam,loas,matroska,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,nistsphere,ogg,pvf,qcp,rm,shn,sox,tak,tta,voc,w64,wav,wsaud,wtv,wv,xwma"
)
# libsndfile takes these over from FFmpeg, which gets the rarer codings in them wrong (G.721, NMS ADPCM) or short by a
# packet (ALAC). In Ogg it takes Vorbis, whose end FFmpeg does not trim. It leaves FLAC and mp3 alone: FFmpeg plays on
# where libsndfile stops at the first damaged frame.
_SNDFILE_CONTAINERS = {"aiff", "au", "avr", "caf", "epaf", "iff", "ircam", "nistsphere", "pvf", "voc", "w64", "wav"}
# These have no header that gives the length; FFmpeg guesses it from the bit rate.
_GUESSED_LENGTH = {"mp3", "aac"}


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file says of its audio. `rate` in Hz. `seconds` is None when the container does not say, and an
    estimate for mp3 and raw aac. `format` is the container by the name of its decoder, such as wav, flac, mp3, ogg,
    mov (mp4 and m4a too) or matroska (webm too)."""

    rate: int
    channels: int
    seconds: float | None
    format: str


def probe(source: Source) -> AudioInfo:
    """Read the header. Raises AudioError when there is no audio in it that could be decoded."""
    with _opened(source) as file, _reader(file) as reader:
        return reader.info


def stream(
    source: Source, *, rate: int = 16_000, block_seconds: float = 1.0, max_seconds: float | None = None
) -> Iterator[Samples]:
    """Decode, mix down to mono (mean of the channels) and resample, hours long in constant memory.

    Yields float32 blocks of `block_seconds` at `rate`, the last one shorter; together they have
    round(T * rate / rate of the file) samples, clamped to [-1, 1]. Damaged parts are skipped; a truncated file
    gives what is there. The file is opened at the first `next` and released at the end, on an error, and by
    `close()`.

    Raises AudioError when nothing can be decoded or a sample is NaN or infinite, TooLargeError as soon as the audio
    is known to be longer than `max_seconds`, InputError for a `rate` outside 1 to 768 kHz.
    """
    check_rate(rate)
    block = max(1, round(block_seconds * rate))
    with _opened(source) as file, _reader(file) as reader:
        info = reader.info
        if max_seconds is not None and info.seconds is not None and info.format not in _GUESSED_LENGTH:
            _check_length(info.seconds, max_seconds)
        empty = True
        for samples in _blocks(_resampled(_mono(reader.frames(), max_seconds), rate), block):
            empty = False
            yield np.clip(samples, -1, 1)
        if empty:
            raise AudioError("the audio holds no samples: record it again, or send a file that was finished")


def read(source: Source, *, rate: int = 16_000, max_seconds: float | None = None) -> Samples:
    """The whole audio as samples [T] at `rate`. Raises what `stream` raises."""
    return np.concatenate(list(stream(source, rate=rate, max_seconds=max_seconds)))


# ---------------------------------------------------------------- samples

_Frames = Iterator[tuple[int, NDArray[np.float32]]]
"""Pieces of decoded audio: sample rate, samples [T, channels]."""


def _mono(frames: _Frames, max_seconds: float | None) -> Iterator[tuple[int, Samples]]:
    position, seconds = 0, 0.0
    for rate, samples in frames:
        check_finite(samples, rate, position)
        position += len(samples)
        seconds += len(samples) / rate
        if max_seconds is not None:
            _check_length(seconds, max_seconds)
        yield rate, samples.mean(axis=1, dtype=np.float32)


def _resampled(pieces: Iterable[tuple[int, Samples]], rate: int) -> Iterator[Samples]:
    resampler: Resampler | None = None
    for in_rate, samples in pieces:
        # The rate may change within a file: recordings joined end to end, as Ogg and mp3 allow.
        if resampler is None or resampler.in_rate != in_rate:
            if resampler is not None:
                yield resampler.flush()
            resampler = Resampler(in_rate, rate)
        yield resampler.push(samples)
    if resampler is not None:
        yield resampler.flush()


def _blocks(pieces: Iterable[Samples], size: int) -> Iterator[Samples]:
    """Pieces of any length to blocks of `size`, the last one shorter."""
    held: list[Samples] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            joined = np.concatenate(held)
            rest = count % size
            yield from joined[: count - rest].reshape(-1, size)
            held, count = [joined[count - rest :]], rest
    if count:
        yield np.concatenate(held)


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise TooLargeError(f"the audio is longer than the limit of {max_seconds:g} s: cut it into shorter pieces")


# ---------------------------------------------------------------- files


@contextmanager
def _opened(source: Source) -> Iterator[_CalmFile]:
    with _raw_file(source) as raw:
        file = _CalmFile(raw)
        if file.seekable():
            if file.seek(0, os.SEEK_END) == 0:
                raise AudioError("the audio is empty (0 bytes): send the whole file")
            file.seek(0)
        try:
            yield file
        except AudioError:
            if file.failure is None:
                raise
        if file.failure is not None:
            raise AudioError(f"reading the audio failed ({file.failure}): try again")


def _raw_file(source: Source) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            return open(source, "rb")
        except FileNotFoundError:
            raise AudioError(f"there is no file {os.fspath(source)!r}: check the path") from None
        except IsADirectoryError:
            raise AudioError(f"{os.fspath(source)!r} is a directory: name an audio file in it") from None
        except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise AudioError(f"{os.fspath(source)!r} cannot be read: {reason}") from None
    return nullcontext(source)


class _CalmFile:
    """A file for the decoders. It keeps what reading raises, which their C code would print with its traceback and
    take for the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: Exception | None = None
        self.seekable = file.seekable
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except (OSError, ValueError) as error:
            self.failure = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with suppress(OSError, ValueError):  # a damaged header may point before the start
            self._file.seek(offset, whence)
        return self.tell()


class _Reader(Protocol):
    info: AudioInfo

    def frames(self) -> _Frames: ...

    def close(self) -> None: ...


def _reader(file: _CalmFile) -> closing[_Reader]:
    """The decoder that a file needs, by its content."""
    try:
        reader = _FFmpegReader(file)
    except AudioError:
        if second := _SndfileReader.attempt(file):
            return closing(second)
        raise
    better = reader.info.format in _SNDFILE_CONTAINERS or reader.codec == "vorbis"
    if better and (second := _SndfileReader.attempt(file)):
        reader.close()
        second.info = replace(second.info, format=reader.info.format)
        return closing(second)
    return closing(reader)


class _FFmpegReader:
    def __init__(self, file: _CalmFile) -> None:
        import av

        # What damage makes PyAV raise; IndexError when an MPEG stream announces a track half way.
        self._damage = (av.FFmpegError, ValueError, IndexError)
        try:
            self._container = av.open(file, "r", options={"format_whitelist": _DEMUXERS}, metadata_errors="ignore")
        except self._damage:
            raise AudioError(_UNKNOWN) from None
        try:
            streams = self._container.streams
            # `best` passes over tracks with an impossible header; the first of those says what is wrong with it.
            self._stream = streams.best("audio") or next(iter(streams.audio), None)
            if self._stream is None:
                raise AudioError("the file has no audio track: send one that has")
            context = self._stream.codec_context
            if context is None:
                raise AudioError("the codec of the audio track is unknown: convert the file to wav, flac or mp3")
            self.codec: str = context.name
            name = self._container.format.name.split(",")[0]
            seconds = _seconds(self._stream.duration, self._stream.time_base)
            if seconds is None:
                seconds = _seconds(self._container.duration, _FFMPEG_CLOCK)
            _check_format(context.sample_rate, context.channels)
            self.info = AudioInfo(context.sample_rate, context.channels, seconds, name)
        except BaseException:
            self.close()
            raise

    def frames(self) -> _Frames:
        damaged = 0
        for packet in self._packets():
            try:
                pieces = [_samples(frame) for frame in packet.decode()]
            except self._damage:
                damaged += 1
            else:
                yield from pieces
        if damaged:
            _log.warning("%d damaged packets of audio were skipped", damaged)

    def _packets(self) -> Iterator[Any]:
        """Packets up to the end, or to where the container is broken."""
        with suppress(*self._damage):
            yield from self._container.demux(self._stream)

    def close(self) -> None:
        self._container.close()


class _SndfileReader:
    def __init__(self, file: _CalmFile) -> None:
        import soundfile

        self._error = soundfile.SoundFileError
        try:
            self._sound = soundfile.SoundFile(file)
        except soundfile.SoundFileError:
            raise AudioError(_UNKNOWN) from None
        try:
            rate, channels = self._sound.samplerate, self._sound.channels
            _check_format(rate, channels)
            self.info = AudioInfo(rate, channels, self._sound.frames / rate, self._sound.format.lower())
        except AudioError:
            self.close()
            raise

    @classmethod
    def attempt(cls, file: _CalmFile) -> _SndfileReader | None:
        """A reader if libsndfile can read the file; otherwise None, and the file stays where it was."""
        if not file.seekable():
            return None
        position = file.tell()
        file.seek(0)
        try:
            return cls(file)
        except AudioError:
            file.seek(position)
            return None

    def frames(self) -> _Frames:
        with suppress(self._error):  # from where the file is broken, nothing more can be decoded
            while len(samples := self._sound.read(_SNDFILE_BLOCK, dtype="float32", always_2d=True)):
                yield self.info.rate, samples

    def close(self) -> None:
        self._sound.close()


def _samples(frame: Any) -> tuple[int, NDArray[np.float32]]:
    """Sample rate and samples [T, channels] of an `av.AudioFrame`."""
    channels = frame.layout.nb_channels
    _check_format(frame.sample_rate, channels)
    pcm = to_float(frame.to_ndarray())  # planar: [channels, T]; packed: [1, T * channels]
    return frame.sample_rate, pcm.T if frame.format.is_planar else pcm.reshape(-1, channels)


def _seconds(duration: int | None, time_base: Fraction | None) -> float | None:
    """FFmpeg's duration in seconds; it says None or nonsense where the container does not say."""
    if duration is None or time_base is None or duration < 0:
        return None
    return float(duration * time_base)


def _check_format(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            f"the file says {rate} Hz, which is out of range ({MIN_RATE} to {MAX_RATE} Hz): export it again"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"the file says {channels} channels (1 to {MAX_CHANNELS} can be read): export it again")
