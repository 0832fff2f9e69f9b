"""Normalisers against published examples and their published rules."""

from __future__ import annotations

import pytest

from stepaudio.errors import NotFoundError
from stepaudio.eval.normalise import find


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        # Radford et al. 2022, appendix C: contractions, fillers, brackets, spelling, numbers, titles.
        ("whisper_en", "I'm, uh, gonna colour it [laughs]", ["i", "am", "going", "to", "color", "it"]),
        ("whisper_en", "Mr. Park won't pay ten thousand dollars", ["mister", "park", "will", "not", "pay", "$10000"]),
        ("kaldi_en", "don't  Stop, now", ["DON'T", "STOP,", "NOW"]),
        # SEED-TTS: all punctuation but the apostrophe goes, also the hyphen, which joins what it parted.
        ("seed_en", "Don't stop, well-known “Bob”!", ["don't", "stop", "wellknown", "bob"]),
        ("seed_en", "Bob’s", ["bobs"]),
        ("seed_zh", "你好，OK 嗎？", ["你", "好", "O", "K", "吗"]),
        ("seed_zh", "3 个", ["3", "个"]),
        # WeNet: characters and Latin words, tags and its punctuation away, upper case.
        ("wenet_zh", "<noise>我用 iPhone，很好。", ["我", "用", "IPHONE", "很", "好"]),
        ("wenet_zh", "二十3", ["二", "十", "3"]),
        ("wenet_tn_zh", "2023年有25%", list("二零二三年有百分之二十五")),
        ("wenet_tn_zh", "漢語很簡單！", list("汉语很简单")),
    ],
)
def test_rules(name: str, text: str, tokens: list[str]) -> None:
    assert find(name, "").tokens(text) == tokens


@pytest.mark.parametrize("name", ["whisper_en", "kaldi_en", "seed_en", "seed_zh", "wenet_zh", "wenet_tn_zh"])
def test_nothing_is_nothing(name: str) -> None:
    for text in ("", "   ", "\n"):
        assert find(name, "").tokens(text) == []


def test_each_language_has_a_default() -> None:
    assert find(None, "en").metric == "WER"
    assert find(None, "zh").metric == "CER"
    assert find(None, "de").name == "kaldi_en"
    with pytest.raises(NotFoundError, match="whisper_en"):
        find("unheard_of", "en")
