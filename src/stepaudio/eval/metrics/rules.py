"""Requirements that a rule can check, in ComplexBench's notation (Wen et al. 2024, arXiv 2407.03978).

`model_length:[10,50]` characters, `model_length_word:[5,20]` words, `model_keyword:[a, b]` all of them,
`model_keyword_num:[1,2, a, b]` one or two of them, `model_forbidden_word:[a]`, `model_startswith:a`,
`model_endswith:a`, `model_not_startswith:a`, `model_not_endswith:a`, `model_number:[2,3]` parts,
`model_constraint_punc:[，, 。]` no other punctuation. With `_each` a rule holds for every part, without it for the
first. Several rules in one, a line each, must all hold.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from stepaudio.errors import InputError

_RULE = re.compile(r"^model_(\w+?)(_each)?:(.*)$", re.DOTALL)
_END_MARKS = "。？.?"


def holds(rule: str, parts: Sequence[str]) -> bool:
    """Whether the parts of a reply keep a rule; a part that is not there keeps only what forbids. Raises InputError
    for a rule that is not known."""
    return all(_holds(line, parts) for line in re.split(r"\n(?=model_)", rule.strip()))


def _holds(rule: str, parts: Sequence[str]) -> bool:
    found = _RULE.match(rule)
    name = found[1] if found else ""
    if found is None or name not in (*_CHECKS, "number"):
        raise InputError(f"the rule {rule!r} is not known; docs/eval.md lists those that are")
    said = [_plain(part) for part in parts if part.strip()]
    if name == "number":
        low, high = _numbers(found[3])
        return low <= len(said) <= high
    if not said:
        return name in ("forbidden_word", "not_startswith", "not_endswith")
    check = _CHECKS[name]
    return all(check(part, _plain(found[3])) for part in (said if found[2] else said[:1]))


def _within(count: Callable[[str], int]) -> Callable[[str, str], bool]:
    def check(part: str, bounds: str) -> bool:
        low, high = _numbers(bounds)
        return low <= count(part) <= high

    return check


def _words(listed: str) -> list[str]:
    return [word for each in listed.strip().strip("[]").split(",") if (word := each.strip())]


def _numbers(listed: str) -> tuple[int, int]:
    low, high, *_ = (int(each) for each in _words(listed)[:2])
    return low, high


def _some(part: str, listed: str) -> bool:
    low, high, *words = _words(listed)
    return int(low) <= sum(word in part for word in words) <= int(high)


def _begins(part: str, start: str) -> bool:
    return part.startswith(start.strip())


def _ends(part: str, end: str) -> bool:
    end = end.strip()
    return part.endswith(end) or part.rstrip(_END_MARKS).endswith(end)


def _marks(part: str, listed: str) -> bool:
    # The list itself is parted by commas, so a comma in it leaves an empty entry.
    allowed = set(_words(listed)) | ({","} if ",," in listed.replace(" ", "") else set())
    return all(char in allowed for char in part if unicodedata.category(char).startswith("P"))


_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "length": _within(len),
    "length_word": _within(lambda part: len(part.split())),
    "keyword": lambda part, listed: all(word in part for word in _words(listed)),
    "keyword_num": _some,
    "forbidden_word": lambda part, listed: not any(word in part for word in _words(listed)),
    "startswith": _begins,
    "endswith": _ends,
    "not_startswith": lambda part, start: not _begins(part, start),
    "not_endswith": lambda part, end: not _ends(part, end),
    "constraint_punc": _marks,
}


def _plain(text: str) -> str:
    """Full-width forms as their ordinary ones, quotation marks around the whole removed."""
    text = unicodedata.normalize("NFKC", text).strip()
    return text[1:-1] if len(text) > 1 and text[0] in '"“`' and text[-1] in '"”`' else text
