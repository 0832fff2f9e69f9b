"""Windows of voice activity to turns, and words to end-of-turn scores."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.agent.turn import (
    WINDOW,
    Ended,
    Paused,
    Resumed,
    Started,
    TurnConfig,
    TurnDetector,
    TurnEvent,
    combine,
    heard_end,
)
from stepaudio.agent.wording import (
    TextTurnScorer,
    end_of_turn,
    is_backchannel,
    may_be_hum,
    same_request,
    settled,
)
from stepaudio.errors import InputError
from stepaudio.speech.roles import TurnScorer


def detect(config: TurnConfig, *stretches: tuple[float, float], score: float | None = None) -> list[TurnEvent]:
    """Events for stretches of (probability, seconds); `score` is given at every pause."""
    detector, events = TurnDetector(config), []
    for probability, seconds in stretches:
        for _ in range(round(seconds / WINDOW)):
            for event in detector.push(probability):
                events.append(event)
                if isinstance(event, Paused):
                    detector.score = score
    return events


def names(events: list[TurnEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_speech_pause_speech_end() -> None:
    config = TurnConfig.server_vad(silence_duration=0.64)
    events = detect(config, (0.0, 0.32), (0.9, 0.96), (0.0, 0.32), (0.9, 0.96), (0.0, 1.6))
    assert names(events) == ["Started", "Paused", "Resumed", "Paused", "Ended"]
    assert events[0] == Started(pytest.approx(0.32))
    assert events[1] == Paused(pytest.approx(1.28))
    assert events[2] == Resumed(pytest.approx(1.6))
    assert events[4] == Ended(pytest.approx(0.32), pytest.approx(2.56))


def test_a_click_is_no_speech_and_does_not_keep_a_turn_open() -> None:
    config = TurnConfig.server_vad(silence_duration=0.48)
    assert detect(config, (0.9, 0.064), (0.0, 1.0)) == []
    events = detect(config, (0.9, 0.96), (0.0, 0.32), (0.9, 0.064), (0.0, 0.32))
    assert names(events) == ["Started", "Paused", "Ended"]


def test_once_it_is_speech_a_little_less_keeps_it_so() -> None:
    assert names(detect(TurnConfig(), (0.9, 0.32), (0.4, 2.0))) == ["Started"]
    assert detect(TurnConfig(), (0.4, 2.0)) == []


@pytest.mark.parametrize("silence", [0.1, 0.2, 0.5, 1.0])
def test_server_vad_waits_its_silence_whatever_the_score(silence: float) -> None:
    for score in (None, 0.0, 1.0):
        detector = TurnDetector(TurnConfig.server_vad(silence_duration=silence))
        detector.score = score
        assert detector.delay == pytest.approx(silence)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_the_delay_falls_from_ceiling_to_floor_with_the_score(a: float, b: float) -> None:
    detector = TurnDetector(TurnConfig(floor=0.3, ceiling=3.0))
    detector.score = a
    delay = detector.delay
    assert 0.3 - 1e-9 <= delay <= 3.0 + 1e-9
    detector.score = b
    if a < b:
        assert detector.delay <= delay
    detector.score = a + (b - a) * 1e-9
    assert detector.delay == pytest.approx(delay, rel=1e-6)


@pytest.mark.parametrize("eagerness", ["low", "medium", "high"])
def test_semantic_vad_waits_at_most_8_4_or_2_seconds(eagerness: str) -> None:
    config = TurnConfig.semantic_vad(eagerness)
    unfinished = detect(config, (0.9, 0.96), (0.0, 10.0), score=0.0)
    finished = detect(config, (0.9, 0.96), (0.0, 10.0), score=1.0)
    assert names(unfinished) == names(finished) == ["Started", "Paused", "Ended"]
    assert config.ceiling == {"low": 8.0, "medium": 4.0, "high": 2.0}[eagerness]
    assert TurnConfig.semantic_vad("auto") == TurnConfig.semantic_vad("medium")


def test_endless_speech_is_cut() -> None:
    events = detect(TurnConfig(max_turn=2.0), (0.9, 4.5))
    assert names(events) == ["Started", "Ended", "Started", "Ended", "Started"]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=300), st.floats(0.05, 0.5), st.floats(0.1, 2))
def test_events_alternate_and_time_runs_forward(windows: list[float], pause: float, span: float) -> None:
    detector = TurnDetector(TurnConfig(pause=pause, floor=pause + 0.05, ceiling=pause + span))
    after: dict[str, tuple[str, ...]] = {
        "": ("Started",),
        "Started": ("Paused", "Ended"),
        "Paused": ("Resumed", "Ended"),
        "Resumed": ("Paused", "Ended"),
        "Ended": ("Started",),
    }
    last, time = "", 0.0
    for probability in windows:
        for event in detector.push(probability):
            name = type(event).__name__
            assert name in after[last]
            at = event.end if isinstance(event, Ended) else event.at
            assert 0 <= at <= detector.position
            assert at >= time or name == "Ended"
            last, time = name, at


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": 0.0},
        {"pause": 0.0},
        {"floor": 0.05},
        {"ceiling": 0.2},
        {"idle_timeout": 0.0},
        {"min_speech": -1.0},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        TurnConfig(**bad)
    with pytest.raises(InputError):
        TurnConfig.semantic_vad("very")  # type: ignore[arg-type]


def test_scores_combine_in_log_odds() -> None:
    assert combine([]) is None
    assert combine([0.8]) == pytest.approx(0.8)
    assert combine([0.9, 0.1]) == pytest.approx(0.5)
    assert combine([0.8, 0.8]) == pytest.approx(16 / 17)
    assert combine([0.0, 1.0]) == pytest.approx(0.5)


# ---------------------------------------------------------------- words

FINISHED = [
    "What is the weather in Paris?",
    "Please book a table for two.",
    "Yes.",
    "yes",
    "No, thanks.",
    "Thank you.",
    "My number is 020 7946 0958 12.",
    "Write to ann dot lee at gmail dot com",
    "It's ann.lee@gmail.com.",
    "What is this for?",
    "Okay.",
    "I would like to go home now.",
    "What are you looking at?",
    "今天天气怎么样？",
    "请帮我订一张票。",
    "是的",
    "好的。",
    "你吃饭了吗",
    "不用了",
    "我的电话号码是一三八零零一三八零零零",
    "最后一班车是几点",
    "请你说得慢一点。",
    "这封信是谁写的。",
]
UNFINISHED = [
    "I would like to",
    "and then we",
    "What is the",
    "because",
    "My number is",
    "my number is 0207",
    "it's five five five",
    "My e-mail is",
    "my email is ann dot lee at",
    "my email is ann.lee@gmail",
    "J O H",
    "um",
    "I want to book um",
    "Well, I think,",
    "Tell me about the weather in",
    "I need a table for two and",
    "我想",
    "因为",
    "我的电话号码是",
    "我的号码是一三八",
    "我要一张票和",
    "嗯",
    "我觉得这个",
    "今天天气，",
    "如果明天下雨的",
    "写给 ann 点",
    "我的邮箱是三八零点",
    "我昨天买的。",
]


@pytest.mark.parametrize("text", FINISHED)
def test_finished_turns_score_high(text: str) -> None:
    assert TextTurnScorer().score(None, text, None) >= 0.6


@pytest.mark.parametrize("text", UNFINISHED)
def test_unfinished_turns_score_low(text: str) -> None:
    assert TextTurnScorer().score(None, text, None) <= 0.2


def test_the_language_model_is_believed_the_more_the_surer_it_is() -> None:
    scores = [end_of_turn(probability) for probability in (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)]
    assert scores == sorted(scores)
    assert scores[0] > 0
    assert scores[-1] < 1
    assert end_of_turn(0.5) == pytest.approx(0.8 / 1.8)


def test_the_acoustic_scorer_has_less_to_say() -> None:
    assert [heard_end(probability) for probability in (0.0, 0.5, 1.0)] == [0.3, 0.5, 0.7]


def test_without_words_nobody_knows() -> None:
    scorer = TextTurnScorer()
    assert isinstance(scorer, TurnScorer)
    assert [scorer.score(None, text, "en") for text in (None, "", "...")] == [None, None, None]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_a_score(text: str) -> None:
    score = TextTurnScorer().score(None, text, None)
    assert score is None or 0 <= score <= 1


@pytest.mark.parametrize(
    "text",
    [
        "Mm-hm.",
        "mhm",
        "Right.",
        "Yeah, yeah.",
        "uh-huh",
        "Mm-hmm.",
        "Mhmm",
        "Uh-huh.",
        "I see.",
        "Got it!",
        "嗯",
        "对对",
        "好的。",
        "嗯，是的",
        "好的好的。",
        "对，知道了。",
        "Okay, I see.",
    ],
)
def test_backchannels(text: str) -> None:
    assert is_backchannel(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Stop.",
        "No.",
        "Right, but what about Monday?",
        "wait",
        "不对",
        "等一下",
        "It got really nice",
        "Mom.",
        "好的好的好的好",
    ],
)
def test_what_is_no_backchannel(text: str) -> None:
    assert not is_backchannel(text)


@pytest.mark.parametrize("text", ["Mom.", "It's hot.", "你。", "您的", "妈妈"])
def test_what_a_recogniser_makes_of_a_hum(text: str) -> None:
    assert may_be_hum(text, 0.4)
    assert not may_be_hum(text, 0.6)


@pytest.mark.parametrize("text", ["Stop.", "Wait!", "What?", "等等", "不对", "Tell me more."])
def test_a_short_interruption_is_no_hum(text: str) -> None:
    assert not may_be_hum(text, 0.4)


def test_a_continuation_that_adds_nothing_is_the_same_request() -> None:
    assert same_request("What's the weather?", "what’s the weather, um")
    assert same_request("今天天气怎么样", "嗯，今天天气怎么样？")
    assert not same_request("What's the weather?", "What's the weather in Paris?")
    assert not same_request("I can", "I can't")


@pytest.mark.parametrize(
    ("partial", "kept"),
    [
        ("", ""),
        ("What?", ""),
        ("What do you usually?", "What do you"),
        ("I'd like a table for two, ple", "I'd like a table for two,"),
        ("你平时喜欢着。", "你平时喜"),
        ("打开 Wi-Fi", "打开 Wi-"),
    ],
)
def test_the_last_word_of_a_partial_transcript_may_change(partial: str, kept: str) -> None:
    assert settled(partial) == kept
