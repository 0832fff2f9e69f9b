"""The nano language model at work: words of phonemes to groups of codes, and groups of codes to words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import Cancelled, InputError
from stepaudio.lm import checkpoint
from stepaudio.lm.engine import Engine
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.nano import COUNTS, PAUSE, PLACES, GroupGrammar, NanoVocabulary, load_vocabulary, opening
from stepaudio.lm.step1 import Step1
from stepaudio.tokenizer.dual import find
from stepaudio.tokenizer.interleave import RATIO
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.documents import group_ids, hearing
from stepaudio.train.lexicon import Lexicon
from stepaudio.train.reader import FILE, load_reader

SPEAK = SamplingParams(temperature=0, guard_repetition=False, stop=())
"""How codes are drawn unless the caller says otherwise: the likeliest, which were read back best (docs/training.md)."""
MOMENT = 0.12 / PLACES
"""Seconds of which hearing tells the phoneme."""
_GROUP = sum(RATIO)
_LONGEST = 6
"""Groups that a phoneme lasts at most: 0.7 s."""
_SHARE_WEIGHT = 0.6
"""How much of a phoneme's share is taken out of its probability; chosen on the split `dev`."""
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
    shares: Mapping[str, float] = field(default_factory=dict)
    """How much of the time each phoneme takes, where that is known."""
    slots: int = 4

    def __post_init__(self) -> None:
        self.engine = Engine(self.model, slots=self.slots)

    @classmethod
    def load(cls, folder: Path, *, slots: int = 4) -> NanoLm:
        """Read `config.json`, `model.safetensors` and `nano.json`; `slots` utterances are spoken at a time.

        Raises MissingError and InputError.
        """
        import torch

        known = load_reader(find(_TOKENIZER) / FILE)
        shares = dict(zip(known.phonemes, known.shares.tolist(), strict=True))
        model = checkpoint.load(folder, dtype=torch.bfloat16)
        return cls(load_vocabulary(folder), model, known.lexicon, shares, slots)

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

    def transcribe(self, *heard: DualCodes, cancel: Event | None = None) -> str:
        """The words that codes say, in lower case without punctuation: the best path through the lexicon of the
        tokenizer's reader.

        `heard` are codes of the same sound, the second with one `MOMENT` of silence before it, a third with two: what
        one cut of the sound into codes garbles, another may keep, so log-probabilities are averaged. Raises InputError
        for more codes than fit (about 25 s), Cancelled after `cancel`.
        """
        v = self.vocabulary
        shares_P = np.array([self.shares.get(symbol, min(self.shares.values(), default=1.0)) for symbol in v.phonemes])
        # As for the reader: a rare phoneme that is likely is likely by its sound alone.
        evidence_TP = together([self.hear(codes) for codes in heard]) - _SHARE_WEIGHT * np.log(shares_P)
        if cancel is not None and cancel.is_set():
            raise Cancelled("the transcription was cancelled")
        return self.lexicon.decode(evidence_TP, v.phonemes)

    def hear(self, codes: DualCodes) -> NDArray[np.float32]:
        """Log-probabilities of the phonemes at four even moments of each group of codes [T, P], in one pass."""
        import torch

        v = self.vocabulary
        ids = group_ids(v, codes)
        if not len(ids):
            return np.zeros((0, len(v.phonemes)), dtype=np.float32)
        tokens = hearing(v, ids)
        if len(tokens) > self.model.config.max_seq_len:
            raise InputError(f"{len(ids) * 0.12:.0f} s of codes are too many to be heard in one go")
        # What stands in a place is told by the hidden state before it; the first group's places tell nothing.
        places = np.arange(len(ids) * PLACES)
        before = (_GROUP + PLACES) * (1 + places // PLACES) + _GROUP + places % PLACES
        with torch.inference_mode():
            hidden_TC = self.model.hidden(torch.from_numpy(tokens)[None])[0, torch.from_numpy(before)]
            logits_TV = self.model.lm_head(hidden_TC).float().numpy()
        own = np.stack([logits_TV[places % PLACES == i, v.place(i).start + 1 : v.place(i).stop] for i in range(PLACES)])
        own_TP = own.transpose(1, 0, 2).reshape(len(places), -1)
        evidence_TP: NDArray[np.float32] = own_TP - np.logaddexp.reduce(own_TP, axis=1, keepdims=True)
        return evidence_TP

    def close(self) -> None:
        self.engine.close()

    def _said(self, group: list[int], word: int) -> Said:
        ids = np.array(group)
        v = self.vocabulary
        return Said(ids[: RATIO[0]] - v.linguistic.start, ids[RATIO[0] :] - v.semantic.start, word)


def together(hearings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean [T, P] of hearings [T', P], of which each is a moment later than the one before it."""
    heard = [hearing_TP[late:] for late, hearing_TP in enumerate(hearings)]
    moments = min(map(len, heard))
    mean_TP: NDArray[np.float32] = np.mean([hearing_TP[:moments] for hearing_TP in heard], axis=0)
    return mean_TP


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
