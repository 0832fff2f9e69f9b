"""The layout of the nano language model: phonemes in, dual codes out, and dual codes in, pieces of words out.

A token is a special, a phoneme, a piece of a word, a linguistic or a semantic code, in this order of ids. Speaking is
interleaved by word. Each word's phonemes stand right before its groups of codes, together with those of the word that
comes next, so that both text and audio stream and no alignment is longer than a word:

    <tts> <speed 2>  T1 <then> T2  A1 <next>  T2 <then> T3  A2 <next> ... Tn <then> <last>  An <next>

The model is trained on the groups and on <next>; whoever generates inserts the phonemes. A pause belongs to the word
before it, and a word shorter than half a group may have none. Hearing has one place for text after each group, which
holds a piece of a word that has ended or the blank (`stepaudio.train.ablation`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stepaudio.errors import InputError, MissingError
from stepaudio.tokenizer.interleave import LINGUISTIC_CODES, RATIO, SEMANTIC_CODES

FILE = "nano.json"
"""The vocabulary, beside a checkpoint's config.json and model.safetensors."""
PAD, TTS, ASR, THEN, NEXT, LAST = range(6)
SPEEDS = range(6, 11)
"""Five tags from slowest to fastest."""
_SPECIALS = 16
_BLOCK = 64
"""Rows of the embedding come in blocks of this many."""


@dataclass(frozen=True)
class NanoVocabulary:
    """Where things lie in the ids. `phonemes` are one character each; `pieces` the names of a recogniser's pieces,
    the blank first."""

    phonemes: str
    pieces: tuple[str, ...]

    @property
    def text(self) -> range:
        """Ids of the pieces."""
        start = _SPECIALS + len(self.phonemes)
        return range(start, start + len(self.pieces))

    @property
    def linguistic(self) -> range:
        return range(self.text.stop, self.text.stop + LINGUISTIC_CODES)

    @property
    def semantic(self) -> range:
        return range(self.linguistic.stop, self.linguistic.stop + SEMANTIC_CODES)

    @property
    def size(self) -> int:
        return -(-self.semantic.stop // _BLOCK) * _BLOCK

    def word(self, phonemes: str) -> list[int]:
        """Ids of a word's phonemes; symbols that the model does not know are left out."""
        places = (self.phonemes.find(symbol) for symbol in phonemes)
        return [_SPECIALS + place for place in places if place >= 0]

    def before(self, word: Sequence[int], following: Sequence[int] | None) -> list[int]:
        """What is inserted before a word's groups: its ids and those of the next word, or None behind the last."""
        return [*word, THEN, *([LAST] if following is None else following)]


def opening(speed: int) -> list[int]:
    """How speech begins; `speed` is 0 (slowest) to 4. Raises InputError for another."""
    if speed not in range(len(SPEEDS)):
        raise InputError(f"there are speeds 0 to {len(SPEEDS) - 1}, not {speed}", param="speed")
    return [TTS, SPEEDS[speed]]


def known_phonemes(lines: Iterable[str]) -> str:
    """The symbols of many lines of phonemes, without the pause."""
    return "".join(sorted({symbol for line in lines for symbol in line} - {" "}))


@dataclass(frozen=True, slots=True)
class WordGrammar:
    """The groups of one word, then <next>: at most `max_groups`, of two linguistic and three semantic codes each."""

    vocabulary: NanoVocabulary
    max_groups: int
    position: int = 0

    def allowed(self) -> tuple[range, ...]:
        groups, place = divmod(self.position, sum(RATIO))
        if place >= RATIO[0]:
            return (self.vocabulary.semantic,)
        if place:
            return (self.vocabulary.linguistic,)
        end = range(NEXT, NEXT + 1)
        return (end,) if groups >= self.max_groups else (end, self.vocabulary.linguistic)

    def advance(self, token: int) -> WordGrammar:
        if not any(token in span for span in self.allowed()):
            raise InputError(f"token {token} may not come at place {self.position} of a word")
        return replace(self, position=self.position + 1)


def save_vocabulary(folder: Path, vocabulary: NanoVocabulary) -> None:
    """Write `nano.json` beside a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": 1, "phonemes": vocabulary.phonemes, "pieces": vocabulary.pieces}, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def load_vocabulary(folder: Path) -> NanoVocabulary:
    """Read what `save_vocabulary` wrote. Raises MissingError without the file and InputError when it is damaged."""
    path = folder / FILE
    if not path.is_file():
        raise MissingError(f"{path} does not exist: the folder holds no nano language model")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != 1:
            raise InputError(f"{path} is of format {values['format']}; this version reads 1")
        return NanoVocabulary(str(values["phonemes"]), tuple(map(str, values["pieces"])))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error
