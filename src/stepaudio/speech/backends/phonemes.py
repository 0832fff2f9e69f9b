"""Text to Kokoro's phoneme alphabet, with the written word that each phoneme belongs to.

English goes through hibari's grapheme-to-phoneme model (misaki's rules and lexicon, Apache-2.0), Chinese through
misaki's pinyin-to-IPA map over jieba's words and pypinyin's readings: what Kokoro-82M was trained on. English inside
Chinese uses the same alphabet, so a Chinese voice reads both.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stepaudio.errors import MissingError
from stepaudio.speech.reading import HAN, Span, spans
from stepaudio.speech.reading.words import dictionary

_RUN = re.compile(f"[{HAN}]+|[^{HAN}]+")
_PUNCTUATION = str.maketrans(
    {
        **dict(zip("，、。．！？：；（）【】", ",,..!?:;()()", strict=True)),
        **dict(zip("《》「」『』〈〉«»", "“”“”“”“”“”", strict=True)),
        "’": "'",
        "‘": "'",
        "–": "—",
        "―": "—",
        "～": "—",
        "\u3000": " ",
        "\u00a0": " ",
        "[": "(",
        "]": ")",
    }
)
PAUSE = re.compile(r"[;:,.!?—…\"()“” ]")
"""Symbols of the alphabet that are silence or a pause."""


@dataclass(frozen=True, slots=True)
class Pronunciation:
    """`phonemes`, and for each of them the index into `words` of the written word that it says."""

    words: tuple[str, ...]
    phonemes: str
    owners: tuple[int, ...]


class Phonemizer:
    """Loads each language's tables when they are first needed; safe to share between threads."""

    def __init__(self) -> None:
        self._english_lock = threading.Lock()
        self._chinese_lock = threading.Lock()
        self._english: dict[bool, Any] = {}
        self._chinese: Callable[[str], Iterator[tuple[str, int]]] | None = None

    def load(self, language: str, *, british: bool = False) -> None:
        """Load now rather than at the first clause. Raises MissingError when a package is not installed."""
        if language == "zh":
            self._zh()
        self._en(british)

    def __call__(self, text: str, language: str, *, british: bool = False) -> Pronunciation:
        """Pronounce one clause in `en` or `zh`. A text without anything to say has no phonemes."""
        written = spans(text, language)
        pieces = self._pieces(written, british)
        phonemes: list[str] = []
        owners: list[int] = []
        for sound, owner in pieces:
            # A pause at the start or two in a row say nothing.
            if sound == " " and (not phonemes or phonemes[-1] == " "):
                continue
            phonemes.append(sound)
            owners.append(owner)
        while phonemes and phonemes[-1] == " ":
            phonemes.pop()
            owners.pop()
        if all(PAUSE.match(sound) for sound in phonemes):
            phonemes, owners = [], []
        return Pronunciation(tuple(span.source for span in written), "".join(phonemes), tuple(owners))

    def _pieces(self, written: list[Span], british: bool) -> Iterator[tuple[str, int]]:
        """Every phoneme with the index of its span."""
        text = "".join(span.spoken for span in written).translate(_PUNCTUATION)
        owner = [index for index, span in enumerate(written) for _ in span.spoken]
        for run in _RUN.finditer(text):
            start = run.start()
            # Words of two scripts stand apart even where nothing is written between them.
            if start and (text[start - 1].isalnum() and text[start].isalnum()):
                yield " ", owner[start - 1]
            is_han = re.match(f"[{HAN}]", run.group())
            sounds = self._zh()(run.group()) if is_han else self._latin(run.group(), british)
            for sound, offset in sounds:
                for symbol in sound:
                    yield symbol, owner[start + offset]

    def _latin(self, text: str, british: bool) -> Iterator[tuple[str, int]]:
        """English words of a run and the spaces around them, each with its place in the run."""
        if not any(char.isalnum() for char in text):
            # Punctuation between Chinese characters: a pause, then a space as after an English comma.
            for offset, char in enumerate(text):
                yield char, offset
            if text.strip():
                yield " ", len(text) - 1
            return
        if text[0].isspace():
            yield " ", 0
        g2p = self._en(british)
        done = 0
        for token in g2p.phonemize_tokens(g2p.tokenize(text)):
            done = max(text.find(token.text, done), done)
            # A letter that stands alone is the name of the letter, except for the words "a" and "I".
            sound = "ˈA" if token.text == "A" and len(text.strip()) == 1 else token.phonemes
            yield sound or "", done
            done = min(done + len(token.text), len(text) - 1)
            if token.whitespace:
                yield " ", done
        if text[-1].isspace():
            yield " ", len(text) - 1

    def _en(self, british: bool) -> Any:
        with self._english_lock:
            if british not in self._english:
                try:
                    from hibari.g2p import G2P
                except ImportError as error:
                    raise MissingError(_INSTALL.format("hibari-tts")) from error
                self._english[british] = G2P(british=british)
            return self._english[british]

    def _zh(self) -> Callable[[str], Iterator[tuple[str, int]]]:
        with self._chinese_lock:
            if self._chinese is None:
                self._chinese = _chinese()
            return self._chinese


_INSTALL = 'reading this text needs the package {}: pip install "stepaudio[local]"'


def _chinese() -> Callable[[str], Iterator[tuple[str, int]]]:
    """The Chinese reader: Han characters to (phonemes, offset), with a space between words."""
    words = dictionary()
    try:
        from misaki.zh import ZHG2P
        from pypinyin import Style, lazy_pinyin
    except ImportError as error:
        raise MissingError(_INSTALL.format(error.name)) from error
    if words is None:
        raise MissingError(_INSTALL.format("jieba"))

    def read(text: str) -> Iterator[tuple[str, int]]:
        offset = 0
        for word in words.cut(text):
            if offset:
                yield " ", offset
            pinyins = lazy_pinyin(word, style=Style.TONE3, neutral_tone_with_five=True)
            for index, pinyin in enumerate(pinyins):
                yield _syllable(ZHG2P.py2ipa, pinyin), offset + min(index, len(word) - 1)
            offset += len(word)

    return read


def _syllable(to_ipa: Callable[[str], str], pinyin: str) -> str:
    """One pinyin syllable in IPA with tone arrows; a character without a known reading is silent."""
    try:
        return to_ipa(pinyin).replace("\u032f", "")
    except (KeyError, ValueError, IndexError, AssertionError):
        return ""
