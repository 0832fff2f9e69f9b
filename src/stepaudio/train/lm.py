"""Training of language models: next-token prediction on packed documents of several kinds.

    task = LmTask(step1(preset("nano", vocab_size=...)), {"tts": documents, "asr": others}, {"tts": 3, "asr": 1})
    for line in Loop(task, LoopConfig(out, steps=4000)).run(): ...

A stage is a run: the next one begins with the model that it left, its own shares and rates (`stepaudio.train.recipes`
has the paper's). The embedding and the head may learn faster than the rest, as the paper lets them while the audio
vocabulary is new.

Shapes: T tokens of a packed row, N of them trained, C width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.checkpoint import checkpoint as recomputed

from stepaudio.lm import checkpoint
from stepaudio.lm.attention import attend_packed
from stepaudio.lm.step1 import Step1
from stepaudio.train.documents import Document
from stepaudio.train.loop import Loss, Task
from stepaudio.train.packing import Mixture, Reference, Row, pack
from stepaudio.train.world import World


class Scorer(nn.Module, ABC):
    """A language model as training sees it."""

    @abstractmethod
    def forward(self, tokens_1T: Tensor, lengths: Sequence[int], places_N: Tensor) -> Tensor:
        """Logits [N, V] at some places of a packed row, whose documents do not see each other."""

    @abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """The layers that FSDP2 gathers one at a time."""

    @abstractmethod
    def vocabulary_weights(self) -> Sequence[Tensor]:
        """Embedding and head."""

    @abstractmethod
    def flops(self, lengths: Sequence[int], trained: int) -> float:
        """Arithmetic of a forward and backward pass: three times two operations per weight and token, and those of
        causal attention."""

    @abstractmethod
    def save(self, folder: Path, world: World) -> None:
        """Write a checkpoint that can be begun with; every rank calls it, one writes."""


class Step1Scorer(Scorer):
    """Our own model. With `recompute` a layer's insides are computed again for the backward pass instead of kept."""

    def __init__(self, model: Step1, *, recompute: bool = False) -> None:
        super().__init__()
        self.lm = model
        self._recompute = recompute

    def forward(self, tokens_1T: Tensor, lengths: Sequence[int], places_N: Tensor) -> Tensor:
        def attention(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
            return attend_packed(q_BTHD, k_BTGD, v_BTGD, self.lm.slopes, lengths)

        decoder = self.lm.model
        x_1TC = decoder.embed_tokens(tokens_1T)
        for block in decoder.layers:
            x_1TC = (
                recomputed(block, x_1TC, attention, use_reentrant=False) if self._recompute else block(x_1TC, attention)
            )
        logits_NV: Tensor = self.lm.lm_head(decoder.norm(x_1TC[0, places_N]))
        return logits_NV

    def blocks(self) -> Iterable[nn.Module]:
        return self.lm.model.layers

    def vocabulary_weights(self) -> Sequence[Tensor]:
        return self.lm.model.embed_tokens.weight, self.lm.lm_head.weight

    def flops(self, lengths: Sequence[int], trained: int) -> float:
        body = sum(parameter.numel() for parameter in self.lm.model.layers.parameters())
        c = self.lm.config
        attention = 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * sum(n * n for n in lengths)
        return 3.0 * (2 * body * sum(lengths) + attention + 2 * self.lm.lm_head.weight.numel() * trained)

    def save(self, folder: Path, world: World) -> None:
        tensors = {name: world.whole(tensor) for name, tensor in self.lm.state_dict().items()}
        if world.first:
            with torch.device("meta"):
                model = Step1(self.lm.config)
            model.load_state_dict(tensors, assign=True)
            checkpoint.save(model, folder)


@dataclass(frozen=True)
class Rates:
    """Learning rate of the backbone, how many times as fast embedding and head learn, and AdamW's other figures."""

    backbone: float = 2e-3
    vocabulary: float = 1.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)


@dataclass
class LmTask(Task[list[Reference], Row]):
    """Documents of several kinds, in shares of the trained tokens.

    `streams` names ranges of ids whose loss is logged on its own; `held_out` documents are judged by `evaluate`.
    """

    model: Scorer
    documents: Mapping[str, Sequence[Document]]
    shares: Mapping[str, float]
    rates: Rates = field(default_factory=Rates)
    tokens: int = 4096
    """Of a micro-batch, at most."""
    seed: int = 0
    streams: Mapping[str, range] = field(default_factory=dict)
    held_out: Sequence[Document] = ()

    def __post_init__(self) -> None:
        self.cursor: Mixture = Mixture(self.documents, self.shares, tokens=self.tokens, seed=self.seed)
        self.kinds = sorted({*self.shares, *(document.kind for document in self.held_out)})
        counts = {kind: [len(own), sum(document.count for document in own)] for kind, own in self.documents.items()}
        sizes = [list(parameter.shape) for parameter in self.model.parameters()]
        self.identity: dict[str, Any] = {
            "sizes": sizes,
            "documents": counts,
            "shares": dict(self.shares),
            "rates": vars(self.rates),
            "tokens": self.tokens,
        }

    def optimizers(self) -> list[Optimizer]:
        """AdamW; norms do not decay, and neither does what is looked up."""
        fast = {id(weight) for weight in self.model.vocabulary_weights()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in self.model.parameters():
            vocabulary = id(parameter) in fast
            rate = self.rates.backbone * (self.rates.vocabulary if vocabulary else 1.0)
            decay = 0.0 if vocabulary or parameter.ndim < 2 else self.rates.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
        named = [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()]
        return [AdamW(named, betas=self.rates.betas)]

    def load(self, item: list[Reference]) -> Row:
        return pack([self.documents[kind][index] for kind, index in item], self.kinds)

    def loss(self, batch: Row, turn: int) -> Loss:
        nats_N = self.nats(batch)
        flops = self.model.flops(batch.lengths, len(nats_N))
        return Loss(nats_N.sum(), len(nats_N), self._figures(batch, nats_N.detach()), flops)

    def nats(self, batch: Row) -> Tensor:
        """The loss of each trained token [N]."""
        logits_NV = self.model(batch.tokens_1T, batch.lengths, batch.places_N)
        return F.cross_entropy(logits_NV.float(), batch.targets_N, reduction="none")

    def _figures(self, batch: Row, nats_N: Tensor) -> dict[str, tuple[Tensor | float, float]]:
        """The loss of each stream and kind, and the share of each kind in the trained tokens."""
        figures: dict[str, tuple[Tensor | float, float]] = {}
        for name, ids in self.streams.items():
            own_N = (batch.targets_N >= ids.start) & (batch.targets_N < ids.stop)
            figures[f"loss/{name}"] = (nats_N[own_N].sum(), float(own_N.sum()))
        for number, kind in enumerate(self.kinds):
            own_N = batch.kinds_N == number
            count = float(own_N.sum())
            figures[f"loss/{kind}"] = (nats_N[own_N].sum(), count)
            figures[f"share/{kind}"] = (count, float(len(nats_N)))
        return figures

    def shards(self) -> Iterable[nn.Module]:
        return [*self.model.blocks(), self.model]

    def evaluate(self) -> dict[str, float]:
        """The loss of each stream and kind on the held-out documents; and asserts the shares of what was drawn."""
        self.cursor.check()
        sums: dict[str, list[float]] = {}
        device = next(self.model.parameters()).device
        for start in range(0, len(self.held_out), 8):
            batch = pack(self.held_out[start : start + 8], self.kinds).to(device)
            for name, (value, weight) in self._figures(batch, self.nats(batch)).items():
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += float(value)
                total[1] += weight
        return {f"held_out/{name}": total / count for name, (total, count) in sums.items() if count and "loss" in name}
