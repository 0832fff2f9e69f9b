"""Two code streams as one token sequence, and back.

Linguistic codes L (16.67 Hz) and semantic codes S (25 Hz) are laid out in groups of `a` linguistic and `b`
semantic codes; with the default 2:3 a group is 120 ms. Group g holds L[2g], L[2g+1], S[3g], S[3g+1],
S[3g+2]. Language models see the codes as ids: a linguistic code c is 65536 + c, a semantic code s is
66560 + s. In print they are `<audio_c>` and `<audio_{1024+s}>` (arXiv 2502.11946 and its released tokenizer).

What is left after the last whole group is kept as a shorter last group (`tail="keep"`, the default here,
loses nothing) or dropped from both streams (`tail="drop"`, what the released tokenizer does). Either way a
sequence is taken apart by the kind of its tokens and checked against the layout, so damaged sequences are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stepaudio.errors import InputError

LINGUISTIC_CODES = 1024
SEMANTIC_CODES = 4096
AUDIO_TOKENS = LINGUISTIC_CODES + SEMANTIC_CODES
LM_OFFSET = 65536
"""LM id of `<audio_0>`; ids run to LM_OFFSET + AUDIO_TOKENS - 1 = 70655."""

RATIO = (2, 3)
"""Linguistic and semantic codes of a group, 120 ms."""

Codes = NDArray[np.int64]
Tail = Literal["keep", "drop"]
_TOKEN = re.compile(r"<audio_(\d{1,9})>")


def interleave(
    linguistic: ArrayLike, semantic: ArrayLike, *, ratio: tuple[int, int] = RATIO, tail: Tail = "keep"
) -> Codes:
    """Codes [L] and [S] to audio tokens in 0..5119, linguistic codes as they are and semantic codes + 1024.

    Raises InputError for a code outside its codebook, an unknown tail rule or a ratio with a part below 1.
    """
    l_codes = _checked(linguistic, LINGUISTIC_CODES, "linguistic")
    s_codes = _checked(semantic, SEMANTIC_CODES, "semantic")
    _check_ratio(ratio)
    if tail == "drop":
        groups = min(len(l_codes) // ratio[0], len(s_codes) // ratio[1])
        l_codes, s_codes = l_codes[: groups * ratio[0]], s_codes[: groups * ratio[1]]
    elif tail != "keep":
        raise InputError(f"unknown tail rule {tail!r}: use 'keep' or 'drop'", param="tail")
    order = _order(len(l_codes), len(s_codes), ratio)
    return np.concatenate([l_codes, s_codes + LINGUISTIC_CODES])[order]


def deinterleave(tokens: ArrayLike, *, ratio: tuple[int, int] = RATIO) -> tuple[Codes, Codes]:
    """Audio tokens in 0..5119 to linguistic codes [L] and semantic codes [S]; the inverse of `interleave`.

    Raises InputError for a token outside 0..5119 and for an order that no `interleave` at this ratio gives.
    """
    checked = _checked(tokens, AUDIO_TOKENS, "audio token")
    _check_ratio(ratio)
    is_linguistic = checked < LINGUISTIC_CODES
    l_codes = checked[is_linguistic]
    s_codes = checked[~is_linguistic] - LINGUISTIC_CODES
    expected = _order(len(l_codes), len(s_codes), ratio) < len(l_codes)
    if not np.array_equal(expected, is_linguistic):
        at = int(np.flatnonzero(expected != is_linguistic)[0])
        raise InputError(
            f"audio token {at} of {len(checked)} breaks the {ratio[0]}:{ratio[1]} order: "
            f"{checked[at]} is a {'linguistic' if is_linguistic[at] else 'semantic'} code"
        )
    return l_codes, s_codes


def to_lm_ids(tokens: ArrayLike) -> Codes:
    """Audio tokens in 0..5119 to ids in the language model's vocabulary."""
    return _checked(tokens, AUDIO_TOKENS, "audio token") + LM_OFFSET


def from_lm_ids(ids: ArrayLike) -> Codes:
    """Language-model ids to audio tokens. Raises InputError for an id that is not an audio token."""
    values = _integers(ids, "LM id")
    outside = (values < LM_OFFSET) | (values >= LM_OFFSET + AUDIO_TOKENS)
    if outside.any():
        last = LM_OFFSET + AUDIO_TOKENS - 1
        raise InputError(f"LM id {values[outside][0]} is no audio token: those are {LM_OFFSET} to {last}")
    return values - LM_OFFSET


def to_text(tokens: ArrayLike) -> str:
    """Audio tokens to `<audio_0><audio_1024>...`, without separators."""
    return "".join(f"<audio_{token}>" for token in _checked(tokens, AUDIO_TOKENS, "audio token").tolist())


def from_text(text: str) -> Codes:
    """The inverse of `to_text`. Raises InputError when anything but audio tokens stands in the text."""
    matches: Sequence[str] = _TOKEN.findall(text)
    rest = _TOKEN.sub("", text)
    if rest:
        raise InputError(f"not only audio tokens: found {rest[:40]!r}")
    return _checked([int(number) for number in matches], AUDIO_TOKENS, "audio token")


def _order(n_linguistic: int, n_semantic: int, ratio: tuple[int, int]) -> Codes:
    """Indices into L followed by S, in interleaved order: by group, linguistic first, then by time."""
    group = np.concatenate([np.arange(n_linguistic) // ratio[0], np.arange(n_semantic) // ratio[1]])
    # A stable sort keeps linguistic before semantic codes inside a group, and each stream in its own order.
    return np.argsort(group, kind="stable").astype(np.int64)


def _integers(values: ArrayLike, what: str) -> Codes:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{what}s must be a flat sequence of integers, not {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _checked(values: ArrayLike, size: int, what: str) -> Codes:
    codes = _integers(values, what)
    outside = (codes < 0) | (codes >= size)
    if outside.any():
        raise InputError(f"{what} {codes[outside][0]} is outside 0..{size - 1}")
    return codes


def _check_ratio(ratio: tuple[int, int]) -> None:
    if min(ratio) < 1:
        raise InputError(f"both parts of the ratio must be 1 or more, not {ratio[0]}:{ratio[1]}", param="ratio")
