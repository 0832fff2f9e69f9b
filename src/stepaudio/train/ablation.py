"""Which codebook does a language model hear with? The paper's ablation (arXiv 2502.11946 section 3.1), small.

One Step-1 language model is trained per arrangement of the same codes: both codebooks interleaved, semantic codes
alone, linguistic codes alone; the same sizes, sentences, updates and seed. It learns to continue the codes and to
transcribe them: after the codes of each 120 ms comes one place for text, which holds the next piece of a word that has
ended, or nothing. So a transcript runs along with the speech, and no alignment has to be discovered in the little time
that there is.

Shapes: B utterances, T tokens, G groups of 120 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW, Optimizer

from stepaudio.data.manifest import Utterance
from stepaudio.lm.step1 import Config, Step1
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.asr import IGNORE
from stepaudio.train.log import Line
from stepaudio.train.loop import Epochs, Loop, LoopConfig, Loss, Schedule, Task
from stepaudio.train.pieces import BLANK, Pieces
from stepaudio.train.speech import batches

Streams = Literal["dual", "semantic", "linguistic"]
_LINGUISTIC, _SEMANTIC = 1024, 4096
_PER_GROUP = {"linguistic": 2, "semantic": 3}
_AFTER = 8
"""Groups of silence after the speech, in which the last words are written."""
_GROUP_MS = 120


@dataclass(frozen=True)
class Example:
    """Codes by stream, [G, 2] and [G, 3], and the piece to write after each group [G]; what was said."""

    linguistic: NDArray[np.int64]
    semantic: NDArray[np.int64]
    pieces: NDArray[np.int64]
    spoken: str


def example(utterance: Utterance, codes: DualCodes, pieces: Pieces) -> Example | None:
    """An example of an utterance, or None when its words cannot be told apart in its phonemes."""
    ends = _word_ends(utterance)
    if ends is None:
        return None
    groups = min(len(codes.linguistic) // 2, len(codes.semantic) // 3)
    places = np.full(groups + _AFTER, BLANK)
    free = 0
    for word, end in zip(utterance.spoken.split(), ends, strict=True):
        for piece in pieces.encode(word):
            free = max(free, -(-end // _GROUP_MS))
            if free >= len(places):
                return None
            places[free] = piece
            free += 1
    padded = [
        np.concatenate([stream[: n * groups].reshape(groups, n), np.full((_AFTER, n), stream[n * groups - 1])])
        for stream, n in ((codes.linguistic, 2), (codes.semantic, 3))
    ]
    return Example(padded[0], padded[1], places, utterance.spoken)


def _word_ends(utterance: Utterance) -> list[int] | None:
    """When each spoken word ends in milliseconds, if phonemes and words tell the same number of words."""
    ends: list[int] = []
    begun = False
    for symbol, end in zip(utterance.phonemes, utterance.ends, strict=True):
        if symbol != " ":
            ends = [*ends[:-1], end] if begun else [*ends, end]
        begun = symbol != " "
    return ends if len(ends) == len(utterance.spoken.split()) else None


@dataclass(frozen=True)
class Layout:
    """How examples become tokens: the codes of a group, then its place for text. Ids: pieces, linguistic, semantic."""

    streams: Streams
    pieces: int

    @property
    def group(self) -> int:
        return 1 + sum(n for name, n in _PER_GROUP.items() if self.streams in ("dual", name))

    @property
    def vocabulary(self) -> int:
        return self.pieces + _LINGUISTIC + _SEMANTIC

    def tokens(self, one: Example) -> Tensor:
        """The example as tokens [G * group]."""
        columns = []
        if self.streams != "semantic":
            columns.append(one.linguistic + self.pieces)
        if self.streams != "linguistic":
            columns.append(one.semantic + self.pieces + _LINGUISTIC)
        return torch.from_numpy(np.concatenate([*columns, one.pieces[:, None]], axis=1).reshape(-1))


@dataclass(frozen=True)
class AblationConfig:
    """One training; the same for every arrangement."""

    steps: int = 1000
    batch_seconds: float = 60.0
    width: int = 192
    layers: int = 4
    learning_rate: float = 2e-3
    warmup: int = 100
    text_weight: float = 3.0
    """Places for text count more than codes, of which there are many more."""
    seed: int = 0
    bf16: bool = True


@dataclass(frozen=True)
class Rows:
    """Examples as tokens [B, T], -1 behind their ends."""

    tokens_BT: Tensor

    def to(self, device: torch.device) -> Rows:
        return Rows(self.tokens_BT.to(device))


class AblationTask(Task[list[int], Rows]):
    """Learning the examples in one arrangement."""

    def __init__(self, layout: Layout, examples: Sequence[Example], config: AblationConfig) -> None:
        self._layout, self._examples, self._config = layout, examples, config
        heads = max(1, config.width // 48)
        self.model: Step1 = Step1(
            Config(layout.vocabulary, config.width, 4 * config.width, config.layers, heads, heads, max_seq_len=4096)
        ).initialise(config.seed)
        durations = [len(one.pieces) * _GROUP_MS / 1000 for one in examples]
        self.cursor = Epochs(
            lambda epoch: batches(durations, seconds=config.batch_seconds, seed=config.seed, epoch=epoch)
        )
        self.identity = {"layout": asdict(layout), "config": asdict(config), "examples": len(examples)}

    def optimizers(self) -> list[Optimizer]:
        return [AdamW(self.model.parameters(), self._config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)]

    def load(self, item: list[int]) -> Rows:
        rows = [self._layout.tokens(self._examples[i]) for i in item]
        return Rows(pad_sequence(rows, batch_first=True, padding_value=-1))

    def loss(self, batch: Rows, turn: int) -> Loss:
        nats_BT = _surprise(self.model, batch.tokens_BT)
        text_BT = _is_text(self._layout, batch.tokens_BT)
        weights_BT = (batch.tokens_BT >= 0) * torch.where(text_BT, self._config.text_weight, 1.0)
        return Loss((nats_BT * weights_BT).sum(), float(weights_BT.sum()))


def train(
    layout: Layout,
    examples: Sequence[Example],
    config: AblationConfig,
    out: Path,
    log: Callable[[Line], None] = lambda line: None,
) -> Step1:
    """A language model of one arrangement; the run is kept in `out` and goes on from there."""
    task = AblationTask(layout, examples, config)
    schedule = Schedule(config.warmup, 0.5)
    run = LoopConfig(out, config.steps, schedule=schedule, bf16=config.bf16, seed=config.seed, log_every=50)
    for line in Loop(task, run).run():
        log(line)
    return task.model.eval()


def _surprise(model: Step1, tokens_BT: Tensor) -> Tensor:
    """Nats of each token given those before it [B, T]; the first is given the blank."""
    before_BT = F.pad(tokens_BT.clamp(min=0), (1, 0), value=BLANK)[:, :-1]
    scores_BTV = model(before_BT).float()
    wanted = tokens_BT.masked_fill(tokens_BT < 0, IGNORE)
    return F.cross_entropy(scores_BTV.flatten(0, 1), wanted.flatten(), ignore_index=IGNORE, reduction="none").view_as(
        tokens_BT
    )


def _is_text(layout: Layout, tokens_BT: Tensor) -> Tensor:
    return (torch.arange(tokens_BT.shape[1]) % layout.group == layout.group - 1).expand_as(tokens_BT)


@torch.inference_mode()
def perplexities(model: Step1, layout: Layout, examples: Sequence[Example]) -> dict[str, float]:
    """Perplexity per token of each stream in its arrangement, and nats of code per second of speech."""
    nats: dict[str, list[float]] = {"linguistic": [], "semantic": []}
    for one in examples:
        speech = layout.tokens(one)[: (len(one.pieces) - _AFTER) * layout.group][None]
        surprise = _surprise(model, speech)[0]
        for name, first in (("linguistic", layout.pieces), ("semantic", layout.pieces + _LINGUISTIC)):
            size = _LINGUISTIC if name == "linguistic" else _SEMANTIC
            nats[name] += surprise[(speech[0] >= first) & (speech[0] < first + size)].tolist()
    seconds = sum(len(one.pieces) - _AFTER for one in examples) * _GROUP_MS / 1000
    known = {name: values for name, values in nats.items() if values}
    everything = [value for values in known.values() for value in values]
    return {
        **{name: float(np.exp(np.mean(values))) for name, values in known.items()},
        "all": float(np.exp(np.mean(everything))),
        "nats_per_second": float(np.sum(everything)) / seconds,
    }


@torch.inference_mode()
def transcribe(model: Step1, layout: Layout, examples: Sequence[Example], pieces: Pieces) -> list[str]:
    """Greedy transcripts, all examples side by side: codes are given, only what the model wrote itself is text."""
    rows = [layout.tokens(one) for one in examples]
    tokens_BT = pad_sequence(rows, batch_first=True, padding_value=BLANK)
    places = range(layout.group - 1, tokens_BT.shape[1], layout.group)
    tokens_BT[:, places] = BLANK
    for place in places:
        before_BT = F.pad(tokens_BT[:, :place], (1, 0), value=BLANK)
        tokens_BT[:, place] = model(before_BT)[:, -1, : layout.pieces].argmax(dim=-1)
    texts = []
    for row, one in zip(tokens_BT, rows, strict=True):
        texts.append(pieces.decode(row[layout.group - 1 : len(one) : layout.group].tolist()))
    return texts
