"""The nano language model at work: words of phonemes to groups of codes, and groups of codes to words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from threading import Event

import numpy as np

from stepaudio.lm import checkpoint
from stepaudio.lm.engine import Engine
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.nano import ASR, NEXT, NanoVocabulary, WordGrammar, load_vocabulary, opening
from stepaudio.lm.step1 import Step1
from stepaudio.tokenizer.interleave import RATIO
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.documents import AFTER, groups
from stepaudio.train.pieces import BLANK, join

SPEAK = SamplingParams(temperature=0.6, top_k=20, top_p=0.9, guard_repetition=False, stop=(NEXT,))
"""How codes are drawn unless the caller says otherwise."""
_GROUPS = (5, 3)
"""A word has at most this many groups, and this many for each of its phonemes: 0.6 and 0.36 s."""
_GROUP = sum(RATIO)


@dataclass
class NanoLm:
    """A nano language model and its engine; safe to use from several threads. Close it when done."""

    vocabulary: NanoVocabulary
    engine: Engine

    @classmethod
    def load(cls, folder: Path, *, slots: int = 4) -> NanoLm:
        """Read `config.json`, `model.safetensors` and `nano.json`; `slots` utterances are spoken at a time.

        Raises MissingError and InputError.
        """
        import torch

        return cls.of(load_vocabulary(folder), checkpoint.load(folder, dtype=torch.bfloat16), slots=slots)

    @classmethod
    def of(cls, vocabulary: NanoVocabulary, model: Step1, *, slots: int = 4) -> NanoLm:
        return cls(vocabulary, Engine(model, slots=slots))

    def speak(
        self,
        words: Iterable[str],
        *,
        speed: int = 2,
        params: SamplingParams = SPEAK,
        cancel: Event | None = None,
    ) -> Iterator[DualCodes]:
        """The codes of words, one group of 120 ms (2 linguistic, 3 semantic codes) at a time, as they are drawn.

        A word is its phonemes in misaki's alphabet without stress marks or punctuation. Words may come as late as they
        like: a word is spoken once the one behind it is known, or that there is none. `speed` is 0 (slowest) to 4;
        `params` temperature, top-k, top-p and seed. Raises InputError for an unknown speed or a text that does not fit
        (about half a minute), Cancelled soon after `cancel`.
        """
        v = self.vocabulary
        spoken = opening(speed)
        known = (ids for word in words if (ids := v.word(word)))
        params = replace(params, stop=(NEXT,), guard_repetition=False)
        for index, (word, following) in enumerate(pairwise(chain(known, [None]))):
            assert word is not None
            spoken += v.before(word, following)
            seed = None if params.seed is None else params.seed + index
            grammar = WordGrammar(v, _GROUPS[0] + _GROUPS[1] * len(word))
            generation = self.engine.submit(spoken, replace(params, seed=seed), grammar=grammar, cancel=cancel)
            said: list[int] = []
            for token in generation:
                said.append(token)
                if len(said) % _GROUP == 0:
                    yield self._codes(said[-_GROUP:])
            spoken += [*said, NEXT]

    def transcribe(self, codes: DualCodes, *, cancel: Event | None = None) -> str:
        """The words that codes say, in lower case without punctuation. Raises InputError for more codes than fit."""
        v = self.vocabulary
        linguistic, semantic = groups(codes)
        ids = np.concatenate([linguistic + v.linguistic.start, semantic + v.semantic.start], axis=1)
        heard, written = [ASR], []
        for group in chain(ids, np.repeat(ids[-1:], AFTER, axis=0)):
            heard += group.tolist()
            place = self.engine.generate(heard, _READ, grammar=_Piece(v), cancel=cancel)
            heard += place.tokens
            written.append(place.tokens[0] - v.text.start)
        return join(v.pieces, (piece for piece in written if piece != BLANK))

    def close(self) -> None:
        self.engine.close()

    def _codes(self, group: list[int]) -> DualCodes:
        ids = np.array(group)
        v = self.vocabulary
        return DualCodes(ids[: RATIO[0]] - v.linguistic.start, ids[RATIO[0] :] - v.semantic.start)


_READ = SamplingParams(max_tokens=1, temperature=0, guard_repetition=False, stop=())


@dataclass(frozen=True, slots=True)
class _Piece:
    """A place for text."""

    vocabulary: NanoVocabulary

    def allowed(self) -> tuple[range, ...]:
        return (self.vocabulary.text,)

    def advance(self, token: int) -> _Piece:
        return self
