"""Clips are checked before a model sees them."""

import numpy as np
import pytest

from stepaudio.errors import AudioError
from stepaudio.speech.clone import check_clip, make_reference

RATE = 24_000


class Vad:
    """Speech where the clip is louder than a tenth."""

    rate = 16_000

    def probabilities(self, samples):
        windows = np.pad(samples, (0, -len(samples) % 512)).reshape(-1, 512)
        return (np.abs(windows).max(axis=1) > 0.1).astype(np.float32)


def tone(seconds, level=0.5, silence=0.0):
    time = np.arange(int(seconds * RATE)) / RATE
    return np.pad(level * np.sin(2 * np.pi * 200 * time), (0, int(silence * RATE))).astype(np.float32)


def test_a_good_clip_passes():
    check_clip(tone(3), RATE, Vad())


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (tone(1.9), "1.9 s long; give 2 to 30"),
        (tone(31), "31.0 s long"),
        (tone(3, level=0.01), "too quiet"),
        (np.zeros(3 * RATE, np.float32), "too quiet"),
        (np.clip(tone(3, level=3), -1, 1), "too loud"),
        (tone(0.5, silence=3), r"0\.5 s of speech"),
        (tone(3, level=0.05), r"0\.0 s of speech"),
    ],
)
def test_a_bad_clip_is_refused_with_what_to_do(clip, message):
    with pytest.raises(AudioError, match=message):
        check_clip(clip, RATE, Vad())


def test_the_transcript_is_the_callers_or_what_is_heard():
    def deaf():
        raise AssertionError

    assert make_reference(tone(3), RATE, " hello ", Vad(), deaf).transcript == "hello"
    assert make_reference(tone(3), RATE, None, Vad(), lambda: "heard").transcript == "heard"
    for said, heard in ((" ", "unused"), (None, "")):
        with pytest.raises(AudioError, match="no words"):
            make_reference(tone(3), RATE, said, Vad(), lambda heard=heard: heard)
