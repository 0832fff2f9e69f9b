"""Encoding: every format round trips, streams as it encodes, and leaves nothing half written."""

from __future__ import annotations

import io
import os
import struct
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.audio import io as audio
from stepaudio.audio.encode import FORMATS, Encoder, encode, write
from stepaudio.audio.pcm import to_float
from stepaudio.errors import AudioError, InputError

RATE = 24_000
LOSSLESS = ("wav", "flac", "pcm")


def voice(seconds: float = 1.5, rate: int = RATE) -> np.ndarray:
    """Harmonics of a gliding pitch in syllables: as hard for a codec as speech, and no shift of it resembles it."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (110 * t + 60 * t**2)
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 8))
    return (0.3 * np.sin(4 * np.pi * t) ** 2 * harmonics).astype(np.float32)


def streamed(signal: np.ndarray, rate: int, format: str, cuts: list[int]) -> bytes:
    encoder = Encoder(format, rate)
    pieces = [encoder.push(piece) for piece in np.split(signal, sorted(cuts))]
    return b"".join([*pieces, encoder.flush()])


def decoded(data: bytes, rate: int, format: str) -> np.ndarray:
    if format == "pcm":
        return to_float(np.frombuffer(data, "<i2"))
    return audio.read(data, rate=rate)


def aligned(signal: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    """The delay of `other` in samples, and their correlation there."""
    size = 1 << (len(signal) + len(other)).bit_length()
    cross = np.fft.irfft(np.fft.rfft(other, size) * np.conj(np.fft.rfft(signal, size)), size)
    delay = int(cross.argmax())
    overlap = min(len(signal), len(other) - delay)
    return delay, float(np.corrcoef(signal[:overlap], other[delay : delay + overlap])[0, 1])


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_return_every_sample(format: str, rate: int) -> None:
    signal = voice(rate=rate)
    back = decoded(encode(signal, rate, format), rate, format)
    assert len(back) == len(signal)
    np.testing.assert_allclose(back, signal, atol=0.5 / 32_768)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 48_000])
@pytest.mark.parametrize("format", ["mp3", "opus", "aac"])
def test_lossy_formats_return_the_signal(format: str, rate: int) -> None:
    signal = voice(rate=rate)
    back = decoded(encode(signal, rate, format), rate, format)
    delay, correlation = aligned(signal, back)
    assert correlation > 0.99
    if format == "aac":  # ADTS has no place to say what pads the first and the last frames
        assert 0 <= len(back) - len(signal) <= 4 * 1_024 * max(1, rate / 24_000)
    else:
        assert delay == 0
        assert abs(len(back) - len(signal)) <= 1


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 12_000), max_size=6))
def test_the_bytes_do_not_depend_on_the_cuts(format: str, cuts: list[int]) -> None:
    signal = voice(0.5)
    assert streamed(signal, RATE, format, cuts) == streamed(signal, RATE, format, [])


@pytest.mark.parametrize("format", FORMATS)
def test_a_stream_holds_the_same_audio_as_a_file(format: str) -> None:
    signal = voice()
    from_stream = decoded(streamed(signal, RATE, format, [100, 9_000]), RATE, format)
    from_file = decoded(encode(signal, RATE, format), RATE, format)
    delay, correlation = aligned(from_file, from_stream)
    assert correlation > 0.999
    if format != "mp3":  # whose encoder delay stands in the header that a stream cannot complete
        assert delay == 0
        assert len(from_stream) == len(from_file)


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_leave_before_the_end(format: str) -> None:
    encoder = Encoder(format, RATE)
    signal = voice(1.0)
    early = b"".join(encoder.push(piece) for piece in np.split(signal, 10))
    # Whatever the codec looks ahead, half of a second must be out after one.
    assert len(early) > len(encode(signal, RATE, format)) / 2
    encoder.flush()


def test_a_wav_stream_says_that_its_length_is_unknown() -> None:
    data = streamed(voice(0.1), RATE, "wav", [])
    assert data[:4] == b"RIFF"
    assert struct.unpack("<I", data[4:8])[0] == 0xFFFFFFFF
    assert struct.unpack("<I", data[40:44])[0] == 0xFFFFFFFF
    assert len(data) == 44 + 2 * 2_400


def test_a_wav_file_says_its_length(tmp_path: Path) -> None:
    assert write(tmp_path / "a.wav", voice(1.0), RATE) == 1.0
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.getnframes() == RATE


@pytest.mark.parametrize("format", LOSSLESS)
def test_what_is_over_full_scale_is_clamped(format: str) -> None:
    loud = np.array([0.0, 1.0, 1.5, 100.0, -1.0, -1.5, -100.0], np.float32)
    back = decoded(encode(loud, RATE, format), RATE, format)
    np.testing.assert_allclose(back, [0, 1, 1, 1, -1, -1, -1], atol=1 / 32_768)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused_by_position(bad: float) -> None:
    encoder = Encoder("wav", RATE)
    encoder.push(np.zeros(1_000, np.float32))
    broken = np.zeros(100, np.float32)
    broken[23] = bad
    with pytest.raises(AudioError, match="sample 1023 "):
        encoder.push(broken)


def test_what_is_not_one_channel_is_refused() -> None:
    with pytest.raises(AudioError, match="not mono"):
        encode(np.zeros((100, 2), np.float32), RATE, "wav")


def test_unknown_formats_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wav, flac, mp3, opus, aac, pcm"):
        Encoder("wma", RATE)
    with pytest.raises(InputError, match=r"\.wav"):
        write(tmp_path / "reply.txt", voice(0.1), RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [0, -24_000, 999, 10**9])
def test_impossible_rates_are_refused(rate: int) -> None:
    with pytest.raises(InputError, match="out of range"):
        Encoder("mp3", rate)


@pytest.mark.parametrize("rate", [1_000, 5_512, 65_537, 96_000, 384_000, 768_000])
@pytest.mark.parametrize("format", FORMATS)
def test_unusual_rates_are_carried(format: str, rate: int) -> None:
    signal = voice(0.3, rate=rate)
    assert len(decoded(encode(signal, rate, format), rate, format)) >= len(signal) - 1


def test_bit_rates() -> None:
    signal = voice()

    def size(bit_rate: int) -> int:
        encoder = Encoder("mp3", RATE, bit_rate)
        return len(encoder.push(signal) + encoder.flush())

    assert size(32_000) < size(64_000) < size(128_000)
    with pytest.raises(InputError, match="lossless"):
        Encoder("flac", RATE, 64_000)
    for bit_rate in (0, 7_999, 320_001):
        with pytest.raises(InputError, match="out of range"):
            Encoder("opus", RATE, bit_rate)
    with pytest.raises(InputError, match="320000 bit/s"):  # beyond what mono Opus allows
        Encoder("opus", RATE, 320_000)


def test_an_encoder_is_spent_after_flush() -> None:
    encoder = Encoder("opus", RATE)
    encoder.push(voice(0.1))
    assert encoder.flush()
    assert encoder.flush() == b""
    with pytest.raises(ValueError, match="new encoder"):
        encoder.push(voice(0.1))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.opus", "a.ogg", "a.aac", "A.WAV"])
def test_write_follows_the_extension_and_streams(tmp_path: Path, name: str) -> None:
    signal = voice(1.0)
    assert write(tmp_path / name, iter(np.split(signal, 10)), RATE) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == encode(signal, RATE, "opus" if ".o" in name else name[2:].lower())


def test_a_named_format_wins_over_the_extension(tmp_path: Path) -> None:
    write(tmp_path / "reply", voice(0.2), RATE, format="flac")
    assert audio.probe(tmp_path / "reply").format == "flac"


def _broken_blocks() -> Iterator[np.ndarray]:
    yield voice(0.5)
    raise RuntimeError("the voice failed")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "reply.mp3"
    path.write_bytes(b"the old one")
    with pytest.raises(RuntimeError, match="the voice failed"):
        write(path, _broken_blocks(), RATE)
    with pytest.raises(AudioError, match="NaN"):
        write(path, np.full(100, np.nan, np.float32), RATE)
    with pytest.raises(AudioError, match="no samples"):
        write(path, [], RATE)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("reply.mp3", b"the old one")]


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        write(tmp_path / "missing" / "a.wav", voice(0.1), RATE)
    (tmp_path / "b.wav").mkdir()
    with pytest.raises(InputError, match="directory"):
        write(tmp_path / "b.wav", voice(0.1), RATE)
    (tmp_path / "c.wav").touch()
    with pytest.raises(InputError, match="Not a directory"):
        write(tmp_path / "c.wav" / "d.wav", voice(0.1), RATE)
    with pytest.raises(InputError, match="cannot be written"):
        write("", voice(0.1), RATE, format="wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.wav", "c.wav"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_as_a_stream(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        data = pool.submit(pipe.read_bytes)
        write(pipe, voice(0.2), RATE)
        assert data.result(10) == streamed(voice(0.2), RATE, "wav", [])
    assert pipe.is_fifo()


def test_an_empty_whole_is_refused() -> None:
    with pytest.raises(AudioError, match="no samples"):
        encode(np.empty(0, np.float32), RATE, "wav")


def test_an_abandoned_encoder_is_harmless() -> None:
    for format in FORMATS:
        Encoder(format, RATE).push(voice(0.2))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(LOSSLESS), st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=300))
def test_any_samples_survive(format: str, values: list[float]) -> None:
    signal = np.array(values, np.float32)
    back = decoded(encode(signal, RATE, format), RATE, format)
    np.testing.assert_allclose(back, np.clip(signal, -1, 1), atol=1 / 32_768)


def test_python_agrees_on_the_samples() -> None:
    signal = voice(0.2)
    with wave.open(io.BytesIO(encode(signal, RATE, "wav"))) as file:
        assert file.readframes(10**6) == encode(signal, RATE, "pcm")
