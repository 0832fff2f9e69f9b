"""Which codebook does a language model hear with? The paper's ablation (arXiv 2502.11946 section 3.1), small.

One Step-1 language model is trained per arrangement of the same codes: both codebooks interleaved, semantic codes
alone, linguistic codes alone; the same sizes, sentences, updates and seed. It learns to continue the codes, and to
transcribe them in phonemes: after the codes of each 120 ms come places for the phonemes that have ended by then. So a
transcript runs along with the speech, and no alignment has to be discovered in the little time that there is.

Shapes: G groups of 120 ms, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stepaudio.data.manifest import Utterance
from stepaudio.lm.cache import Cache
from stepaudio.lm.runner import Span, make_runner
from stepaudio.lm.step1 import Config, Step1
from stepaudio.tokenizer.interleave import LINGUISTIC_CODES, RATIO, SEMANTIC_CODES
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.begin import fresh
from stepaudio.train.documents import GROUP_MS, Document, groups
from stepaudio.train.lm import LmTask, Rates, Step1Scorer
from stepaudio.train.recipes import NEAR

Streams = Literal["dual", "semantic", "linguistic"]
PLACES = 3
"""Places for phonemes in a group: 25 a second, twice as many as are spoken."""
AFTER = 3
"""Groups of silence behind the speech, in which the last phonemes are written."""
_BEGIN, _BLANK, _SPECIALS = 0, 1, 2
_GROUPS = 400
"""Groups in a micro-batch: 48 seconds, whatever the arrangement."""


@dataclass(frozen=True)
class Arrangement:
    """How codes and phonemes become tokens: the codes of a group, then its places. `phonemes` are one character
    each."""

    streams: Streams
    phonemes: str

    @property
    def linguistic(self) -> range:
        start = _SPECIALS + len(self.phonemes)
        return range(start, start + LINGUISTIC_CODES)

    @property
    def semantic(self) -> range:
        return range(self.linguistic.stop, self.linguistic.stop + SEMANTIC_CODES)

    @property
    def codes(self) -> int:
        """Codes in a group."""
        return sum(
            n for name, n in zip(("linguistic", "semantic"), RATIO, strict=True) if self.streams in ("dual", name)
        )

    def continuation(self, codes: DualCodes) -> Document:
        """The codes alone, all trained."""
        return Document.of("continuation", [([_BEGIN], False), (self._columns(codes).reshape(-1), True)])

    def asr(self, utterance: Utterance, codes: DualCodes) -> Document | None:
        """Codes and phonemes, of which the phonemes are trained; None when they are too many for their places."""
        columns = self._columns(codes)
        columns = np.concatenate([columns, np.repeat(columns[-1:], AFTER, axis=0)])
        places = np.full(len(columns) * PLACES, _BLANK)
        free = 0
        for symbol, end in zip(utterance.phonemes, utterance.ends, strict=True):
            if symbol in self.phonemes:
                # One group late: the codes of a group are not all of what is heard in it.
                free = max(free, -(-end // GROUP_MS) * PLACES)
                if free >= len(places):
                    return None
                places[free] = _SPECIALS + self.phonemes.index(symbol)
                free += 1
        tokens = np.concatenate([columns, places.reshape(-1, PLACES)], axis=1)
        trained = np.zeros(tokens.shape, dtype=bool)
        trained[:, self.codes :] = True
        return Document(
            "asr",
            np.concatenate([[_BEGIN], tokens.reshape(-1)]).astype(np.int32),
            np.concatenate([[False], trained.reshape(-1)]),
        )

    def phonemes_of(self, document: Document) -> list[str]:
        """What stands in the places of a transcribed document."""
        return self.decode(document.tokens[document.trained].tolist())

    def decode(self, tokens: Iterable[int]) -> list[str]:
        return [self.phonemes[token - _SPECIALS] for token in tokens if token >= _SPECIALS]

    def task(
        self,
        utterances: Sequence[tuple[Utterance, DualCodes]],
        *,
        tokenizer: str = "nano-tokenizer",
        width: int = 192,
        layers: int = 4,
        rate: float = 2e-3,
        seed: int = 0,
    ) -> LmTask:
        """A new language model and what it learns: as many groups of either kind. A code of `tokenizer` begins as
        its vector, heads look from near to far: without these, nothing is learned in the little time."""
        heard = (self.asr(utterance, codes) for utterance, codes in utterances)
        documents = {
            "asr": [one for one in heard if one is not None],
            "continuation": [self.continuation(own) for _, own in utterances],
        }
        config = Config(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=len(NEAR),
            num_attention_groups=len(NEAR),
            max_seq_len=4096,
            alibi_slopes=NEAR,
        )
        codes = {"linguistic": self.linguistic, "semantic": self.semantic}
        model = fresh(config, self.semantic.stop, codes, tokenizer, seed)
        shares = {"asr": PLACES, "continuation": self.codes}
        return LmTask(
            Step1Scorer(model),
            documents,
            shares,
            Rates(rate),
            tokens=_GROUPS * (2 * self.codes + PLACES) // 2,
            seed=seed,
            streams=codes,
        )

    def _columns(self, codes: DualCodes) -> NDArray[np.int64]:
        """The codes of each group as ids [G, codes]."""
        linguistic, semantic = groups(codes)
        columns = []
        if self.streams != "semantic":
            columns.append(linguistic + self.linguistic.start)
        if self.streams != "linguistic":
            columns.append(semantic + self.semantic.start)
        return np.concatenate(columns, axis=1)


def transcribe(model: Step1, arrangement: Arrangement, documents: Sequence[Document]) -> list[list[str]]:
    """Greedy transcripts, all documents side by side: their codes are given, only what the model wrote itself is in
    the places."""
    size = arrangement.codes + PLACES
    rows = [document.tokens[1:].reshape(-1, size)[:, : arrangement.codes].tolist() for document in documents]
    longest = max(map(len, rows))
    cache = Cache(model.config, slots=len(rows), tokens=1 + longest * size, dtype=model.lm_head.weight.dtype)
    runner = make_runner(model, cache)
    written: list[list[int]] = [[_BEGIN] for _ in rows]
    for group in range(longest):
        going = [index for index, row in enumerate(rows) if group < len(row)]
        given = {index: [written[index][-1], *rows[index][group]] for index in going}
        for _ in range(PLACES):
            scores_BV = runner.step([Span(index, given[index]) for index in going])
            chosen = scores_BV[:, _BLANK : arrangement.linguistic.start].argmax(dim=-1) + _BLANK
            for index, token in zip(going, chosen.tolist(), strict=True):
                written[index].append(token)
                given[index] = [token]
    return [arrangement.decode(tokens) for tokens in written]


@torch.no_grad()
def perplexities(task: LmTask, arrangement: Arrangement, held_out: Sequence[DualCodes]) -> dict[str, float]:
    """Perplexity per code of each stream and of all, where only codes are continued, and nats per second of speech."""
    task.held_out = [arrangement.continuation(codes) for codes in held_out]
    task.kinds = sorted({*task.kinds, "continuation"})
    figures = task.evaluate()
    known = {name.rpartition("/")[2]: nats for name, nats in figures.items()}
    total = known.pop("continuation")
    return {
        **{name: float(np.exp(nats)) for name, nats in known.items()},
        "all": float(np.exp(total)),
        "nats_per_second": total * arrangement.codes * 1000 / GROUP_MS,
    }
