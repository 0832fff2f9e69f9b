"""Long recordings, transcripts as files, and partial transcripts of a live turn; models are stand-ins."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import SileroVad
from stepaudio.errors import Cancelled, InputError
from stepaudio.speech.roles import Transcriber, Transcript, Word
from stepaudio.speech.transcribe import (
    PartialTranscriber,
    Segment,
    continues_word,
    join,
    join_text,
    tidy,
    to_json,
    to_srt,
    to_text,
    to_vtt,
    transcribe,
)

RATE = 16_000


class LoudnessVad(SileroVad):
    """What is loud is speech."""

    def __init__(self) -> None: ...

    def run(self, window: Samples, state: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        return float(np.abs(window[64:]).max() > 0.1), state


class Scripted:
    """Says what `hear` makes of the audio and the language asked for, and remembers every call."""

    rate = RATE
    languages: tuple[str, ...] = ("en", "zh")
    max_seconds = 30.0

    def __init__(self, hear: Callable[[Samples, str | None], Transcript]) -> None:
        self.hear = hear
        self.calls: list[tuple[float, str | None]] = []

    def transcribe(
        self,
        samples: Samples,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
        cancel: Event | None = None,
    ) -> Transcript:
        self.calls.append((len(samples) / RATE, language))
        return self.hear(samples, language)

    def close(self) -> None: ...


def length_hearer() -> Scripted:
    """Hears how many tenths of a second it was given."""

    def hear(samples: Samples, language: str | None) -> Transcript:
        seconds = len(samples) / RATE
        return Transcript(str(round(seconds * 10)), language or "en", seconds, 0.9, (Word("x", 0.1, seconds),))

    return Scripted(hear)


def tone(seconds: float) -> Samples:
    return np.full(round(seconds * RATE), 0.5, dtype=np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def recording(*parts: Samples) -> Samples:
    return np.concatenate(parts)


# ---------------------------------------------------------------- long recordings


def test_the_stand_in_fills_the_role() -> None:
    assert isinstance(length_hearer(), Transcriber)


def test_segments_lie_where_the_speech_is() -> None:
    audio = recording(silence(5), tone(8), silence(3), tone(7), silence(1))
    found = list(transcribe(length_hearer(), audio, vad=LoudnessVad()))
    assert [(segment.start, segment.end) for segment in found] == [
        pytest.approx((5, 13), abs=0.35),
        pytest.approx((16, 23), abs=0.35),
    ]


def test_no_call_is_longer_than_the_transcriber_takes() -> None:
    hearer = length_hearer()
    list(transcribe(hearer, tone(95), vad=LoudnessVad()))
    assert max(seconds for seconds, _ in hearer.calls) <= hearer.max_seconds
    assert sum(seconds for seconds, _ in hearer.calls) == pytest.approx(95)


def test_segments_come_before_the_recording_ends() -> None:
    read: list[int] = []

    def blocks() -> Iterator[Samples]:
        for i in range(100):
            read.append(i)
            yield recording(tone(7), silence(3))

    next(transcribe(length_hearer(), blocks(), vad=LoudnessVad()))
    assert len(read) <= 2


def test_silence_gives_nothing() -> None:
    assert list(transcribe(length_hearer(), silence(20), vad=LoudnessVad())) == []
    assert list(transcribe(length_hearer(), [], vad=LoudnessVad())) == []


def test_the_language_is_detected_once() -> None:
    hearer = length_hearer()
    list(transcribe(hearer, recording(tone(7), silence(3), tone(7)), vad=LoudnessVad()))
    assert [language for _, language in hearer.calls] == [None, "en"]


def test_a_language_that_fits_badly_is_detected_again() -> None:
    def hear(samples: Samples, language: str | None) -> Transcript:
        chinese = samples.max() > 0.6
        if chinese and language != "en":
            return Transcript("你好", "zh", 1.0, 0.9)
        return Transcript("hello", "en", 1.0, 0.2 if chinese else 0.9)

    hearer = Scripted(hear)
    audio = recording(tone(7), silence(3), tone(7) * np.float32(1.8), silence(3), tone(7) * np.float32(1.8))
    found = [segment.transcript.language for segment in transcribe(hearer, audio, vad=LoudnessVad())]
    assert found == ["en", "zh", "zh"]
    assert [language for _, language in hearer.calls] == [None, "en", None, "zh"]


def test_a_language_that_is_given_is_kept() -> None:
    hearer = Scripted(lambda samples, language: Transcript("hm", language or "en", 1.0, 0.1))
    list(transcribe(hearer, recording(tone(7), silence(3), tone(7)), vad=LoudnessVad(), language="zh"))
    assert [language for _, language in hearer.calls] == ["zh", "zh"]


def test_cancelling_stops_the_reading() -> None:
    cancel = Event()

    def blocks() -> Iterator[Samples]:
        yield silence(1)
        cancel.set()
        yield silence(1)
        pytest.fail("read on after it was cancelled")

    with pytest.raises(Cancelled):
        list(transcribe(length_hearer(), blocks(), vad=LoudnessVad(), cancel=cancel))


def test_a_whole_recording_can_be_cancelled_in_the_middle() -> None:
    cancel = Event()

    def hear(samples: Samples, language: str | None) -> Transcript:
        cancel.set()
        return Transcript("", "en", 1.0)

    with pytest.raises(Cancelled):
        list(transcribe(Scripted(hear), recording(tone(2), silence(60)), vad=LoudnessVad(), cancel=cancel))


def test_unusable_samples_are_refused() -> None:
    with pytest.raises(InputError, match="float32"):
        list(transcribe(length_hearer(), np.zeros(100), vad=LoudnessVad()))


# ---------------------------------------------------------------- joining and writing

ENGLISH = Segment(1.5, 3.0, Transcript("Fish & chips,", "en", 1.5, 0.8, (Word("Fish", 0.1, 0.6),)))
CHINESE = Segment(4.0, 8.0, Transcript("你好。", "zh", 4.0, 0.5, (Word("你", 0.0, 1.0),)))
LATE = Segment(363_599.9995, 363_661.25, Transcript("a --> b\n\n<i>c</i>", "en", 61.25, 0.5))


def test_join() -> None:
    whole = join([ENGLISH, CHINESE])
    assert whole.text == "Fish & chips,你好。"
    assert (whole.language, whole.duration) == ("zh", 8.0)
    assert whole.confidence == pytest.approx((0.8 * 13 + 0.5 * 3) / 16)
    assert whole.words == (Word("Fish", 1.6, 2.1), Word("你", 4.0, 5.0))
    assert join([]) == Transcript("", "", 0.0)
    assert join([Segment(0.0, 2.0, Transcript("", "zh", 2.0))]) == Transcript("", "zh", 2.0)
    assert join([ENGLISH, ENGLISH]).text == "Fish & chips, Fish & chips,"


def test_text() -> None:
    assert to_text([ENGLISH, CHINESE]) == "Fish & chips,\n你好。\n"
    assert to_text([]) == ""


def test_srt() -> None:
    assert to_srt([ENGLISH, CHINESE]) == (
        "1\n00:00:01,500 --> 00:00:03,000\nFish & chips,\n\n2\n00:00:04,000 --> 00:00:08,000\n你好。\n"
    )
    assert to_srt([LATE]) == "1\n101:00:00,000 --> 101:01:01,250\na --> b <i>c</i>\n"
    assert to_srt([]) == ""


def test_vtt() -> None:
    assert to_vtt([ENGLISH, CHINESE]) == (
        "WEBVTT\n\n00:00:01.500 --> 00:00:03.000\nFish &amp; chips,\n\n00:00:04.000 --> 00:00:08.000\n你好。\n"
    )
    assert to_vtt([LATE]) == "WEBVTT\n\n101:00:00.000 --> 101:01:01.250\na --&gt; b &lt;i&gt;c&lt;/i&gt;\n"
    assert to_vtt([]) == "WEBVTT\n"


@given(st.floats(0, 1e6))
def test_times_are_right_to_the_millisecond(seconds: float) -> None:
    line = to_vtt([Segment(seconds, seconds + 1, Transcript("x", "en", 1.0))]).splitlines()[2]
    match = re.match(r"(\d{2,}):([0-5]\d):([0-5]\d)\.(\d{3}) ", line)
    assert match
    hours, minutes, whole, milliseconds = map(int, match.groups())
    assert abs(hours * 3600 + minutes * 60 + whole + milliseconds / 1000 - seconds) <= 0.000501


def test_json() -> None:
    written = to_json(iter([ENGLISH, CHINESE]))
    assert json.loads(json.dumps(written)) == written
    assert written["text"] == "Fish & chips,你好。"
    assert written["segments"][1] == {
        "id": 1,
        "start": 4.0,
        "end": 8.0,
        "text": "你好。",
        "language": "zh",
        "confidence": 0.5,
    }
    assert written["words"][1] == {"word": "你", "start": 4.0, "end": 5.0}
    assert to_json([]) == {
        "text": "",
        "language": "",
        "duration": 0.0,
        "confidence": 0.0,
        "segments": [],
        "words": [],
    }


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \n b ", "a b"),
        ("你好, 世界!", "你好，世界！"),
        ("你 好 。 世界", "你好。世界"),
        ("我用 Python 写程序.", "我用 Python 写程序。"),
        ("Hello, world!", "Hello, world!"),
        ("是 3.5 吗?", "是 3.5 吗？"),
        ("", ""),
    ],
)
def test_tidy(text: str, expected: str) -> None:
    assert tidy(text) == expected


@given(st.text(st.sampled_from("ab 你好,.?，。 \n3")))
def test_tidy_is_stable(text: str) -> None:
    assert tidy(tidy(text)) == tidy(text)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("a.", "b", "a. b"), ("好。", "好", "好。好"), ("a", "好", "a好"), ("", "b", "b"), ("a", "", "a")],
)
def test_join_text(first: str, second: str, expected: str) -> None:
    assert join_text(first, second) == expected


@pytest.mark.parametrize(
    ("word", "piece", "expected"),
    [("ca", "pital", True), ("a", " b", False), ("b", "?", True), ("你", "好", False), ("好", "。", True)],
)
def test_continues_word(word: str, piece: str, expected: bool) -> None:
    assert continues_word(word, piece) is expected


# ---------------------------------------------------------------- a live turn


def scripted_turn(*texts: str) -> PartialTranscriber:
    script = iter(texts)
    return PartialTranscriber(Scripted(lambda samples, _: Transcript(next(script), "en", len(samples) / RATE, 0.9)))


def test_what_two_partials_agree_on_stays() -> None:
    turn = scripted_turn("I can", "I can see the", "I can't see these whales", "I can see the sea. Whales")
    shown = []
    for _ in range(3):
        turn.push(tone(1))
        shown.append(turn.partial().text)
    assert shown == ["I can", "I can see the", "I can see these whales"]
    turn.push(tone(1))
    assert turn.flush().text == "I can see the sea. Whales"  # the last word is the model's


def test_chinese_grows_by_characters() -> None:
    turn = scripted_turn("今天天", "今天天汽", "今天田气好")
    shown = []
    for _ in range(3):
        turn.push(tone(1))
        shown.append(turn.partial().text)
    assert shown == ["今天天", "今天天汽", "今天天气好"]


def test_the_caller_may_fill_its_buffer_again() -> None:
    turn = PartialTranscriber(Scripted(lambda samples, _: Transcript(str(samples.max()), "en", 1.0)))
    buffer = tone(1)
    turn.push(buffer)
    buffer[:] = 0
    assert turn.flush().text == "0.5"


def test_nothing_new_costs_nothing() -> None:
    hearer = length_hearer()
    turn = PartialTranscriber(hearer)
    turn.push(tone(2))
    first = turn.partial()
    turn.push(silence(0))
    assert turn.partial() == first
    assert turn.flush() == first
    assert len(hearer.calls) == 1


def test_a_long_turn_is_settled_piece_by_piece() -> None:
    hearer = length_hearer()
    turn = PartialTranscriber(hearer)
    heard: Transcript | None = None
    for _ in range(70):
        turn.push(recording(tone(0.8), silence(0.2)))
        heard = turn.partial()
    assert heard is not None
    assert heard.duration == pytest.approx(70)
    assert max(seconds for seconds, _ in hearer.calls) <= hearer.max_seconds
    assert len(hearer.calls) < 80
    assert sum(map(int, turn.flush().text.split())) == pytest.approx(700, abs=3)


def test_flush_and_reset_begin_a_new_turn() -> None:
    hearer = length_hearer()
    turn = PartialTranscriber(hearer)
    for end in (turn.flush, turn.reset):
        turn.push(tone(2))
        turn.partial()
        end()
        assert turn.partial().duration == 0
    with pytest.raises(InputError):
        turn.push(np.array([np.nan], np.float32))


def test_a_turn_without_audio_is_empty() -> None:
    turn = PartialTranscriber(Scripted(lambda samples, _: Transcript("", "en", len(samples) / RATE)))
    assert turn.flush() == Transcript("", "en", 0.0)
