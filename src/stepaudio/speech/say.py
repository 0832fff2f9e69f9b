"""Say a text: a stream of text in, a stream of audio out, first audio before the text ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from threading import Event

import numpy as np

from stepaudio.errors import Cancelled, NotFoundError, TextError
from stepaudio.speech.clauses import ClauseCutter
from stepaudio.speech.reading import script, spoken
from stepaudio.speech.roles import Speaker, Speech, StyledSpeaker, Voice
from stepaudio.speech.styles import in_style, leading_label
from stepaudio.speech.voices import check_speed, find_voice


def say(
    speaker: Speaker,
    text: str | Iterable[str],
    *,
    voice: str | None = None,
    language: str | None = None,
    speed: float = 1.0,
    style: str | None = None,
    cancel: Event | None = None,
) -> Iterator[Speech]:
    """Speak a text, or a stream of pieces of one, clause by clause; memory does not grow with the text.

    Without `voice`, each clause gets the default voice of the language that its script points to; `language` (ISO
    639-1) decides where the script does not, as for digits. The texts of the chunks joined are the text. What has no
    reading is not heard but stays in the text: emoji, ornaments, code blocks, and stretches in a script that no voice
    reads, as long as something else can be said.

    `style` says how, in a label or in plain words, for speakers that know styles. Without it such a speaker takes a
    label in brackets at the head of the text, "(happy)", for the whole of it.

    Arguments are checked before this function returns: TextError for an empty text, InputError for a speed outside
    0.25 to 4 or a style that cannot be, NotFoundError for an unknown voice or language. TextError is also raised when
    the named voice cannot read a clause, and at the end of a text in which nothing can be said; Cancelled soon after
    `cancel` is set.
    """
    if isinstance(text, str) and not text.strip():
        raise TextError("there is no text to speak", param="text")
    check_speed(speed)
    if not speaker.voices:
        raise NotFoundError("this bundle has no voice of its own; give a clip of one: `stepaudio clone`", param="voice")
    known = find_voice(speaker, voice) if voice is not None else None
    if style is not None:
        speaker = in_style(speaker, style)
    if language is not None and speaker.default_voice(language) is None:
        spoken_here = sorted({code for each in speaker.voices for code in each.languages})
        raise NotFoundError(
            f"no voice reads the language {language!r}; these are read: {', '.join(spoken_here)}", param="language"
        )
    # A text that is there as a whole need not be cut where it has no punctuation.
    cutter = ClauseCutter(eager=not isinstance(text, str))
    pieces = _slices(text) if isinstance(text, str) else text
    return _say(speaker, cutter, pieces, known, language, speed, cancel)


def _say(
    speaker: Speaker,
    cutter: ClauseCutter,
    pieces: Iterable[str],
    voice: Voice | None,
    language: str | None,
    speed: float,
    cancel: Event | None,
) -> Iterator[Speech]:
    heard, silent = False, ""  # silent: text that is not heard and belongs to the next chunk
    if isinstance(speaker, StyledSpeaker):
        label, silent, pieces = leading_label(pieces)
        speaker = speaker.styled(label) if label else speaker
    readable = {code for each in speaker.voices for code in each.languages}
    last = language or (voice or speaker.voices[0]).languages[0]
    for clause in _clauses(cutter, pieces):
        if cancel is not None and cancel.is_set():
            raise Cancelled("speaking was cancelled")
        reads = script(clause.text, readable) or last
        reader = speaker.default_voice(reads)
        if clause.is_code or reader is None or not _has_reading(clause.text, reads):
            silent += clause.text
            continue
        last = reads
        for chunk in speaker.speak(clause.text, voice=(voice or reader).name, speed=speed, cancel=cancel):
            yield replace(chunk, text=silent + chunk.text)
            silent, heard = "", True
    if not heard:
        raise TextError(_nothing_heard(silent, readable), param="text")
    if silent:
        yield Speech(np.zeros(0, np.float32), silent)


@dataclass(frozen=True, slots=True)
class _Clause:
    text: str
    is_code: bool


def _clauses(cutter: ClauseCutter, pieces: Iterable[str]) -> Iterator[_Clause]:
    """Clauses as the text comes, told apart from fenced code."""
    in_code = False
    for text in chain(chain.from_iterable(map(cutter.push, pieces)), _last(cutter)):
        fences = len(re.findall(r"^\s*(?:```|~~~)|(?:```|~~~)\s*$", text))
        yield _Clause(text, in_code or fences > 0)
        in_code ^= fences == 1


def _last(cutter: ClauseCutter) -> Iterator[str]:
    """What is left in the cutter once all pieces are in."""
    yield from cutter.flush()


def _slices(text: str, size: int = 1000) -> Iterator[str]:
    """A long text piece by piece, so that its clauses are spoken as they are cut."""
    return (text[start : start + size] for start in range(0, len(text), size))


def _has_reading(clause: str, language: str) -> bool:
    return any(char.isalnum() for char in spoken(clause, language))


def _nothing_heard(text: str, readable: set[str]) -> str:
    if not text.strip():
        return "there is no text to speak"
    return f"nothing in {text[:40].strip()!r} can be spoken; the voices read {', '.join(sorted(readable))}"
