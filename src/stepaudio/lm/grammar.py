"""Which tokens may come next: audio output keeps the 2:3 pattern, text output stays free of audio.

A grammar is an immutable state. `allowed` gives the ids that may come next as ranges, `advance` the state
after one of them. Upstream samples without one, which lets a text token or a torn group reach the vocoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from stepaudio.errors import InputError
from stepaudio.tokenizer.interleave import AUDIO_TOKENS, LINGUISTIC_CODES, LM_OFFSET, RATIO

LINGUISTIC_PER_GROUP, SEMANTIC_PER_GROUP = RATIO
GROUP = LINGUISTIC_PER_GROUP + SEMANTIC_PER_GROUP
"""Tokens per group of 120 ms: two linguistic, then three semantic."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where things lie in the ids of a model: text pieces, then the audio block.

    The first five text ids are the specials <unk>, <s>, </s>, <|EOT|> and <|BOT|>. Released models have 65
    536 text pieces; rows above the audio block are padding.
    """

    text: int = LM_OFFSET
    unk: int = 0
    bos: int = 1
    eot: int = 3
    bot: int = 4

    @property
    def linguistic(self) -> range:
        return range(self.text, self.text + LINGUISTIC_CODES)

    @property
    def semantic(self) -> range:
        return range(self.text + LINGUISTIC_CODES, self.text + AUDIO_TOKENS)

    @property
    def audio(self) -> range:
        return range(self.text, self.text + AUDIO_TOKENS)


class Grammar(Protocol):
    """A set of id sequences, one step at a time."""

    def allowed(self) -> tuple[range, ...]:
        """Ids that may come next: disjoint, ascending ranges, at least one of them not empty."""
        ...

    def advance(self, token: int) -> Grammar:
        """The state after `token`. Raises InputError when it was not allowed."""
        ...


@dataclass(frozen=True, slots=True)
class AudioGrammar:
    """Whole groups of two linguistic and three semantic tokens; the end only between groups.

    At least `min_groups` and at most `max_groups` groups (None: no limit). `position` counts the tokens so
    far.
    """

    vocabulary: Vocabulary
    min_groups: int = 1
    max_groups: int | None = None
    position: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        if self.max_groups is not None and self.max_groups < self.min_groups:
            raise InputError(f"at most {self.max_groups} groups cannot be at least {self.min_groups}")

    def allowed(self) -> tuple[range, ...]:
        eot = range(self.vocabulary.eot, self.vocabulary.eot + 1)
        groups, place = divmod(self.position, GROUP)
        if self.ended or (place == 0 and groups == self.max_groups):
            return (eot,)
        if place >= LINGUISTIC_PER_GROUP:
            return (self.vocabulary.semantic,)
        if place or groups < self.min_groups:
            return (self.vocabulary.linguistic,)
        return (eot, self.vocabulary.linguistic)

    def advance(self, token: int) -> AudioGrammar:
        _require(token, self.allowed())
        if token == self.vocabulary.eot:
            return replace(self, ended=True)
        return replace(self, position=self.position + 1)


@dataclass(frozen=True, slots=True)
class TextGrammar:
    """Text pieces and the end of the turn; no audio, no padding rows, none of the other specials."""

    vocabulary: Vocabulary

    def allowed(self) -> tuple[range, ...]:
        v = self.vocabulary
        return (range(v.eot, v.eot + 1), range(v.bot + 1, v.text))

    def advance(self, token: int) -> TextGrammar:
        _require(token, self.allowed())
        return self


def _require(token: int, allowed: tuple[range, ...]) -> None:
    if not any(token in span for span in allowed):
        raise InputError(f"token {token} may not come here; the grammar allows {allowed}")
