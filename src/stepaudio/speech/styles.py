"""How a text is to be spoken: a style asked for, or a label in brackets at its head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from stepaudio.errors import InputError
from stepaudio.speech.roles import Speaker, StyledSpeaker

LONGEST = 100
"""Characters of a label; what is longer is text in brackets."""
_BRACKETS = {"(": ")", "（": "）"}


def leading_label(pieces: Iterable[str]) -> tuple[str, str, Iterator[str]]:
    """(label, the text it was written as, the rest) of a text that comes in pieces.

    A label stands in round or full-width brackets at the very beginning, without further brackets inside: "(happy)",
    "（四川话）". Without one the first two are empty. Only as much text is waited for as could still be a label.
    """
    pieces = iter(pieces)
    text = ""
    for piece in pieces:
        text += piece
        end = _label_end(text)
        if end is None:
            continue
        if end:
            inside = text[:end].strip()[1:-1].strip()
            return inside, text[:end], chain([text[end:]], pieces)
        break
    return "", "", chain([text], pieces)


def _label_end(text: str) -> int | None:
    """Where the label at the head ends, 0 if there is none, None if more text must decide."""
    head = text.lstrip()
    if not head:
        return None
    close = _BRACKETS.get(head[0])
    if close is None:
        return 0
    for place, char in enumerate(head[1 : LONGEST + 2], 1):
        if char == close:
            return len(text) - len(head) + place + 1 if head[1:place].strip() else 0
        if char in "()（）\n":
            return 0
    return 0 if len(head) > LONGEST + 1 else None


def in_style(speaker: Speaker, style: str) -> Speaker:
    """The speaker speaking in a style. Raises InputError when it cannot be told how to speak."""
    if not isinstance(speaker, StyledSpeaker):
        raise InputError("the voices of this bundle know no styles; leave the style out", param="style")
    if any(bracket in style for bracket in "()（）\n") or not 0 < len(style.strip()) <= LONGEST:
        raise InputError(
            f"a style is 1 to {LONGEST} characters on one line, without round brackets: {style[:40]!r}", param="style"
        )
    return speaker.styled(style.strip())
