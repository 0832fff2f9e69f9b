"""What is known of utterances that grow: nothing is asked twice, and the answers are those of hearing it all anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import WINDOW, SileroVad
from stepaudio.speech.backends.utterances import Utterance, Utterances

RNG = np.random.default_rng(3)
AUDIO = RNG.standard_normal(20 * WINDOW + 77).astype(np.float32)


class CountingVad(SileroVad):
    """A network whose answer depends on everything it heard before."""

    def __init__(self) -> None:
        self.windows = 0

    def run(self, window: NDArray[np.float32], state: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        self.windows += 1
        state = 0.9 * state + np.float32(window.mean())
        return float(np.tanh(np.abs(state).sum())), state


def heard(utterances: Utterances, samples: Samples, vad: SileroVad) -> NDArray[np.float32]:
    utterance = utterances.recall(samples).more(samples, vad)
    utterances.know(utterance)
    return utterance.probabilities(samples[len(utterance.speech) * WINDOW :])


@pytest.mark.parametrize("lengths", [[9000, 9000], [9000, 9011, 10317], [9000, 9728, 9100], [8000, 8000 + WINDOW]])
def test_a_growing_utterance_gets_the_answers_of_one_that_is_new(lengths: list[int]) -> None:
    vad, utterances = CountingVad(), Utterances(4)
    for length in lengths:
        expected = vad.probabilities(AUDIO[:length])
        np.testing.assert_array_equal(heard(utterances, AUDIO[:length], vad), expected)
    assert len(utterances) == 1


def test_only_what_is_new_is_asked() -> None:
    vad, utterances = CountingVad(), Utterances(4)
    heard(utterances, AUDIO[: 18 * WINDOW], vad)
    vad.windows = 0
    heard(utterances, AUDIO, vad)
    assert vad.windows == 2 + 1  # two whole windows, and the rest


def test_what_begins_alike_and_goes_on_otherwise_is_asked_anew() -> None:
    vad, utterances = CountingVad(), Utterances(4)
    heard(utterances, AUDIO, vad)
    other = np.concatenate([AUDIO[:9000], -AUDIO[9000:]])
    np.testing.assert_array_equal(heard(utterances, other, vad), vad.probabilities(other))


def test_several_go_on_from_the_same() -> None:
    vad = CountingVad()
    begun = Utterances(4).recall(AUDIO).more(AUDIO[: 17 * WINDOW], vad)
    for _ in range(2):
        ended = begun.more(AUDIO, vad)
        np.testing.assert_array_equal(ended.probabilities(AUDIO[20 * WINDOW :]), vad.probabilities(AUDIO))


@pytest.mark.parametrize("length", [0, 1, WINDOW - 1, WINDOW, 7000])
def test_any_length_is_known(length: int) -> None:
    vad, utterances = CountingVad(), Utterances(4)
    expected = vad.probabilities(AUDIO[:length])
    for _ in range(2):
        np.testing.assert_array_equal(heard(utterances, AUDIO[:length], vad), expected)


def test_those_heard_longest_ago_are_forgotten() -> None:
    utterances = Utterances(2)
    first, second, third = (utterances.recall(AUDIO[start:]) for start in range(3))
    for utterance in (first, second, replace(first, tokens=(7,)), third):
        utterances.know(utterance)
    assert len(utterances) == 2
    assert utterances.recall(AUDIO).tokens == (7,)
    assert utterances.recall(AUDIO[1:]) == Utterance(second.opening)
