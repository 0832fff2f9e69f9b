"""From logits to the next token: temperature, top-k, top-p, the repetition guard, grammar and seed.

Each sequence draws from its own random numbers, so a seed gives the same reply whatever else the engine is
doing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from stepaudio.errors import BackendError, InputError
from stepaudio.lm.grammar import Grammar

REPETITION_WINDOW = 10
REPETITION_RATIO = 0.1

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. The defaults are those of the released speech models; `CHAT` those of the chat
    model.

    `temperature=0` takes the likeliest token. `top_k=0` and `top_p=1` keep everything. `stop` ids end the
    reply and are not part of it. `guard_repetition`: a token that came more than once in the last ten is not
    drawn again.
    """

    max_tokens: int = 8192
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 1.0
    guard_repetition: bool = True
    seed: int | None = None
    stop: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        for name, ok, rule in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < np.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not ok:
                raise InputError(f"{name} must be {rule}, not {getattr(self, name)}", param=name)


CHAT = SamplingParams(max_tokens=2048, top_p=0.9, guard_repetition=False)


def repeated(ids: Sequence[int]) -> int | None:
    """The id that the repetition guard bans next: the last one, if it is more than a tenth of the last
    ten."""
    window = ids[-REPETITION_WINDOW:]
    if window and window.count(window[-1]) > REPETITION_RATIO * REPETITION_WINDOW:
        return window[-1]
    return None


@dataclass(slots=True)
class Sampler:
    """Draws the tokens of one sequence."""

    params: SamplingParams
    grammar: Grammar | None = None
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.params.seed)

    def draw(self, logits_V: Logits, ids: Sequence[int]) -> int:
        """The next token after `ids` (prompt and reply so far). Moves the grammar on."""
        spans = (range(len(logits_V)),) if self.grammar is None else self.grammar.allowed()
        scores = [logits_V[span.start : span.stop] for span in spans]
        self._ban_repeated(spans, scores, ids)
        place = self._choose(scores[0] if len(scores) == 1 else np.concatenate(scores))
        token = next(span[place - skipped] for span, skipped in _offsets(spans) if place < skipped + len(span))
        if self.grammar is not None and token not in self.params.stop:
            self.grammar = self.grammar.advance(token)
        return token

    def _ban_repeated(self, spans: Sequence[range], scores: list[Logits], ids: Sequence[int]) -> None:
        banned = repeated(ids) if self.params.guard_repetition else None
        # A ban never leaves nothing: where a grammar allows one token only, that token is the answer.
        if banned is None or sum(map(len, spans)) == 1:
            return
        for i, span in enumerate(spans):
            if banned in span:
                scores[i] = scores[i].copy()
                scores[i][banned - span.start] = -np.inf

    def _choose(self, scores: Logits) -> int:
        params = self.params
        if np.isnan(scores).any():
            raise BackendError("the model computed NaN; are its weights whole and its dtype right?")
        if params.temperature == 0 or len(scores) == 1:
            return int(scores.argmax())
        kept = min(params.top_k or len(scores), len(scores))
        top, order = torch.from_numpy(scores).topk(kept)  # four times as fast as numpy's partition
        weights = np.exp((top - top[0]).double().numpy() / params.temperature)
        cumulative = weights.cumsum()
        if params.top_p < 1:  # the smallest set of likeliest tokens whose probability reaches top_p
            kept = int(np.searchsorted(cumulative, params.top_p * cumulative[-1])) + 1
            cumulative = cumulative[:kept]
        drawn = np.searchsorted(cumulative, self.random.random() * cumulative[-1], side="right")
        return int(order[min(int(drawn), len(cumulative) - 1)])


def _offsets(spans: Sequence[range]) -> Iterator[tuple[range, int]]:
    """Each span and how many ids lie in those before it."""
    skipped = 0
    for span in spans:
        yield span, skipped
        skipped += len(span)
