"""What was heard, to the word, from whichever clock."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.agent.playback import Playback, Track
from stepaudio.speech.roles import Speech, Word

RATE = 1000


def chunk(text: str, seconds: float, words: tuple[Word, ...] = ()) -> Speech:
    return Speech(np.zeros(round(seconds * RATE), np.float32), text, words)


def track(text: str, *chunks: Speech) -> Track:
    result = Track()
    result.text = text
    for one in chunks:
        result.extend(one, len(one.samples) / RATE)
    return result


WORDS = (Word("Hello", 0.1, 0.5), Word("there", 0.6, 0.9), Word("Ann", 1.0, 1.4))


@pytest.mark.parametrize(
    ("seconds", "heard"),
    [
        (0.0, ""),
        (0.2, ""),
        (0.35, "Hello"),
        (0.55, "Hello"),
        (0.8, "Hello there,"),
        (1.1, "Hello there,"),
        (1.35, "Hello there, Ann."),
        (9.0, "Hello there, Ann."),
    ],
)
def test_timed_words(seconds: float, heard: str) -> None:
    assert track("Hello there, Ann.", chunk("Hello there, Ann.", 1.5, WORDS)).heard(seconds) == heard


def test_without_times_the_words_share_the_audio() -> None:
    spoken = track("aaaa bbbb cccc dddd", chunk("aaaa bbbb", 1.0), chunk("cccc dddd", 3.0))
    assert [spoken.heard(t) for t in (0.2, 0.3, 0.8, 1.7, 1.8, 3.3)] == [
        "",
        "aaaa",
        "aaaa bbbb",
        "aaaa bbbb",
        "aaaa bbbb cccc",
        "aaaa bbbb cccc dddd",
    ]


def test_chinese_is_heard_by_the_character() -> None:
    spoken = track("你好，世界。", chunk("你好，", 1.0), chunk("世界。", 1.0))
    assert spoken.heard(1.0) == "你好，"
    assert spoken.heard(2.0) == "你好，世界。"
    assert len(spoken.heard(0.5)) == 1


def test_numbers_that_are_spoken_as_other_words() -> None:
    words = (Word("twenty", 0.0, 0.4), Word("five", 0.4, 0.8), Word("people", 1.0, 1.5))
    spoken = track("25 people came.", chunk("25 people came.", 2.0, words))
    assert spoken.heard(0.9) == "25"
    assert spoken.heard(1.45) == "25 people"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text("ab 你,.\n", max_size=12), st.floats(0, 2)), max_size=6),
    st.lists(st.floats(-1, 15), max_size=8),
)
def test_heard_is_a_growing_prefix(parts: list[tuple[str, float]], times: list[float]) -> None:
    text = "".join(part for part, _ in parts)
    spoken = track(text, *(chunk(part, seconds) for part, seconds in parts))
    heard = [spoken.heard(time) for time in sorted(times)]
    assert all(text.startswith(one) for one in heard)
    assert all(later.startswith(earlier) for earlier, later in pairwise(heard))
    assert spoken.heard(spoken.seconds).split() == text.split()


@settings(deadline=None)
@given(st.integers(1, 30), st.data())
def test_every_cut_between_words_is_exact(count: int, data: st.DataObject) -> None:
    """Brute force: cut anywhere in the silence after a word; exactly the words before it were heard."""
    lengths = data.draw(st.lists(st.floats(0.1, 0.6), min_size=count, max_size=count))
    words, time = [], 0.0
    for i, length in enumerate(lengths):
        words.append(Word(f"w{i}", time, time + length))
        time += length + 0.1
    text = " ".join(word.text for word in words)
    spoken = track(text, chunk(text, time + 0.01, tuple(words)))
    cut = data.draw(st.integers(0, count - 1))
    assert spoken.heard(words[cut].end + 0.05) == " ".join(word.text for word in words[: cut + 1])


# ---------------------------------------------------------------- the wall clock


def test_chunks_play_one_after_the_other_and_gaps_are_silent() -> None:
    playback = Playback(RATE)
    playback.append("a", chunk("one", 1.0), 10.0)
    playback.append("a", chunk("two", 1.0), 10.2)
    assert playback.ends_at == 12.0
    assert playback.position("a", 11.5) == pytest.approx(1.5)
    playback.append("a", chunk("three", 1.0), 15.0)  # an underrun of three seconds
    assert playback.position("a", 14.0) == pytest.approx(2.0)
    assert playback.position("a", 15.5) == pytest.approx(2.5)
    assert playback.audible(15.9)
    assert not playback.audible(16.0)


def test_a_second_reply_waits_for_the_first() -> None:
    playback = Playback(RATE, lag=0.1)
    playback.append("a", chunk("one", 1.0), 0.0)
    playback.append("b", chunk("two", 1.0), 0.5)
    assert playback.position("b", 1.0) == 0.0
    assert playback.stop(1.6) == [("b", pytest.approx(0.5))]
    assert playback.ends_at is None


def test_a_media_clock_corrects_the_wall_clock() -> None:
    playback = Playback(RATE)
    playback.append("a", chunk("one two", 2.0), 0.0)
    playback.append("b", chunk("three", 1.0), 0.0)
    playback.report("a", 0.5, 1.0)  # the listener's buffer holds half a second more than we thought
    assert playback.position("a", 1.5) == pytest.approx(1.0)
    assert playback.ends_at == pytest.approx(3.5)
    playback.report("b", 0.5, 1.6)  # all of "a" must have been heard
    assert playback.stop(1.7) == [("b", pytest.approx(0.6))]
    playback.report("gone", 1.0, 2.0)


def test_dropped_audio_leaves_no_hole() -> None:
    playback = Playback(RATE)
    playback.append("a", chunk("one", 2.0), 0.0)
    playback.append("b", chunk("two", 1.0), 0.0)
    playback.drop("a", 0.5)
    assert playback.ends_at == pytest.approx(1.5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1), st.floats(0, 2)), max_size=20), st.floats(0, 5))
def test_elapsed_time_agrees_with_a_simulated_loudspeaker(sends: list[tuple[str, float, float]], more: float) -> None:
    """The oracle plays milliseconds from a queue, one after the other."""
    playback, now = Playback(RATE), 0.0
    queue: list[str] = []
    heard = {"a": 0, "b": 0}

    def run(seconds: float) -> None:
        for _ in range(round(seconds * 1000)):
            if queue:
                heard[queue.pop(0)] += 1

    for item_id, wait, length in sends:
        wait, length = round(wait, 3), round(length, 3)
        run(wait)
        now += wait
        playback.append(item_id, chunk("x", length), now)
        queue.extend(item_id * round(length * 1000))
    run(round(more, 3))
    now += round(more, 3)
    for item_id in "ab":
        assert playback.position(item_id, now) == pytest.approx(heard[item_id] / 1000, abs=0.002)
