"""Voice activity: the network as a stream, and cutting at pauses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stepaudio.agent.turn import Ended, TurnConfig, TurnDetector
from stepaudio.audio.io import read
from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import RATE, SPEECH, WINDOW, GatedVadStream, SileroVad, Stretch, VadStream, segments
from stepaudio.errors import AudioError, InputError, MissingError
from stepaudio.speech.weights import Store, catalogue

SECONDS = WINDOW / RATE


class PlainVad(SileroVad):
    """The probability of a window is the mean of its magnitudes, so that a test can write it into the audio."""

    def __init__(self) -> None: ...

    def run(self, window: Samples, state: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        return float(np.abs(window[-WINDOW:]).mean()), state


def audio_of(probabilities: list[float]) -> Samples:
    """Audio whose windows have these probabilities, and in which every sample is different from its neighbour."""
    audio = np.repeat(np.array(probabilities, dtype=np.float32), WINDOW)
    audio[1::2] *= -1
    return audio


def cut(audio: Samples, lengths: list[int]) -> Iterator[Samples]:
    """Blocks of these lengths, again and again."""
    position = 0
    while position < len(audio):
        for length in lengths:
            yield audio[position : position + length]
            position += length


def found(probabilities: list[float], **limits: float) -> list[tuple[int, int]]:
    """The stretches found, as (start, end) in windows."""
    stretches = list(segments([audio_of(probabilities)], PlainVad(), **{"max_seconds": 30.0, **limits}))
    return [(round(s.start / SECONDS), round(s.end / SECONDS)) for s in stretches]


# ---------------------------------------------------------------- the stream


class SumVad(SileroVad):
    """Depends on the whole past through its state, and on the context, as the network does."""

    def __init__(self) -> None: ...

    def run(self, window: Samples, state: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        state = state * np.float32(0.5) + window.sum()
        return float(state[0, 0, 0] + window[0]), state


@given(
    total=st.integers(0, 3000),
    lengths=st.lists(st.integers(0, 1300), min_size=1).filter(any),
    seed=st.integers(0, 9),
)
def test_any_cutting_gives_the_same_probabilities(total: int, lengths: list[int], seed: int) -> None:
    audio = np.random.default_rng(seed).standard_normal(total).astype(np.float32)
    stream = VadStream(SumVad())
    for _ in range(2):  # flush leaves it as new
        parts = [stream.push(block) for block in cut(audio, lengths)] + [stream.flush()]
        np.testing.assert_array_equal(np.concatenate(parts), SumVad().probabilities(audio))
    assert len(SumVad().probabilities(audio)) == -(-total // WINDOW)


def test_reset_forgets() -> None:
    audio = audio_of([0.3, 0.9])
    stream = VadStream(SumVad())
    stream.push(audio[:700])
    stream.reset()
    np.testing.assert_array_equal(stream.push(audio), SumVad().probabilities(audio))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(512), "float32"),
        (np.zeros((2, 512), np.float32), r"\[2, 512\]"),
        ([0.0] * 512, "list"),
    ],
)
def test_unusable_arrays_are_refused(samples: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VadStream(SumVad()).push(samples)  # type: ignore[arg-type]


def test_the_position_of_a_nan_counts_from_the_start_of_the_stream() -> None:
    stream = VadStream(SumVad())
    stream.push(np.zeros(1000, np.float32))
    with pytest.raises(AudioError, match="sample 1002"):
        stream.push(np.array([0, 0, np.nan], np.float32))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"silero\.onnx"):
        SileroVad(tmp_path / "silero.onnx")


# ---------------------------------------------------------------- cutting


def test_a_pause_ends_a_stretch_and_padding_is_kept() -> None:
    speech = [0.0] * 20 + [0.9] * 30 + [0.0] * 40 + [0.9] * 10 + [0.0] * 40
    # 0.25 s of padding are 8 windows.
    assert found(speech) == [(12, 58), (82, 108)]


def test_a_short_pause_does_not() -> None:
    assert found([0.9] * 10 + [0.0] * 15 + [0.9] * 10) == [(0, 35)]


def test_padding_never_takes_what_the_stretch_before_has() -> None:
    # 0.5 s of pause are 16 windows: both want 12 of the 17.
    assert found([0.9] * 10 + [0.0] * 17 + [0.9] * 10, pad=0.4) == [(0, 22), (22, 37)]


def test_without_a_pause_it_is_cut_where_speech_is_least_likely() -> None:
    speech = [0.9] * 60
    speech[39:44] = [0.7] * 5
    speech[10:13] = [0.5, 0.5, 0.5]  # in the first half: too early to cut
    assert found(speech, max_seconds=50 * SECONDS, pad=0.1) == [(0, 42), (42, 60)]


def test_the_last_window_may_be_incomplete() -> None:
    audio = np.concatenate([audio_of([0.9] * 3), np.full(400, 0.9, np.float32)])
    (stretch,) = segments([audio], PlainVad(), max_seconds=30)
    np.testing.assert_array_equal(stretch.samples, audio)


def test_silence_gives_nothing() -> None:
    assert found([0.0] * 100) == []
    assert list(segments([], PlainVad(), max_seconds=30)) == []


@pytest.mark.parametrize("limits", [{"max_seconds": 0.3}, {"max_seconds": 30, "pad": 0.6}, {"max_seconds": 0.0}])
def test_impossible_limits_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(InputError, match="cannot cut"):
        list(segments([], PlainVad(), **limits))


runs = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.45, 0.55, 0.7, 0.95]), st.integers(1, 40)), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(
    runs=runs,
    lengths=st.lists(st.integers(1, 40_000), min_size=1, max_size=4),
    longest=st.integers(24, 100),
    pad=st.integers(0, 8),
    spare=st.integers(0, WINDOW - 1),
)
def test_stretches_are_ordered_bounded_and_lose_no_speech(
    runs: list[tuple[float, int]], lengths: list[int], longest: int, pad: int, spare: int
) -> None:
    probabilities = [value for value, count in runs for _ in range(count)]
    audio = audio_of(probabilities)[: len(probabilities) * WINDOW - spare]

    def stretches(blocks: Iterator[Samples]) -> list[Stretch]:
        limits = {"max_seconds": longest * SECONDS, "pad": pad * SECONDS}
        return list(segments(blocks, PlainVad(), **limits))

    result = stretches(cut(audio, lengths))
    covered = np.zeros(len(audio), dtype=bool)
    end = 0
    for stretch in result:
        start = round(stretch.start * RATE)
        assert start >= end
        end = start + len(stretch.samples)
        assert 0 < len(stretch.samples) <= longest * WINDOW
        np.testing.assert_array_equal(stretch.samples, audio[start:end])
        covered[start:end] = True
        window = np.abs(stretch.samples[: len(stretch.samples) // WINDOW * WINDOW]).reshape(-1, WINDOW).mean(axis=1)
        assert len(window) < 2 or window.max() >= SPEECH
    spoken = np.abs(audio) >= SPEECH
    if spare:  # the last window is filled up with silence: it may sink below the threshold
        spoken[len(audio) // WINDOW * WINDOW :] = False
    assert covered[spoken].all()
    again = stretches(cut(audio, [len(audio)]))
    assert [(s.start, len(s.samples)) for s in again] == [(s.start, len(s.samples)) for s in result]


def test_hours_pass_in_constant_memory() -> None:
    """What is held never grows past one stretch, whatever went before."""
    held = []
    block = audio_of([0.9] * 20 + [0.1] * 30)

    def blocks() -> Iterator[Samples]:
        for _ in range(200):
            yield block.copy()

    for stretch in segments(blocks(), PlainVad(), max_seconds=30):
        held.append(len(stretch.samples))
    assert len(held) == 200
    assert max(held) <= len(block)


# ---------------------------------------------------------------- with the real weights


@pytest.mark.weights
def test_the_network_hears_speech_and_not_noise() -> None:
    from stepaudio.audio.io import read

    vad = SileroVad(Store().verified(catalogue()["silero-vad"]) / "silero_vad.onnx")
    speech = read(Path(__file__).parents[1] / "examples" / "question-en.flac")
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * np.float32(0.05)
    probabilities = vad.probabilities(speech)
    assert np.mean(probabilities >= SPEECH) > 0.4
    assert np.max(vad.probabilities(noise)) < SPEECH
    stream = vad.stream()
    parts = [stream.push(block) for block in cut(speech, [160, 777, 3000])] + [stream.flush()]
    np.testing.assert_array_equal(np.concatenate(parts), probabilities)


# ---------------------------------------------------------------- the gate


class CountingVad(SileroVad):
    """Counts the windows that the network is asked for."""

    def __init__(self, vad: SileroVad) -> None:
        self.vad = vad
        self.windows = 0

    def run(self, window: Samples, state: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        self.windows += 1
        return self.vad.run(window, state)


def noise(seconds: float, level: float, seed: int = 0) -> Samples:
    drawn = np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32) * np.float32(level)
    rounded: Samples = np.round(drawn * 32767).astype(np.float32) / 32768
    return rounded


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_any_cutting_of_a_gated_stream_gives_the_same(lengths: list[int]) -> None:
    audio = np.concatenate([noise(3.0, 0.001), audio_of([0.6] * 5), noise(3.0, 0.001)])
    whole = GatedVadStream(PlainVad()).push(audio)
    stream = GatedVadStream(PlainVad())
    assert np.array_equal(np.concatenate([stream.push(block) for block in cut(audio, lengths)]), whole)


@pytest.mark.parametrize("level", [0.0, 0.0001, 0.003, 0.1])
def test_the_network_sleeps_while_nothing_begins(level: float) -> None:
    vad = CountingVad(PlainVad())
    stream = GatedVadStream(vad)
    stream.push(noise(5.0, level))
    asked = vad.windows
    stream.push(noise(60.0, level, seed=1))
    assert vad.windows - asked < 0.1 * 60.0 / SECONDS
    before = vad.windows
    stream.push(noise(SECONDS, level + 0.05, seed=2) * 2)
    assert vad.windows - before == 9  # what was skipped just before is heard too


def test_a_gate_stays_open_while_the_network_hears_something() -> None:
    vad = CountingVad(PlainVad())
    steady = audio_of([0.2] * 500)
    assert (GatedVadStream(vad).push(steady) > 0).all()
    assert vad.windows == 500


def turns(probabilities: NDArray[np.float32]) -> list[tuple[float, float]]:
    detector, found = TurnDetector(TurnConfig.server_vad()), []
    for probability in probabilities:
        found += [(e.start, e.end) for e in detector.push(float(probability)) if isinstance(e, Ended)]
    return found


@pytest.mark.weights
@pytest.mark.parametrize("name", ["question-en", "question-zh"])
@pytest.mark.parametrize("loudness", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("snr", [None, 20, 10, 5, 0])
def test_no_speech_is_lost_at_the_gate(name: str, loudness: float, snr: int | None) -> None:
    """In silence and in noise, loud and quiet: every turn that the network finds is found, and begins when it does."""
    silero = SileroVad(Store().verified(catalogue()["silero-vad"]) / "silero_vad.onnx")
    speech = read(Path(__file__).parent.parent / "examples" / f"{name}.flac", rate=RATE)
    spoken = float(np.sqrt(np.mean(np.square(speech[np.abs(speech) > 0.01]))))
    audio = np.concatenate([np.zeros(6 * RATE, np.float32), speech, np.zeros(4 * RATE, np.float32)])
    if snr is not None:
        audio += noise(len(audio) / RATE, 1.0)[: len(audio)] * np.float32(spoken * 10 ** (-snr / 20))
    audio = np.clip(audio * np.float32(loudness), -1, 1)
    plain = turns(silero.stream().push(audio))
    gated = turns(GatedVadStream(silero).push(audio))
    assert plain or (snr == 0 and loudness < 1)
    for start, end in plain:
        (same,) = [turn for turn in gated if turn[0] < end and turn[1] > start]
        assert same[0] <= start + 2 * SECONDS
        assert same[1] >= end - 2 * SECONDS
    assert all(start >= 5.9 for start, _ in gated)  # and none where there is only noise
