"""Whether a reply holds the answer: the rules of spoken question answering, by name.

- `has_answer`: the rule of DPR and of UltraEval's `qa-exist-match`: the tokens of an answer appear in a row in the
  reply. It is generous to long replies.
- `contains`: the same after numbers have one form ("five" is "5"), the default here.
- `exact`: the whole reply is the answer, after SQuAD's normalisation.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from types import MappingProxyType

from stepaudio.eval.normalise import chinese_reading, whisper_english
from stepaudio.speech.reading import HAN

_HAN = re.compile(f"[{HAN}]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def tokens(text: str) -> list[str]:
    """Lower-case runs of letters, numbers and marks after canonical decomposition, and every other visible character
    by itself, as in DPR; every Han character is a token of its own, since nothing parts Chinese words."""
    found: list[str] = []
    in_run = False
    for char in unicodedata.normalize("NFD", text).lower():
        kind = unicodedata.category(char)[0]
        if kind in "LNM" and not _HAN.match(char):
            if in_run:
                found[-1] += char
            else:
                found.append(char)
            in_run = True
            continue
        in_run = False
        if kind not in "ZC":
            found.append(char)
    return found


def has_answer(reply: str, answers: Sequence[str], language: str = "en") -> bool:
    """Whether the tokens of any of the answers appear in a row in the reply."""
    words = tokens(reply)
    return any(_within(tokens(answer), words) for answer in answers)


def contains(reply: str, answers: Sequence[str], language: str = "en") -> bool:
    """As `has_answer`, after both are written with one form for numbers."""
    normal = chinese_reading if language == "zh" else whisper_english
    return has_answer(normal(reply), [normal(answer) for answer in answers])


def exact(reply: str, answers: Sequence[str], language: str = "en") -> bool:
    """Whether the reply is one of the answers but for case, punctuation, articles and white space."""
    return _squad(reply) in {_squad(answer) for answer in answers}


RULES: MappingProxyType[str, Callable[[str, Sequence[str], str], bool]] = MappingProxyType(
    {"contains": contains, "has_answer": has_answer, "exact": exact}
)


def choice(reply: str, options: Sequence[str], language: str = "en") -> int | None:
    """Which of the options A, B, C... a reply picks: a letter that stands alone, or else the only option whose text
    the reply contains. None when it picks none, or several."""
    letters = string.ascii_uppercase[: len(options)]
    # A capital only: "a" is an article. A letter at the head may be small.
    found = {match.upper() for match in re.findall(rf"(?<![A-Za-z])([{letters}])(?![A-Za-z'’])", reply)}
    head = re.match(rf"\W*([{letters}{letters.lower()}])(?:[.):、。，]|\s*$)", reply)
    if head:
        found = {head[1].upper()}
    if len(found) == 1:
        return letters.index(found.pop())
    if found:
        return None
    named = [index for index, option in enumerate(options) if contains(reply, [option], language)]
    return named[0] if len(named) == 1 else None


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    return bool(part) and any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def _squad(text: str) -> str:
    kept = "".join(char for char in text.lower() if not unicodedata.category(char).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", kept).split())
