"""The packaged voices as teachers: what they say is what they were given, and their phonemes are where they sound."""

import numpy as np
import pytest

from stepaudio.data.synthesis import RATE, Line
from stepaudio.errors import TextError

pytest.importorskip("hibari")

from stepaudio.speech.teachers import HibariTeacher, spoken_words

MS = RATE // 1000
"""Samples of a millisecond."""


@pytest.fixture(scope="module")
def teacher():
    return HibariTeacher()


def line(text, speaker="heart", seed=1):
    return Line(text, "en", speaker, "hibari", "test", "train", seed)


def test_the_same_line_sounds_the_same_and_another_seed_does_not(teacher):
    one, same, other = (teacher.say(line("Set a timer for 23 minutes.", seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.samples, same.samples)
    assert len(other.samples) != len(one.samples)
    assert one.words == "set a timer for twenty three minutes"


def test_phonemes_fill_the_recording(teacher):
    said = teacher.say(line("A black cat sat on the mat."))
    assert len(said.phonemes) == len(said.ends)
    assert list(said.ends) == sorted(said.ends)
    assert said.ends[-1] == pytest.approx(len(said.samples) / MS, abs=2)
    assert said.phonemes.split() == ["ɐ", "blæk", "kæt", "sæt", "ɔn", "ðə", "mæt"]
    assert not set(said.phonemes) & set("ˈˌ.")


def test_phonemes_are_where_they_sound(teacher):
    """An s is mostly above 3 kHz and a vowel below."""
    said = teacher.say(line("See a sea, sir."))
    begins = [0, *said.ends[:-1]]
    shares = {"s": [], "i": []}
    for symbol, begin, end in zip(said.phonemes, begins, said.ends, strict=True):
        if symbol in shares:
            spectrum = np.abs(np.fft.rfft(said.samples[begin * MS : end * MS])) ** 2
            hertz = np.fft.rfftfreq((end - begin) * MS, 1 / RATE)
            shares[symbol].append(spectrum[hertz > 3000].sum() / spectrum.sum())
    assert min(shares["s"]) > 0.5
    assert max(shares["i"]) < 0.5


@pytest.mark.parametrize(("speaker", "pitch"), [("heart@0.6,1", 0.6), ("heart@1,0.85", 0.85)])
def test_shapes_change_the_pitch_and_not_the_pace(teacher, speaker, pitch):
    plain, shaped = (teacher.say(line("Many men may mean a lie.", speaker=name)) for name in ("heart", speaker))
    assert len(shaped.samples) == pytest.approx(len(plain.samples), rel=0.12)

    def hertz(samples):
        """Where a frequency and twice and three times it are strongest together, in the middle of the sentence."""
        candidates, found = np.arange(70, 320), []  # in bins of about a hertz
        for place in (9, 10, 11):
            frame = samples[len(samples) * place // 24 :][:4096] * np.hanning(4096)
            spectrum = np.abs(np.fft.rfft(frame, 16384))
            found.append((spectrum[candidates] * spectrum[2 * candidates] * spectrum[3 * candidates]).argmax() + 70)
        return np.median(found)

    assert hertz(shaped.samples) / hertz(plain.samples) == pytest.approx(pitch, rel=0.15)


def test_what_cannot_be_said(teacher):
    with pytest.raises(TextError, match="no speaker"):
        teacher.say(line("Hello.", speaker="somebody"))
    with pytest.raises(TextError, match="nothing to say"):
        teacher.say(line("..."))


def test_spoken_words():
    assert spoken_words("It costs $23.", "en") == "it costs twenty three dollars"
    pytest.importorskip("pypinyin")
    assert spoken_words("3点", "zh") == "san1 dian3"
