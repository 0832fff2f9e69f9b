"""How text is read aloud: `spans` pairs each stretch of a text, as it is written, with the words that say it.

Numbers, dates, money, units, addresses and symbols are written out in words of the language; everything else stays
as it is for grapheme-to-phoneme conversion. Each rule claims a stretch of the text and no rule sees what another
wrote, so the written and the spoken form stay aligned and word times can be given in terms of what was written.

Markdown marks are read as a person would: not at all. Symbols that have no reading (emoji, ornaments) are silent;
their spans have an empty spoken form, so the text is still complete.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff〇"
_HAN = re.compile(f"[{HAN}]")
_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "THAI": "th",
    "LATIN": "en",
}
_WIDE_MARKS = "、，。！？；：（）《》「」“”…"
_UNIT = re.compile(f"[{HAN}]|[{_WIDE_MARKS}]+|[^\\s{HAN}{_WIDE_MARKS}]+|\\s+")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text as it is written, and the words that say it (empty: silent)."""

    source: str
    spoken: str


Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]]
"""A pattern and its reading; a reading of None leaves that match to later rules."""


def script(text: str, readable: Collection[str] | None = None) -> str | None:
    """The language that the script of a text points to (ISO 639-1), or None when it holds no letters.

    Any kana or hangul decides, then any Han character (Chinese voices also read the English around it), then the
    script of most letters; Latin script is taken for English. Letters of languages that are not `readable` count for
    nothing (kana apart: Han characters among kana are not Chinese).
    """
    counts: dict[str, int] = {}
    for char in text:
        if _HAN.match(char):
            language = "zh"
        elif char.isalpha():
            language = _SCRIPTS.get(unicodedata.name(char, "?").split()[0], "und")
        else:
            continue
        counts[language] = counts.get(language, 0) + 1
    if "ja" in counts:
        return "ja"
    if readable is not None:
        counts = {language: count for language, count in counts.items() if language in readable}
    for language in ("ko", "zh"):
        if language in counts:
            return language
    return max(counts, key=lambda language: counts[language]) if counts else None


def spans(text: str, language: str) -> list[Span]:
    """Read a text in `en` or `zh`. The sources joined are the text; each span is one word, number or address.

    In Chinese every character is a span of its own, so that times can be given per character. Punctuation and white
    space belong to the span before them.
    """
    from stepaudio.speech.reading import en, zh

    rules = zh.RULES if language == "zh" else en.RULES
    return _attach([span for stretch in apply(text, rules) for span in _units(stretch)])


def spoken(text: str, language: str) -> str:
    """The words that say a text."""
    return re.sub(r"\s+", " ", "".join(span.spoken for span in spans(text, language))).strip()


def apply(text: str, rules: tuple[Rule, ...]) -> list[Span]:
    """Let the earliest match win, and among rules that match at the same place the first."""
    found: list[Span] = []
    done = 0
    nearest: list[tuple[int, re.Match[str] | None, str]] = [(-1, None, "")] * len(rules)
    while done < len(text):
        for index, (pattern, reading) in enumerate(rules):
            if nearest[index][0] < done:
                nearest[index] = _next(text, done, pattern, reading)
        start, match, words = min(nearest, key=lambda hit: hit[0])
        if match is None:
            break
        if start > done:
            found.append(Span(text[done:start], text[done:start]))
        found.append(Span(match.group(), words))
        done = match.end()
    if done < len(text):
        found.append(Span(text[done:], text[done:]))
    return found


def _next(
    text: str, start: int, pattern: re.Pattern[str], reading: Callable[[re.Match[str]], str | None]
) -> tuple[int, re.Match[str] | None, str]:
    """The next match that has a reading, as (where, match, words); past the end when there is none."""
    while match := pattern.search(text, start):
        words = reading(match)
        if words is not None and match.end() > match.start():
            return match.start(), match, words
        start = match.start() + 1
    return len(text) + 1, None, ""


def _units(span: Span) -> list[Span]:
    """Break a stretch that is read as written into words and Han characters."""
    if span.source != span.spoken:
        return [span]
    return [Span(unit, unit) for unit in _UNIT.findall(span.source)]


def _attach(units: list[Span]) -> list[Span]:
    """Join what belongs to one word: punctuation and space to the left, and parts with no space between them."""
    joined: list[Span] = []
    for unit in units:
        if joined and _continues(joined[-1], unit):
            last = joined[-1]
            joined[-1] = Span(last.source + unit.source, last.spoken + unit.spoken)
        else:
            joined.append(unit)
    if len(joined) > 1 and not _has_word(joined[0].source):
        first, second = joined[:2]
        joined[:2] = [Span(first.source + second.source, first.spoken + second.spoken)]
    return joined


def _continues(last: Span, unit: Span) -> bool:
    if not _has_word(unit.source):
        return True
    apart = last.source[-1].isspace() or _HAN.match(last.source[-1]) or _HAN.match(unit.source[0])
    return not apart and not unicodedata.category(last.source[-1]).startswith("P")


def _has_word(text: str) -> bool:
    return any(char.isalnum() for char in text)
