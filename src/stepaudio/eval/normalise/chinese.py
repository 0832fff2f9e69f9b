"""Chinese: SEED-TTS's rules, WeNet's, and WeNet's after numbers have been read out."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from stepaudio.eval.normalise.english import CHINESE_MARKS, SEED_MARKS
from stepaudio.speech.reading import spoken

_TAG = re.compile(r"<[^<>]*>")
_WENET_MARKS = str.maketrans("", "", "!,?、。！，；？：「」︰『』《》")
_ALL_MARKS = str.maketrans("", "", CHINESE_MARKS + '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~')


def seed_zh(text: str) -> list[str]:
    """Every character but white space; letters of Latin words count one by one."""
    return [char for char in simplified(text).translate(SEED_MARKS) if not char.isspace()]


def wenet_zh(text: str) -> list[str]:
    """Han characters one by one, runs of other letters as words, in upper case; tags in angle brackets and WeNet's
    list of punctuation do not count."""
    return _characters(_TAG.sub("", text).translate(_WENET_MARKS))


def wenet_tn_zh(text: str) -> list[str]:
    """As `wenet_zh`, with numbers, dates and units in Chinese words, simplified, and without any punctuation."""
    return _characters(chinese_reading(_TAG.sub("", text)).translate(_ALL_MARKS))


def chinese_reading(text: str) -> str:
    """Simplified, with numbers, dates, units and symbols as they are read aloud."""
    return simplified(spoken(text, "zh")).replace("〇", "零")


def simplified(text: str) -> str:
    """Traditional characters one by one to simplified ones."""
    return text.translate(_table())


def _characters(text: str) -> list[str]:
    found: list[str] = []
    in_word = False
    for char in text.upper():
        kind = unicodedata.category(char)
        if kind == "Lo":
            found.append(char)
            in_word = False
        elif kind in ("Zs", "Cc", "Cn"):
            in_word = False
        elif in_word:
            found[-1] += char
        else:
            found.append(char)
            in_word = True
    return found


@cache
def _table() -> dict[int, str]:
    from misaki.zh_normalization.char_convert import tranditional_to_simplified

    # Every character of the two blocks of Han that Chinese texts are written in.
    every = "".join(map(chr, (*range(0x3400, 0xA000), *range(0xF900, 0xFB00))))
    return {ord(old): new for old, new in zip(every, tranditional_to_simplified(every), strict=True) if old != new}
