"""Which documents make up a micro-batch: kinds in their shares of trained tokens, packed into rows.

`Mixture` is the cursor of a language model's training. It always draws from the kind that is furthest behind its share,
so that after any number of documents no kind is off by more than a document or two. `pack` lays documents one after
the other in one row; `stepaudio.lm.attention.attend_packed` keeps them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepaudio.errors import InputError
from stepaudio.train.documents import Document

Reference = tuple[str, int]
"""A document: its kind and its place among those of its kind."""


class Mixture:
    """A cursor of references to documents, at most `tokens` long together but always at least one.

    Each kind's documents come in a new order every epoch of that kind. Raises InputError for a share without documents.
    """

    def __init__(
        self, documents: Mapping[str, Sequence[Document]], shares: Mapping[str, float], *, tokens: int, seed: int = 0
    ) -> None:
        self.shares = {kind: share / sum(shares.values()) for kind, share in shares.items() if share > 0}
        if empty := [kind for kind in self.shares if not documents.get(kind)]:
            raise InputError(f"there are no documents of the kind {empty[0]!r} to train on")
        self._documents, self._tokens, self._seed = documents, tokens, seed
        self.drawn = dict.fromkeys(self.shares, 0)
        """Documents of each kind so far."""
        self.trained = dict.fromkeys(self.shares, 0)
        """Trained tokens of each kind so far."""
        self._order = lru_cache(maxsize=2 * len(self.shares))(self._shuffled)

    def __next__(self) -> list[Reference]:
        row: list[Reference] = []
        room = self._tokens
        while True:
            kind = min(self.shares, key=lambda kind: self.trained[kind] / self.shares[kind])
            epoch, position = divmod(self.drawn[kind], len(self._documents[kind]))
            index = int(self._order(kind, epoch)[position])
            document = self._documents[kind][index]
            room -= len(document.tokens)
            if row and room < 0:
                return row
            row.append((kind, index))
            self.drawn[kind] += 1
            self.trained[kind] += document.count

    def state(self) -> dict[str, Any]:
        return {"drawn": dict(self.drawn), "trained": dict(self.trained)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.drawn, self.trained = dict(state["drawn"]), dict(state["trained"])

    def check(self) -> None:
        """Raises RuntimeError when a kind is further from its share of the trained tokens than whole documents
        explain."""
        total = sum(self.trained.values())
        longest = max(document.count for kind in self.shares for document in self._documents[kind])
        for kind, share in self.shares.items():
            off = abs(self.trained[kind] - share * total)
            if off > longest * len(self.shares):
                raise RuntimeError(f"{kind} has {self.trained[kind]} of {total} trained tokens instead of {share:.1%}")

    def _shuffled(self, kind: str, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, epoch, *kind.encode()))
        return rng.permutation(len(self._documents[kind]))


@dataclass(frozen=True)
class Row:
    """Documents in one row: tokens [1, T], their `lengths`, and what is trained: from the hidden state at `places` [N]
    the token `targets` [N], which belongs to a document of the kind number `kinds` [N]."""

    tokens_1T: Tensor
    lengths: tuple[int, ...]
    places_N: Tensor
    targets_N: Tensor
    kinds_N: Tensor

    def to(self, device: torch.device) -> Self:
        moved = (t.to(device) for t in (self.places_N, self.targets_N, self.kinds_N))
        return type(self)(self.tokens_1T.to(device), self.lengths, *moved)


def pack(documents: Sequence[Document], kinds: Sequence[str]) -> Row:
    """Documents one after the other; `kinds` are the names that their numbers stand for."""
    tokens = np.concatenate([document.tokens for document in documents]).astype(np.int64)
    targets = np.concatenate([d.tokens if d.targets is None else d.targets for d in documents]).astype(np.int64)
    trained = np.flatnonzero(np.concatenate([document.trained for document in documents]))
    numbers = [np.full(document.count, kinds.index(document.kind)) for document in documents]
    return Row(
        torch.from_numpy(tokens)[None],
        tuple(len(document.tokens) for document in documents),
        # A document's first token is never trained, so the place before is in the same document.
        torch.from_numpy(trained - 1),
        torch.from_numpy(targets[trained]),
        torch.from_numpy(np.concatenate(numbers)),
    )
