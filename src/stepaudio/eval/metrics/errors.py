"""Word and character error rates: the least number of edits between two lists of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

Edit = Literal["equal", "replace", "delete", "insert"]


@dataclass(frozen=True, slots=True)
class Errors:
    """What separates a hypothesis from a reference of `length` tokens. Counts add up, so a corpus is a sum."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.length + other.length,
        )


@dataclass(frozen=True, slots=True)
class Aligned:
    """One step of an alignment; the side that has no token there is None."""

    edit: Edit
    reference: str | None
    hypothesis: str | None


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Substitutions, deletions and insertions of a minimal alignment. Several alignments can be minimal: their total
    is the same, how it splits into the three kinds is not."""
    from rapidfuzz.distance import Levenshtein

    counts = {"replace": 0, "delete": 0, "insert": 0}
    for edit in Levenshtein.editops(reference, hypothesis):
        counts[edit.tag] += 1
    return Errors(counts["replace"], counts["delete"], counts["insert"], len(reference))


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Aligned]:
    """A minimal alignment, token by token."""
    from rapidfuzz.distance import Levenshtein

    steps: list[Aligned] = []
    for block in Levenshtein.opcodes(reference, hypothesis):
        left = list(reference[block.src_start : block.src_end])
        right = list(hypothesis[block.dest_start : block.dest_end])
        for index in range(max(len(left), len(right))):
            old = left[index] if index < len(left) else None
            new = right[index] if index < len(right) else None
            steps.append(Aligned(cast(Edit, block.tag), old, new))
    return steps


def is_transcript(errors: Errors, hypothesis_length: int) -> bool:
    """Whether the hypothesis is about as long as the reference: a model that chats instead of transcribing gives
    something half, or half again, as long."""
    return errors.length == 0 or 0.5 <= hypothesis_length / errors.length <= 1.5
