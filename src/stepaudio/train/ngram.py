"""An n-gram model of documents: what a language model has to beat.

Interpolated Witten-Bell (Chen and Goodman 1998): the estimate of an order is mixed with that of the order below by how
many different tokens its context was followed by, down to the uniform distribution. It is counted and judged on trained
tokens alone, as a neural model is, and sees what lies before them in the same document.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from stepaudio.train.documents import Document

Context = tuple[int, ...]


class Ngram:
    """Counts of up to `order` tokens over a vocabulary of `size` ids."""

    def __init__(self, documents: Iterable[Document], size: int, *, order: int = 3) -> None:
        self._size, self._order = size, order
        self._counts: dict[Context, Counter[int]] = defaultdict(Counter)
        for document in documents:
            for history, token in _trained(document, order - 1):
                for length in range(len(history) + 1):
                    self._counts[history[len(history) - length :]][token] += 1

    def probability(self, history: Context, token: int) -> float:
        """Of `token` after `history`, of which the last `order` - 1 tokens are looked at."""
        estimate = 1 / self._size
        for length in range(min(self._order, len(history) + 1)):
            following = self._counts.get(history[len(history) - length :])
            if following is None:  # then no longer history was seen either
                break
            total, kinds = following.total(), len(following)
            estimate = (following[token] + kinds * estimate) / (total + kinds)
        return estimate

    def nats(self, documents: Iterable[Document]) -> float:
        """Mean loss of a trained token."""
        losses = [-np.log(self.probability(h, t)) for d in documents for h, t in _trained(d, self._order - 1)]
        return float(np.mean(losses))


def _trained(document: Document, context: int) -> Iterator[tuple[Context, int]]:
    """Each trained token behind the tokens before it."""
    tokens = document.tokens.tolist()
    for place in np.flatnonzero(document.trained):
        yield tuple(tokens[max(0, place - context) : place]), tokens[place]
