"""Interleaved audio tokens as rows at 25 Hz, which the 24 kHz decoder reads.

A group of 2 linguistic and 3 semantic codes is 120 ms, three rows: (l0, s0), (l1, s1), (PAD, s2). A row is two
indices into one table: linguistic codes are 0..1023, PAD is 1024, a semantic code s is 1025 + s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stepaudio.errors import InputError
from stepaudio.tokenizer.interleave import AUDIO_TOKENS, LINGUISTIC_CODES, Codes, deinterleave

PAD = LINGUISTIC_CODES
TABLE_ROWS = AUDIO_TOKENS + 1
GROUP_TOKENS = 5
GROUP_ROWS = 3


def realign(tokens: ArrayLike) -> Codes:
    """Audio tokens in 0..5119 to rows [R, 2], one per semantic code.

    In the last group, where codes may be missing, a semantic code without its linguistic one is paired with PAD; a
    linguistic code without a semantic one has no row. Raises InputError for tokens that are not in 2:3 order.
    """
    linguistic, semantic = deinterleave(tokens)
    rows = np.full((len(semantic), 2), PAD, dtype=np.int64)
    group, place = np.divmod(np.arange(len(semantic)), GROUP_ROWS)
    code = 2 * group + place
    paired = (place < 2) & (code < len(linguistic))
    rows[paired, 0] = linguistic[code[paired]]
    rows[:, 1] = semantic + PAD + 1
    return rows


class RowBuffer:
    """`realign` of tokens as they come: the rows of a group once it is whole, the rest at the end."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._only_semantic: bool | None = None

    def push(self, tokens: ArrayLike) -> Codes:
        """Rows [R, 2]. Raises InputError as `realign` does; the stream is then of no more use."""
        self._waiting += np.asarray(tokens).tolist()
        rows = [np.zeros((0, 2), dtype=np.int64)]
        while len(self._waiting) >= GROUP_TOKENS:
            rows.append(self._take(GROUP_TOKENS))
        return np.concatenate(rows)

    def flush(self) -> Codes:
        """Rows of the last, partial group; the buffer is then as new."""
        rows = self._take(len(self._waiting))
        self._only_semantic = None
        return rows

    def _take(self, count: int) -> Codes:
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        rows = realign(group)
        # A whole group that lacks codes of one kind is where that kind ended: only the other one can follow.
        if self._only_semantic is None:
            if count == GROUP_TOKENS and len(rows) != GROUP_ROWS:
                self._only_semantic = group[-1] >= LINGUISTIC_CODES
        elif len(rows) != self._only_semantic * count:
            raise InputError("audio tokens break the 2:3 order: a kind of code comes again after it had ended")
        return rows
