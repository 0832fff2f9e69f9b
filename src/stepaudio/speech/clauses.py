"""Cut streaming text into clauses that can be spoken one after another.

The first clause is short, so that speech starts before the text is complete; later ones are longer, because a voice
reads a whole sentence more naturally than its pieces. Text is looked at one character at a time and a cut depends
only on the characters before it and the one that follows, so the clauses do not depend on how the text arrived.

Clauses are pieces of the text as it was written, each with the white space that follows it: joined they are the text.
"""

from __future__ import annotations

import re

from stepaudio.speech.reading import HAN
from stepaudio.speech.reading.words import starts_word

MAX_CHARS = 400
"""No clause is longer than this, whatever the text."""

_FULL_STOPS = "。！？!?…"
_COMMAS = ",;:，、；："
_CLOSERS = "\"'”’»)]}）】》」』*_`~"
_HAN = re.compile(f"[{HAN}]")
_BEAT = re.compile(f"[{HAN}]|[^\\s{HAN}]*\\w[^\\s{HAN}]*")
_ABBREVIATION = re.compile(
    # An initial or letters with points (J. R., U.S.), but not the pronoun that ends a sentence.
    r"(?:^|[\s(\"“‘])(?:(?:[A-Za-z]\.)+[A-Za-z]|[A-HJ-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Ft|Gen|Gov|Sen|Rep|Capt|Lt|Col|Sgt|Rev|Pres|Jr|Sr"
    r"|vs|etc|approx|ca|cf|al|fig|vol|pp|Fig|Vol|Inc|Ltd|Corp|Co|Bros|Dept|Univ|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept"
    r"|Oct|Nov|Dec|Mon|Tue|Tues|Wed|Thu|Thurs|Fri)\.$"
)
_NUMBERED = re.compile(r"(?:^|\n)\s*\d{1,3}[.)]$")
_LINE_MARKS = "#>`|-*+•~"
# A clause that must be cut without punctuation is cut before one of these.
_OPENER = re.compile(
    "(?:and|but|or|so|because|that|which|who|when|where|while|if|as|than|to|for|with|from|in|on|at|by|about|of|into"
    "|after|before|until|since|is|are|was|were|will|would|can|could)$"
)
_HAN_OPENERS = frozenset("和与或但而在是就都也还因所把被让给对从向比跟为要会能可")
_HAN_FOLLOWERS = frozenset("的了着过吗呢吧啊")


class ClauseCutter:
    """`push` text as it comes and `flush` at its end; both return the clauses that are complete.

    With `eager` the first clause may also be cut where there is no punctuation, after about five English words or
    six to ten Chinese characters: for text that is still being written. Without it clauses end at punctuation
    wherever they can.
    """

    def __init__(self, *, eager: bool = True) -> None:
        self.eager = eager
        self.reset()

    def reset(self) -> None:
        self._text = ""
        self._beats = 0
        self._spoken = 0  # clauses with something to say, so far

    def push(self, delta: str) -> list[str]:
        clauses = []
        for char in delta:
            if (cut := self._cut(char)) is not None:
                clauses += self._take(cut)
            self._text += char
            self._beats += bool(_HAN.match(char)) or (char.isspace() and not self._text[-2:-1].isspace())
        return clauses

    def flush(self) -> list[str]:
        clauses = self._take(len(self._text))
        self.reset()
        return clauses

    def _take(self, cut: int) -> list[str]:
        clause, self._text = self._text[:cut], self._text[cut:]
        self._beats = len(_BEAT.findall(self._text))
        if not clause:
            return []
        self._spoken += any(char.isalnum() for char in clause)
        return [clause]

    def _cut(self, char: str) -> int | None:
        """Where the text is cut now that `char` is known to follow it; None to wait for more."""
        text = self._text
        if len(text) >= MAX_CHARS:
            return _last_gap(text)
        if not text or char.isspace():
            return None
        last = text[-1]
        gap = last.isspace()
        if not gap and last.isalnum() and not _HAN.match(last):
            return None
        if not gap and (char in _CLOSERS or char in _FULL_STOPS or char in _COMMAS or char == "."):
            return None
        if gap and "\n" in (space := text[len(text.rstrip()) :]) and self._ends_line(space, char):
            return len(text)
        before = text.rstrip()
        end = before.rstrip(_CLOSERS)[-1:]
        if end and (end in "。！？" or (gap and end in "!?…") or (end in "…" and _HAN.match(char))):
            return len(text)
        if gap and end == "." and not self._abbreviated(before.rstrip(_CLOSERS), char):
            return len(text)
        if end and end in _COMMAS + "—–" and self._beats >= self._shortest and self._parts(end, gap, char):
            return len(text)
        return self._cut_without_mark(char, gap)

    def _ends_line(self, space: str, char: str) -> bool:
        """A new line ends the clause unless the text is only wrapped there."""
        if space.count("\n") > 1 or char in _LINE_MARKS:
            return True
        line = self._text.rstrip().rpartition("\n")[2].lstrip()
        return line[:1] in _LINE_MARKS or (len(line) < 45 and len(_HAN.findall(line)) < 20)

    def _abbreviated(self, before: str, char: str) -> bool:
        if re.search(r"(?:^|\s)[Nn]os?\.$", before):
            return char.isdigit()
        return bool(_NUMBERED.search(before) or _ABBREVIATION.search(before))

    def _parts(self, mark: str, gap: bool, char: str) -> bool:
        """Whether a comma is followed by a new part: not 3,14 or 3：30."""
        if mark in "，、；：":
            return not (char.isdigit() and self._text.rstrip()[-2:-1].isdigit())
        return gap or (mark in "—–" and bool(_HAN.match(char)))

    @property
    def _shortest(self) -> int:
        """Beats (words or Han characters) that a clause needs before it may end at a comma."""
        if self._spoken == 1 and self.eager:
            return 6  # it is rendered while the first one, which is short, is heard
        return 12 if self._spoken else 3

    def _cut_without_mark(self, char: str, gap: bool) -> int | None:
        """Cut a clause that has grown long: before a function word, at last anywhere between words."""
        soft, hard = (4, 7) if self.eager and not self._spoken else (32, 44)
        text = self._text
        if _HAN.match(text[-1]):
            # A Han character holds about half of what an English word does.
            soft, hard = (4, 10) if self.eager and not self._spoken else (48, 64)
            if self._beats < soft or not _HAN.match(char) or char in _HAN_FOLLOWERS:
                return None
            if char in _HAN_OPENERS or text[-1] in _HAN_FOLLOWERS or self._beats >= hard:
                return len(text)
            return len(text) if self._beats > soft and starts_word(text, char) else None
        if not gap or self._beats < soft:
            return None
        if self._beats >= hard:
            return len(text)
        *_, word = text.split()
        start = text.rindex(word)
        return start if _OPENER.match(word.lower()) and len(_BEAT.findall(text[:start])) >= soft - 1 else None


def _last_gap(text: str) -> int:
    """The last white space of a text that is too long, so that no word is cut; its end when there is none."""
    return max(text.rfind(" "), text.rfind("\n")) + 1 or len(text)
