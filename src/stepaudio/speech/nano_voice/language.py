"""The nano language model at work: words of phonemes to groups of codes, and groups of codes to words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import Cancelled, InputError
from stepaudio.lm import checkpoint
from stepaudio.lm.cache import Cache
from stepaudio.lm.engine import Engine
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.nano import ASR, COUNTS, PAUSE, PLACES, GroupGrammar, NanoVocabulary, load_vocabulary, opening
from stepaudio.lm.runner import Span, make_runner
from stepaudio.lm.step1 import Step1
from stepaudio.tokenizer.dual import find
from stepaudio.tokenizer.interleave import RATIO
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.documents import groups
from stepaudio.train.lexicon import Lexicon
from stepaudio.train.reader import FILE, load_reader

SPEAK = SamplingParams(temperature=0.6, top_k=20, top_p=0.9, guard_repetition=False, stop=())
"""How codes are drawn unless the caller says otherwise."""
_GROUP = sum(RATIO)
_LONGEST = 6
"""Groups that a phoneme lasts at most: 0.7 s."""
_TOKENIZER = "nano-tokenizer"
"""Beside it lies the lexicon that hearing uses."""


@dataclass(frozen=True)
class Said(DualCodes):
    """A group of 120 ms (2 linguistic and 3 semantic codes), and the number of the word that sounds as it begins."""

    word: int


@dataclass
class NanoLm:
    """A nano language model and its engine; safe to use from several threads. Close it when done."""

    vocabulary: NanoVocabulary
    model: Step1
    lexicon: Lexicon
    slots: int = 4

    def __post_init__(self) -> None:
        self.engine = Engine(self.model, slots=self.slots)
        self._cache = Cache(
            self.model.config, slots=1, tokens=self.engine.cache.tokens, dtype=self.engine.cache.keys.dtype
        )
        self._runner = make_runner(self.model, self._cache)
        self._hearing = Lock()

    @classmethod
    def load(cls, folder: Path, *, slots: int = 4) -> NanoLm:
        """Read `config.json`, `model.safetensors` and `nano.json`; `slots` utterances are spoken at a time.

        Raises MissingError and InputError.
        """
        import torch

        lexicon = load_reader(find(_TOKENIZER) / FILE).lexicon
        return cls(load_vocabulary(folder), checkpoint.load(folder, dtype=torch.bfloat16), lexicon, slots)

    def speak(
        self,
        words: Iterable[str],
        *,
        speed: int = 2,
        params: SamplingParams = SPEAK,
        cancel: Event | None = None,
    ) -> Iterator[Said]:
        """The codes of words, one group of 120 ms at a time, as they are drawn.

        A word is its phonemes in misaki's alphabet without stress marks or punctuation. Words may come as late as they
        like: a group is drawn once the four phonemes from its beginning on are known, or that there are no more.
        `speed` is 0 (slowest) to 4; `params` give temperature, top-k, top-p and seed. Raises InputError for an unknown
        speed or a text that does not fit (about 20 s), Cancelled soon after `cancel`.
        """
        v = self.vocabulary
        spoken = opening(speed)
        text = _Text(words, v)
        lasted, ended = 0, False
        for number in range(self.engine.cache.tokens):
            window = text.window()
            if not window or (window == PAUSE and (number == 0 or ended)):
                return
            ended = window == PAUSE  # one group of pause is the end
            spoken += v.write(window)
            grammar = GroupGrammar(v, most=len(window), least=int(lasted >= _LONGEST))
            seed = None if params.seed is None else params.seed + number
            drawn = replace(params, max_tokens=1 + _GROUP, stop=(), guard_repetition=False, seed=seed)
            said = self.engine.generate(spoken, drawn, grammar=grammar, cancel=cancel).tokens
            if len(said) <= _GROUP:
                raise InputError("the text is too long to be said in one go: cut it into sentences")
            yield self._said(said[1:], text.word)
            spoken += said
            count = said[0] - COUNTS.start
            lasted = 0 if count else lasted + 1
            text.move(count)

    def transcribe(self, codes: DualCodes, *, cancel: Event | None = None) -> str:
        """The words that codes say, in lower case without punctuation: the best path through the lexicon of the
        tokenizer's reader. Raises InputError for more codes than fit (about 25 s), Cancelled soon after `cancel`."""
        evidence_TP = self._hear(codes, cancel)
        return self.lexicon.decode(evidence_TP, self.vocabulary.phonemes)

    def _hear(self, codes: DualCodes, cancel: Event | None) -> NDArray[np.float32]:
        """Log-probabilities of the phonemes at the moments of the codes, four of them to a group [T, P]."""
        v = self.vocabulary
        linguistic, semantic = groups(codes)
        ids = np.concatenate([linguistic + v.linguistic.start, semantic + v.semantic.start], axis=1)
        evidence: list[NDArray[np.float32]] = []
        before, written = [ASR], v.write("")
        with self._hearing:
            slot = self._cache.allocate()
            try:
                for number, group in enumerate([*ids, *ids[-1:]]):
                    if cancel is not None and cancel.is_set():
                        raise Cancelled("transcription was cancelled")
                    before += group.tolist()
                    if number == 0:
                        before += written
                        continue
                    for place in range(PLACES):
                        logits = self._runner.step([Span(slot, before)])[0].numpy()
                        own = logits[v.place(place).start + 1 : v.place(place).stop]
                        evidence.append(own - np.logaddexp.reduce(own))
                        before = [v.place(place).start + 1 + int(own.argmax())]
            finally:
                self._cache.release(slot)
        return np.array(evidence, dtype=np.float32).reshape(-1, len(v.phonemes))

    def close(self) -> None:
        self.engine.close()

    def _said(self, group: list[int], word: int) -> Said:
        ids = np.array(group)
        v = self.vocabulary
        return Said(ids[: RATIO[0]] - v.linguistic.start, ids[RATIO[0] :] - v.semantic.start, word)


class _Text:
    """Words as one line of phonemes that is read through a window."""

    def __init__(self, words: Iterable[str], vocabulary: NanoVocabulary) -> None:
        self._words = (known for word in words if (known := vocabulary.known(word.replace(PAUSE, ""))))
        self._line = PAUSE
        self._pauses = 0  # that were passed, the one that every line begins with among them

    @property
    def word(self) -> int:
        """How many words have ended."""
        return max(0, self._pauses - 1)

    def window(self) -> str:
        """The next four phonemes, fewer at the end."""
        while len(self._line) < PLACES and (word := next(self._words, None)) is not None:
            self._line += word + PAUSE
        return self._line[:PLACES]

    def move(self, count: int) -> None:
        self._pauses += self._line[:count].count(PAUSE)
        self._line = self._line[count:]
