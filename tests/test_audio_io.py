"""Reading audio: every container, every kind of bad input, hours in constant memory."""

from __future__ import annotations

import io
import logging
import struct
import tracemalloc
import wave
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stepaudio.audio import encode
from stepaudio.audio import io as audio
from stepaudio.errors import AudioError, InputError, TooLargeError

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE, pitch: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sndfile(signal: np.ndarray, rate: int, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, signal, rate, format=format, subtype=subtype)
    return file.getvalue()


def muxed(format: str, codec: str, seconds: float = 1.0, video: bool = False) -> bytes:
    """A tone as FFmpeg writes it into a container, with a video track before it if asked for; no codec, no audio."""
    rate = 44_100 if format == "flv" else 48_000  # all that flv can carry
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        pictures = container.add_stream("mpeg4", rate=25, width=64, height=64) if video else None
        sound = container.add_stream(codec, rate=rate, layout="stereo") if codec else None
        if pictures is not None:
            for _ in range(round(25 * seconds)):
                container.mux(pictures.encode(av.VideoFrame(64, 64, "yuv420p")))
            container.mux(pictures.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.stack([tone(seconds, rate)] * 2), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return file.getvalue()


def wav(data: bytes, *, rate: int = RATE, channels: int = 1, bits: int = 16, size: int | None = None) -> bytes:
    """A wav file by hand, so that its header can lie."""
    frame = channels * bits // 8
    body = struct.pack("<4sI4s4sIHHII", b"RIFF", 36, b"WAVE", b"fmt ", 16, 1, channels, rate, rate * frame % 2**32)
    body += struct.pack("<HH4sI", frame % 2**16, bits, b"data", len(data) if size is None else size)
    return body + data


# ---------------------------------------------------------------- good input


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_wav_of_every_width(subtype: str) -> None:
    step = {"PCM_U8": 1 / 128, "ULAW": 0.02, "ALAW": 0.02}.get(subtype, 1 / 32_768)
    np.testing.assert_allclose(audio.read(sndfile(tone(), RATE, subtype=subtype)), tone(), atol=step)


# Coded as floats, or not at all, these hold each sample to 16 bits.
EXACT = [
    *(("AIFF", "PCM_24"), ("AU", "PCM_16"), ("AVR", "PCM_16"), ("CAF", "PCM_32"), ("CAF", "ALAC_16")),
    *(("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("HTK", "PCM_16"), ("IRCAM", "PCM_16"), ("MAT4", "PCM_16")),
    *(("MAT5", "DOUBLE"), ("NIST", "PCM_16"), ("PAF", "PCM_24"), ("PVF", "PCM_16"), ("RF64", "PCM_16")),
    *(("SDS", "PCM_16"), ("SVX", "PCM_16"), ("VOC", "PCM_16"), ("W64", "PCM_16"), ("WAVEX", "FLOAT")),
]


@pytest.mark.parametrize(("format", "subtype"), EXACT)
def test_every_sample_of_lossless_files(format: str, subtype: str) -> None:
    back = audio.read(sndfile(tone(), RATE, format, subtype))
    assert len(back) == RATE
    np.testing.assert_allclose(back, tone(), atol=1 / 32_768)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_vorbis_ends_where_it_should(rate: int) -> None:
    assert len(audio.read(sndfile(tone(0.7, rate), rate, "OGG", "VORBIS"), rate=rate)) == round(0.7 * rate)


LOSSY = [
    *(("mp4", "aac"), ("mov", "alac"), ("webm", "libopus"), ("matroska", "flac"), ("mpegts", "aac")),
    *(("avi", "mp2"), ("flv", "aac"), ("asf", "mp2"), ("adts", "aac"), ("mp3", "libmp3lame"), ("ogg", "libopus")),
]


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize(("format", "codec"), LOSSY)
def test_containers_of_the_web_and_of_video(format: str, codec: str, video: bool) -> None:
    if video and format in ("adts", "flv", "mp3", "ogg", "webm"):
        pytest.skip("holds no MPEG-4 video")
    back = audio.read(muxed(format, codec, video=video))
    assert RATE <= len(back) <= 1.1 * RATE  # AAC pads; most of these cannot say how much
    spectrum = np.abs(np.fft.rfft(back[1_000:-1_000] * np.hanning(len(back) - 2_000)))
    assert spectrum.argmax() * RATE / (len(back) - 2_000) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("rate", [4_000, 11_025, 44_100, 384_000])
def test_any_rate(rate: int) -> None:
    back = audio.read(sndfile(tone(rate=rate), rate))
    assert len(back) == RATE
    np.testing.assert_allclose(back[500:-500], tone()[500:-500], atol=1e-3)


def test_channels_are_averaged() -> None:
    levels = np.array([0.8, 0.4, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2], np.float32)
    np.testing.assert_allclose(audio.read(sndfile(np.tile(levels, (RATE, 1)), RATE)), 0.2, atol=1e-4)


def test_silence_is_audio() -> None:
    assert not audio.read(sndfile(np.zeros(RATE), RATE)).any()


def test_floats_over_full_scale_are_clamped() -> None:
    loud = audio.read(sndfile(np.array([0, 3, -3], np.float32), RATE, subtype="FLOAT"))
    np.testing.assert_array_equal(loud, [0, 1, -1])


class Pipe(io.RawIOBase):
    """A file that cannot seek and gives little at a time."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._rest.read(min(size, 1_000))


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "aac"])
def test_every_kind_of_source(format: str, tmp_path: Path) -> None:
    data = encode.encode(tone(), RATE, format)
    path = tmp_path / "no-extension"
    path.write_bytes(data)
    expected = audio.read(data)
    for source in (path, str(path), io.BytesIO(data)):
        np.testing.assert_array_equal(audio.read(source), expected)
    # Of an mp3 whose end it cannot see, FFmpeg does not trim the padding.
    piped = audio.read(Pipe(data))
    np.testing.assert_array_equal(piped[: len(expected)], expected)
    assert len(piped) == len(expected) or format == "mp3"
    with path.open("rb") as file:
        file.seek(100)  # a file that seeks is read from its start, and stays open
        np.testing.assert_array_equal(audio.read(file), expected)
        assert not file.closed


def test_probe() -> None:
    stereo = np.zeros((22_050, 2), np.float32)
    assert audio.probe(sndfile(stereo, 44_100)) == audio.AudioInfo(44_100, 2, 0.5, "wav")
    assert audio.probe(sndfile(stereo, 44_100, "FLAC")) == audio.AudioInfo(44_100, 2, 0.5, "flac")
    assert audio.probe(muxed("mp4", "aac")) == audio.AudioInfo(48_000, 2, pytest.approx(1, abs=0.03), "mov")
    encoder = encode.Encoder("flac", RATE)
    assert audio.probe(encoder.push(tone()) + encoder.flush()).seconds is None


# ---------------------------------------------------------------- streams


@settings(max_examples=40, deadline=None)
@given(seconds=st.floats(0.001, 3), block=st.floats(0.01, 5), rate=st.sampled_from([8_000, 16_000, 24_000, 44_100]))
def test_blocks_join_to_the_whole(seconds: float, block: float, rate: int) -> None:
    data = sndfile(tone(seconds, 22_050), 22_050)
    blocks = list(audio.stream(data, rate=rate, block_seconds=block))
    assert {len(piece) for piece in blocks[:-1]} <= {round(block * rate)}
    assert 0 < len(blocks[-1]) <= round(block * rate)
    np.testing.assert_array_equal(np.concatenate(blocks), audio.read(data, rate=rate))
    assert abs(sum(map(len, blocks)) - round(seconds * 22_050) * rate / 22_050) <= 1


@pytest.mark.parametrize(("format", "minutes"), [("wav", 30), ("flac", 4)])
def test_long_files_in_constant_memory(tmp_path: Path, format: str, minutes: int) -> None:
    minute = tone(60)
    encode.write(tmp_path / "long", (minute for _ in range(minutes)), RATE, format)
    tracemalloc.start()
    try:
        count = sum(len(block) for block in audio.stream(tmp_path / "long"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == minutes * 60 * RATE
    assert peak < 4 * 2**20  # as float32 the whole is 3.7 MiB for each minute


def test_a_change_of_rate_within_a_file() -> None:
    # mp3 files joined end to end play on in every player; here the second has another rate.
    joined = encode.encode(tone(1.0, 16_000), 16_000, "mp3") + encode.encode(tone(1.0, 24_000), 24_000, "mp3")
    assert len(audio.read(joined)) == pytest.approx(2 * RATE, abs=0.2 * RATE)


def _is_open(path: Path) -> bool:
    return any(link.exists() and link.samefile(path) for link in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("format", ["wav", "mp3"])
def test_a_stream_closed_early_releases_the_file(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    encode.write(path, tone(10), RATE, format)
    stream = audio.stream(path)
    next(stream)
    assert _is_open(path)
    stream.close()  # type: ignore[attr-defined]
    assert not _is_open(path)


# ---------------------------------------------------------------- bad input


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.wav", sndfile(tone(), RATE))
    return file.getvalue()


PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c489".replace(" ", ""))
BAD = {
    "empty": (b"", "empty"),
    "text": (b"Hello, world.\n" * 500, "not audio"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>" * 20, "not audio"),
    "png": (PNG + bytes(500), "not audio"),
    "zip": (_zip(), "not audio"),
    "zeros": (bytes(100_000), "not audio"),
    "noise": (np.random.default_rng(0).bytes(100_000), "not audio"),
    "playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n", "not audio"),
    "concat": (b"ffconcat version 1.0\nfile '{path}'\n", "not audio"),
    "half a header": (sndfile(tone(), RATE)[:30], "not audio"),
    "no samples": (wav(b""), "no samples"),
    "no channels": (wav(bytes(3_200), channels=0), "0 channels"),
    "too many channels": (wav(bytes(20_000), channels=100), "100 channels"),
    "rate 0": (wav(bytes(3_200), rate=0), "not audio"),
    "rate 1": (wav(bytes(3_200), rate=1), "1 Hz"),
    "rate 4 GHz": (wav(bytes(3_200), rate=4_000_000_000), "not audio"),
    "video alone": (muxed("mp4", "", video=True), "no audio track"),
    "mp4 without its end, where the index is": (muxed("mp4", "aac")[:5_000], "not audio"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_cause(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, cause = BAD[name]
    target = tmp_path / "secret.wav"
    target.write_bytes(sndfile(tone(), RATE))
    path = tmp_path / "input.wav"
    path.write_bytes(data.replace(b"{path}", str(target).encode()))
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioError, match=cause):
            audio.read(source)
    if name != "no samples":  # whose header is as good as any
        with pytest.raises(AudioError, match=cause):
            audio.probe(path)
    assert capfd.readouterr() == ("", "")


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="there is no file"):
        audio.read(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="is a directory"):
        audio.read(str(tmp_path))
    with pytest.raises(AudioError, match="cannot be read"):
        audio.read("nul\0byte.wav")
    with pytest.raises(AudioError, match="there is no file"):
        audio.read("https://example.org/a.wav")  # a string is a path, never an address


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_samples_that_are_no_numbers_are_refused_by_position(bad: float) -> None:
    signal = np.zeros((100_000, 2))
    signal[54_321, 1] = bad
    with pytest.raises(AudioError, match=r"sample 54321 \(at 1\.232 s\)"):
        audio.read(sndfile(signal, 44_100, subtype="DOUBLE"))


def test_a_rate_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="out of range"):
        audio.read(sndfile(tone(), RATE), rate=0)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 10**8])
def test_a_wav_header_that_lies_about_its_length(size: int) -> None:
    data = wav(sndfile(tone(), RATE)[44:], size=size)
    if size == 0:
        with pytest.raises(AudioError, match="no samples"):
            audio.read(data)
    else:
        assert len(audio.read(data, max_seconds=2)) == RATE


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "aac"])
def test_a_truncated_file_gives_what_is_there(format: str) -> None:
    data = encode.encode(tone(10), RATE, format)
    back = audio.read(data[: len(data) // 2])
    assert 4 * RATE < len(back) < 6 * RATE


def test_damage_in_the_middle_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(encode.encode(tone(10), RATE, "flac"))
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    with caplog.at_level(logging.WARNING):
        back = audio.read(bytes(data))
    assert 9 * RATE < len(back) <= 10 * RATE


class CountedFile(io.BytesIO):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "aac"])
def test_audio_over_the_limit_is_refused_early(format: str) -> None:
    data = encode.encode(tone(60) + 0.01 * np.random.default_rng(0).standard_normal(60 * RATE), RATE, format)
    file = CountedFile(data)
    with pytest.raises(TooLargeError, match="limit of 5 s"):
        audio.read(file, max_seconds=5)
    assert file.count < len(data) / 2
    assert len(audio.read(data, max_seconds=61)) >= 60 * RATE


class FailingFile(io.BytesIO):
    """A disk that fails half way."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > len(self.getvalue()) // 2:
            raise OSError("the disk is on fire")
        return super().read(size)


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "aac"])
def test_a_source_that_fails_is_not_a_short_one(format: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AudioError, match="the disk is on fire"):
        audio.read(FailingFile(encode.encode(tone(20), RATE, format)))
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------- damage, at random


@cache
def victims() -> dict[str, bytes]:
    short = tone(0.5)
    files = {format: encode.encode(short, RATE, format) for format in encode.FORMATS if format != "pcm"}
    files |= {f"{format} {subtype}": sndfile(short, RATE, format, subtype) for format, subtype in EXACT}
    files |= {"vorbis": sndfile(short, RATE, "OGG", "VORBIS"), "adpcm": sndfile(short, RATE, "WAV", "MS_ADPCM")}
    return files | {format: muxed(format, codec, 0.5) for format, codec in LOSSY}


def survives(data: bytes) -> None:
    try:
        audio.probe(data)
        samples = audio.read(data, max_seconds=60)
    except (AudioError, TooLargeError):
        return
    assert len(samples)
    assert np.abs(samples).max() <= 1  # false for NaN too


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2_000))
@example(b"\xff\xfb" * 1_000)
@example(b"RIFF\xff\xff\xff\xffWAVEfmt ")
@example(b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f")
def test_random_bytes(data: bytes) -> None:
    survives(data)


@settings(max_examples=400, deadline=None)
@given(
    name=st.deferred(lambda: st.sampled_from(sorted(victims()))),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.booleans()), max_size=12),
)
def test_random_damage(name: str, keep: float, flips: list[tuple[float, int, bool]]) -> None:
    data = bytearray(victims()[name])
    for place, value, in_header in flips:
        data[int(place * (min(len(data), 200) - 1 if in_header else len(data) - 1))] = value
    survives(bytes(data[: int(len(data) * keep) if keep < 0.9 else len(data)]))


def test_random_damage_is_not_always_fatal() -> None:
    """Guards the tests above: the victims themselves all decode."""
    for data in victims().values():
        assert len(audio.read(data)) >= 0.45 * RATE


def test_iterators_are_lazy(tmp_path: Path) -> None:
    stream: Iterator[np.ndarray] = audio.stream(tmp_path / "missing.wav")
    with pytest.raises(AudioError):
        next(stream)


def test_stdlib_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, 5_000).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(pcm.tobytes())
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav") * 32_768, pcm)
