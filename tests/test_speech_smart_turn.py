"""The acoustic turn scorer: its features in closed form, and the network where its weights are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stepaudio.audio.features import whisper_log_mel
from stepaudio.audio.resample import resample
from stepaudio.errors import AudioError, BackendError, MissingError
from stepaudio.speech.backends.smart_turn import SmartTurnScorer, features
from stepaudio.speech.bundle import Bundle
from stepaudio.speech.bundle_spec import read_spec
from stepaudio.speech.roles import Samples, TurnScorer

EIGHT = 8 * 16_000


def noise(samples: int) -> Samples:
    return np.random.default_rng(7).normal(0.02, 0.1, samples).astype(np.float32)


def test_silence_is_put_in_front_of_what_is_short() -> None:
    short = noise(3 * 16_000)
    padded = np.concatenate([np.zeros(5 * 16_000, np.float32), short])
    assert features(short).shape == (80, 800)
    np.testing.assert_array_equal(features(short), features(padded))


def test_only_the_last_eight_seconds_count() -> None:
    long = noise(EIGHT + 5000)
    np.testing.assert_array_equal(features(long), features(long[-EIGHT:]))


def test_samples_are_standardised_before_their_spectrum() -> None:
    samples = noise(EIGHT)
    standard = ((samples - samples.mean()) / samples.std()).astype(np.float32)
    np.testing.assert_allclose(features(samples), whisper_log_mel(standard), atol=1e-4)
    np.testing.assert_allclose(features(samples * 0.3 + 0.01), features(samples), atol=1e-3)


@pytest.mark.parametrize("bad", [np.zeros(0, np.float32), np.full(9, np.nan, np.float32), np.zeros((2, 9), np.float32)])
def test_unusable_samples_are_refused(bad: Samples) -> None:
    with pytest.raises(AudioError):
        features(bad)


def test_a_file_that_is_not_there_or_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        SmartTurnScorer(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError):
        SmartTurnScorer(tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def bundle() -> Iterator[Bundle]:
    with Bundle(read_spec("tiny")) as bundle:
        yield bundle


@pytest.mark.weights
def test_a_finished_question_scores_higher_than_half_of_one(bundle: Bundle) -> None:
    scorer = bundle.turn_scorer
    assert isinstance(scorer, TurnScorer)
    pieces = [speech.samples for speech in bundle.say("What do you usually like to eat in the morning?")]
    whole = resample(np.concatenate(pieces), bundle.speaker.rate, scorer.rate)
    whole = whole[: np.flatnonzero(np.abs(whole) > 0.01)[-1]]
    silence = np.zeros(3200, np.float32)
    done = scorer.score(np.concatenate([whole, silence]), None, "en")
    cut = scorer.score(np.concatenate([whole[: len(whole) // 2], silence]), None, "en")
    assert 0 <= cut < done <= 1


@pytest.mark.weights
@pytest.mark.parametrize("language", ["zh", None])
def test_a_language_that_it_does_not_judge_leaves_it_undecided(bundle: Bundle, language: str | None) -> None:
    assert bundle.turn_scorer.score(noise(16_000), None, language) is None
