"""The embedded voices: hibari everywhere, Kokoro where its weights are."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import stepaudio
from stepaudio.errors import BackendError, Cancelled, NotFoundError, TextError
from stepaudio.speech.backends import onnx_convolution
from stepaudio.speech.backends.onnx_voice import OnnxVoice, split
from stepaudio.speech.backends.phonemes import Phonemizer, Pronunciation
from stepaudio.speech.roles import Speaker, Speech, Word


@pytest.fixture(scope="module")
def heart() -> OnnxVoice:
    return OnnxVoice(threads=1)


@pytest.fixture(scope="module")
def bundled() -> Speaker:
    return stepaudio.load("tiny").speaker


@pytest.fixture(scope="module")
def phonemes() -> Phonemizer:
    return Phonemizer()


def speak(speaker: Speaker, text: str, voice: str, speed: float = 1.0) -> Speech:
    (speech,) = speaker.speak(text, voice=voice, speed=speed)
    return speech


def rise(samples: np.ndarray, rate: int) -> float:
    """Seconds until the sound first reaches a tenth of its peak."""
    return float(np.argmax(np.abs(samples) > np.abs(samples).max() / 10)) / rate


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Dr. Lee paid $9.99 at 3:30 pm.", "Doctor Lee paid nine dollars and ninety-nine cents at three thirty P.M."),
        ("It was 5 km, i.e. 3.1 mi.", "It was five kilometers, that is three point one miles."),
        ("In 1995, 60% of AT&T", "In nineteen ninety-five, sixty percent of A.T and T"),
    ],
)
def test_numbers_sound_like_their_words(phonemes: Phonemizer, written: str, said: str) -> None:
    assert phonemes(written, "en").phonemes == phonemes(said, "en").phonemes


def test_english_inside_chinese_is_pronounced_as_english(phonemes: Phonemizer) -> None:
    mixed = phonemes("我用Python写AI程序。", "zh")
    assert phonemes("Python", "en").phonemes in mixed.phonemes
    assert mixed.words == ("我", "用", "Python", "写", "AI", "程", "序。")
    assert "↓" in mixed.phonemes  # third tone of 我


def test_every_phoneme_belongs_to_its_word(phonemes: Phonemizer) -> None:
    said = phonemes("Hello, Dr. Lee.", "en")
    sounds = ["".join(s for s, o in zip(said.phonemes, said.owners, strict=True) if o == i) for i in range(3)]
    assert said.words == ("Hello, ", "Dr. ", "Lee.")
    assert sounds == ["həlˈO, ", "dˈɑktəɹ ", "lˈi."]


def test_long_clauses_are_split_between_words() -> None:
    words = tuple(f"word{index} " for index in range(100))
    said = Pronunciation(words, "abcd " * 100, tuple(index for index in range(100) for _ in range(5)))
    parts = list(split(said, 64))
    assert "".join(part.phonemes for part in parts) == said.phonemes
    assert tuple(word for part in parts for word in part.words) == words
    assert all(len(part.phonemes) <= 64 for part in parts)
    assert all(part.words[owner] for part in parts for owner in part.owners)


def test_words_are_timed_in_order_and_sound_where_they_stand(heart: OnnxVoice) -> None:
    speech = speak(heart, "Stop now, please 😀.", "heart")
    assert [word.text for word in speech.words] == ["Stop", "now,", "please 😀."]
    edges = [edge for word in speech.words for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert edges[-1] <= len(speech.samples) / heart.rate
    loud = [power(speech, word, heart.rate) for word in speech.words]
    pause = Word("", speech.words[-1].end + 0.1, speech.words[-1].end + 0.3)
    assert min(loud) > 30 * power(speech, pause, heart.rate)


def power(speech: Speech, word: Word, rate: int) -> float:
    return float(np.square(speech.samples[int(word.start * rate) : int(word.end * rate)]).mean())


def test_silence_before_the_first_sound_is_cut(heart: OnnxVoice) -> None:
    for text in (
        "The block books",
        "When you add the figures,",
        "He was not ill.",
        "Have you seen it?",
        "Five",
        "Zero",
    ):
        speech = speak(heart, text, "heart")
        audible = np.flatnonzero(np.abs(speech.samples) > 0.01)  # -40 dB
        assert audible[0] <= 0.02 * heart.rate
        assert speech.words[0].start <= audible[0] / heart.rate + 0.01


def test_speech_starts_at_once_and_is_equally_loud(heart: OnnxVoice) -> None:
    levels = []
    for text in ("Hello.", "How are you?", "Sure, I can help with that.", "No"):
        speech = speak(heart, text, "heart")
        assert rise(speech.samples, heart.rate) < 0.12
        assert np.abs(speech.samples).max() <= 0.95 + 1e-6
        levels.append(np.sqrt(np.mean([power(speech, word, heart.rate) for word in speech.words])))
    assert max(levels) / min(levels) < 1.6


def test_speed(heart: OnnxVoice) -> None:
    lengths = [len(speak(heart, "One two three four.", "heart", speed).samples) for speed in (0.5, 1, 2)]
    assert lengths[0] > 1.6 * lengths[1] > 2.5 * lengths[2]


def test_threads_share_the_voice(heart: OnnxVoice) -> None:
    texts = [f"Sentence number {index}." for index in range(8)]
    alone = [speak(heart, text, "heart").samples for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: speak(heart, text, "heart").samples, texts))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_kokoro_only_english(heart: OnnxVoice, tmp_path: Path) -> None:
    assert [voice.name for voice in heart.voices] == ["heart"]
    assert heart.default_voice("zh") is None
    with pytest.raises(TextError, match="stepaudio pull"):
        speak(heart, "你好", "heart")
    with pytest.raises(NotFoundError, match="stepaudio doctor"):
        speak(heart, "hi", "zf_xiaoxiao")
    lonely = OnnxVoice(kokoro=tmp_path / "none.onnx", vocab=tmp_path / "none.json", voices=tmp_path)
    assert [voice.name for voice in lonely.voices] == ["heart"]


def test_a_damaged_model_is_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(BackendError, match=r"broken\.onnx"):
        OnnxVoice(hibari=tmp_path / "broken.onnx")


@pytest.mark.weights
def test_kokoro_reads_both_languages(bundled: Speaker) -> None:
    names = {voice.name for voice in bundled.voices}
    assert {"heart", "af_heart", "bm_george", "zf_xiaoxiao", "zm_yunxi"} <= names
    assert not any(name.startswith(("ef", "ff", "hf", "jf")) for name in names)
    for text, voice in (("Hello there.", "bf_emma"), ("我用Python写程序。", "zf_xiaoxiao")):
        speech = speak(bundled, text, voice)
        assert "".join(word.text for word in speech.words).replace(" ", "") == text.replace(" ", "")
        assert 0.5 < len(speech.samples) / bundled.rate < 6
    with pytest.raises(TextError, match="zf_xiaoxiao"):
        speak(bundled, "你好", "af_heart")


@pytest.mark.weights
@pytest.mark.parametrize("speed", [0.25, 1.0, 2.0, 4.0])
def test_a_single_word_is_heard_at_any_speed(bundled: Speaker, speed: float) -> None:
    for text in ("a", "I", "No!", "嗯？", "对！！！"):
        speech = speak(bundled, text, "zf_xiaoni", speed)
        (word,) = speech.words
        assert 0 <= word.start < word.end <= len(speech.samples) / bundled.rate
        assert power(speech, word, bundled.rate) > 1e-4


@pytest.mark.weights
def test_the_last_syllable_is_not_swallowed(bundled: Speaker) -> None:
    loudness = []
    for text in ("今天下午会不会下雨？", "你能把这句话翻译成英语吗？"):
        for voice in ("zf_xiaobei", "zf_xiaoyi", "zm_yunjian", "zm_yunxi", "zm_yunxia"):
            speech = speak(bundled, text, voice)
            powers = [power(speech, word, bundled.rate) for word in speech.words]
            loudness.append(powers[-1] / np.median(powers))
    assert np.median(np.sqrt(loudness)) > 0.1  # below 0.001 where the encoder sees little silence behind them


@pytest.mark.weights
def test_products_in_place_of_convolutions_change_no_sample(bundled: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_convolution, "exact", lambda threads: False)
    plain = stepaudio.load("tiny").speaker
    for text, voice in (("Hello there, my friend.", "bf_emma"), ("天空是蓝色的。", "zf_xiaoxiao")):
        np.testing.assert_array_equal(speak(bundled, text, voice).samples, speak(plain, text, voice).samples)


@pytest.mark.weights
def test_cancel_ends_a_run_in_the_middle(bundled: Speaker) -> None:
    cancel = threading.Event()
    threading.Timer(0.1, cancel.set).start()
    with pytest.raises(Cancelled):
        list(bundled.speak("This clause is long enough, " * 6 + "to cancel.", voice="af_heart", cancel=cancel))
