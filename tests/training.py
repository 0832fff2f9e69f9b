"""What tests of training share: speech without sound, and a task small enough to be computed by hand, which the
two-process test runs."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stepaudio.data.manifest import Utterance
from stepaudio.lm.nano import NanoVocabulary, known_phonemes
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.documents import Document, NanoDocuments, SpeakingRate
from stepaudio.train.loop import Epochs, Loop, LoopConfig, Loss, Schedule, Task

TEXTS = ["ab ba", "ba ab", "cab", "ab cab", "a b c"]


def utterance(text, per_symbol=90):
    phonemes = f" {text} "
    ends = tuple(per_symbol * (place + 1) for place in range(len(phonemes)))
    return Utterance(Path("x"), text, ends[-1] / 1000, spoken=text, phonemes=phonemes, ends=ends)


def codes(seed, groups=6):
    rng = np.random.default_rng(seed)
    return DualCodes(rng.integers(0, 1024, 2 * groups + 1), rng.integers(0, 4096, 3 * groups + 2))


def document(tokens, kind="text"):
    return Document.of(kind, [([1], False), (tokens, True)])


def nano():
    said = [utterance(text) for text in TEXTS]
    vocabulary = NanoVocabulary(known_phonemes(u.phonemes for u in said))
    return NanoDocuments(vocabulary, SpeakingRate(said))


@dataclass
class Points:
    """Points of a line with noise, and how many of them count."""

    x_N1: Tensor
    y_N1: Tensor

    def to(self, device):
        return Points(self.x_N1.to(device), self.y_N1.to(device))


class Line(Task):
    """Fit y = 3 x - 1 by least squares; item k has k + 1 points. `steady` turns dropout off."""

    def __init__(self, *, items=5, steady=False, sgd=False):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.0 if steady else 0.2), nn.Linear(4, 1))
        self.cursor = Epochs(lambda epoch: [(epoch, k) for k in range(items)])
        self.identity = {"items": items}
        self.sgd = sgd
        self.loaded = []

    def optimizers(self):
        if self.sgd:
            return [torch.optim.SGD(self.model.parameters(), lr=0.1)]
        first, _, last = self.model
        groups = [{"params": first.parameters(), "lr": 0.05}, {"params": last.parameters(), "lr": 0.01}]
        return [torch.optim.AdamW(groups)]

    def load(self, item):
        self.loaded.append(item)
        epoch, k = item
        x = torch.linspace(-1, 1, k + 1)[:, None] + 0.01 * epoch
        return Points(x, 3 * x - 1)

    def loss(self, batch, turn):
        error = (self.model(batch.x_N1).float() - batch.y_N1).square()
        return Loss(error.sum(), len(error), {"largest": (error.max(), 1.0)})

    def shards(self):
        return [self.model[0], self.model[2], self.model]

    def evaluate(self):
        assert not self.model.training
        return {"held_out": float((self.model(torch.ones(1, 1)) - 2).square().detach())}


def config(out, **changes):
    defaults = {"steps": 12, "micro_batches": 2, "bf16": False, "log_every": 3, "save_every": 4, "ema": 0.9}
    return LoopConfig(Path(out), schedule=Schedule(2, 0.5), **(defaults | changes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, steps, *killed = sys.argv[1:]
    loop = Loop(Line(steady=True), config(out, steps=int(steps)))
    for line in loop.run():
        if killed and line["step"] >= int(killed[0]):
            os.kill(os.getpid(), signal.SIGKILL)
