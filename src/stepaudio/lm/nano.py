"""The layout of the nano language model: phonemes in, dual codes out, and dual codes in, phonemes out.

A token is a special, a phoneme in one of four places, a linguistic or a semantic code, in this order of ids. All is
told group by group (120 ms), so that text and sound stream and no alignment is left to be found:

    <tts> <speed 2>  W W W W <count> L L S S S  W W W W <count> L L S S S ...
    <asr>  L L S S S . . . .  L L S S S . . . . ...

To speak, W are the phoneme that sounds as the group begins and the three behind it. The model says how many of them
end within the group (`<count>`) and then how the group sounds; whoever generates moves the window on by that many. So
every phoneme is spoken, once, in its turn, and the count is all there is of duration.

To hear, each group has four empty places, at which the model tells the phonemes of four even moments of the group
before; it has heard a group more by then. They stay empty: what it told it never sees, for from its own words it would
learn to go on talking instead of listening. So all is heard in one pass.

Phonemes are those of misaki's alphabet without stress; a space is the pause between two words, at the start and at the
end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from stepaudio.errors import InputError, MissingError
from stepaudio.files import replacing
from stepaudio.tokenizer.interleave import LINGUISTIC_CODES, RATIO, SEMANTIC_CODES

FILE = "nano.json"
"""The vocabulary, beside a checkpoint's config.json and model.safetensors."""
PLACES = 4
"""Phonemes of a window, and moments of a group."""
PAUSE = " "
PAD, TTS, ASR = range(3)
SPEEDS = range(3, 8)
"""Five tags from slowest to fastest."""
COUNTS = range(8, 8 + PLACES + 1)
_SPECIALS = 16
_BLOCK = 64
"""Rows of the embedding come in blocks of this many."""


@dataclass(frozen=True)
class NanoVocabulary:
    """Where things lie in the ids. `phonemes` are one character each, the pause among them."""

    phonemes: str

    def place(self, place: int) -> range:
        """Ids of what may stand in a place 0 to 3: nothing (behind the end), or each of the phonemes."""
        start = _SPECIALS + place * (1 + len(self.phonemes))
        return range(start, start + 1 + len(self.phonemes))

    @property
    def places(self) -> range:
        """Ids of all places."""
        return range(self.place(0).start, self.place(PLACES - 1).stop)

    @property
    def linguistic(self) -> range:
        return range(self.places.stop, self.places.stop + LINGUISTIC_CODES)

    @property
    def semantic(self) -> range:
        return range(self.linguistic.stop, self.linguistic.stop + SEMANTIC_CODES)

    @property
    def size(self) -> int:
        return -(-self.semantic.stop // _BLOCK) * _BLOCK

    def write(self, phonemes: str) -> list[int]:
        """Ids of up to four phonemes in their places; what is left of the places holds nothing.

        A symbol that is not known counts as nothing, too.
        """
        return [self.place(i).start + 1 + self.phonemes.find(phonemes[i : i + 1] or "\0") for i in range(PLACES)]

    def known(self, phonemes: str) -> str:
        """The phonemes without symbols that the model does not know."""
        return "".join(symbol for symbol in phonemes if symbol in self.phonemes)


def opening(speed: int) -> list[int]:
    """How speech begins; `speed` is 0 (slowest) to 4. Raises InputError for another."""
    if speed not in range(len(SPEEDS)):
        raise InputError(f"there are speeds 0 to {len(SPEEDS) - 1}, not {speed}", param="speed")
    return [TTS, SPEEDS[speed]]


def known_phonemes(lines: Iterable[str]) -> str:
    """The symbols of many lines of phonemes, the pause first."""
    return PAUSE + "".join(sorted({symbol for line in lines for symbol in line} - {PAUSE}))


@dataclass(frozen=True, slots=True)
class GroupGrammar:
    """A count from `least` to `most`, two linguistic and three semantic codes."""

    vocabulary: NanoVocabulary
    most: int
    least: int = 0
    position: int = 0

    def allowed(self) -> tuple[range, ...]:
        if self.position == 0:
            return (COUNTS[self.least : self.most + 1],)
        return (self.vocabulary.linguistic if self.position <= RATIO[0] else self.vocabulary.semantic,)

    def advance(self, token: int) -> GroupGrammar:
        if not any(token in span for span in self.allowed()):
            raise InputError(f"token {token} may not come at place {self.position} of a group")
        return replace(self, position=self.position + 1)


def save_vocabulary(folder: Path, vocabulary: NanoVocabulary) -> None:
    """Write `nano.json` beside a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": 1, "phonemes": vocabulary.phonemes}, ensure_ascii=False)
    with replacing(folder / FILE) as half:
        half.write_text(text + "\n", encoding="utf-8")


def load_vocabulary(folder: Path) -> NanoVocabulary:
    """Read what `save_vocabulary` wrote. Raises MissingError without the file and InputError when it is damaged."""
    path = folder / FILE
    if not path.is_file():
        raise MissingError(f"{path} does not exist: the folder holds no nano language model")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != 1:
            raise InputError(f"{path} is of format {values['format']}; this version reads 1")
        phonemes = values["phonemes"]
        if not isinstance(phonemes, str) or PAUSE not in phonemes:
            raise ValueError("no phonemes")
        return NanoVocabulary(phonemes)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error
