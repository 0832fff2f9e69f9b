"""Phonemes in time to words: a lexicon, a bigram of words, and the best path through both.

Both come from training data: who teaches also tells how its words sound. The search is the textbook one (Young, Russell
and Thornton 1989, "Token passing"): the words are a tree of phonemes, each node keeps its best path, and at the end of
a word the words before decide what it is worth. When a word begins is taken not to depend on more than the one before
it (the word-pair approximation: Schwartz and Austin 1991). Nothing is pruned but word ends, so the result is
repeatable.

Shapes: T moments, P phonemes, N nodes, E word ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stepaudio.tokenizer.fbank import Floats

SILENCE = " "
_LANGUAGE_WEIGHT = 1.0
"""Log-probabilities of words against those of moments, which come many to a word and are not independent."""
_BEAM = 30.0
_RIVALS = 4
"""Words that are kept of those that end at one moment."""
_BIGRAM_SHARE = 0.7
"""How much the bigram counts against the single word, when the word before was seen."""


@dataclass(frozen=True)
class Lexicon:
    """`entries` are (word, its phonemes); `counts` how often each distinct word occurs, by place in `words`; `pairs`
    the sorted keys first * len(words) + second, and how often each pair occurs."""

    entries: tuple[tuple[str, str], ...]
    counts: NDArray[np.int64]
    pairs: NDArray[np.int64]
    pair_counts: NDArray[np.int64]

    @cached_property
    def words(self) -> list[str]:
        return list(dict.fromkeys(word for word, _ in self.entries))

    @classmethod
    def of(cls, sentences: Sequence[tuple[str, str]]) -> Lexicon:
        """The words of sentences, given as words and as phonemes, both with spaces between words: how each sounds, and
        what follows what."""
        sounds: dict[str, Counter[str]] = {}
        for spoken, phonemes in sentences:
            said, heard = spoken.split(), phonemes.split()
            if len(said) == len(heard):
                for word, sound in zip(said, heard, strict=True):
                    sounds.setdefault(word, Counter())[sound] += 1
        # A sound heard in fewer than a tenth of a word's cases is a slip of the alignment.
        entries = tuple(
            (word, sound)
            for word, heard_as in sorted(sounds.items())
            for sound, count in sorted(heard_as.items())
            if count >= 0.1 * heard_as.total()
        )
        place = {word: index for index, word in enumerate(dict.fromkeys(word for word, _ in entries))}
        known = [[place[word] for word in spoken.split() if word in place] for spoken, _ in sentences]
        single = Counter(word for text in known for word in text)
        pairs = Counter(first * len(place) + second for text in known for first, second in pairwise(text))
        keys = np.array(sorted(pairs), dtype=np.int64)
        return cls(
            entries,
            np.array([single[index] for index in range(len(place))], dtype=np.int64),
            keys,
            np.array([pairs[int(key)] for key in keys], dtype=np.int64),
        )

    def decode(self, scores_TP: Floats, phonemes: Sequence[str]) -> str:
        """The words that explain log-probabilities of phonemes at even moments best; empty for none."""
        if len(scores_TP) == 0 or not self.entries:
            return ""
        return _Search(self._tree(tuple(phonemes)), self, len(scores_TP)).run(scores_TP)

    def _tree(self, phonemes: tuple[str, ...]) -> _Tree:
        if phonemes not in self._trees:
            self._trees[phonemes] = _Tree.of(self, phonemes)
        return self._trees[phonemes]

    @cached_property
    def _trees(self) -> dict[tuple[str, ...], _Tree]:
        return {}

    def log_odds(self, before: NDArray[np.int64], word: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probability of each word after the one before it (-1: the beginning)."""
        total = self.counts.sum() + len(self.counts)
        single = (self.counts[word] + 1) / total
        keys = before * len(self.counts) + word
        place = np.searchsorted(self.pairs, keys).clip(max=max(0, len(self.pairs) - 1))
        found = (before >= 0) & (len(self.pairs) > 0)
        if len(self.pairs):
            found &= self.pairs[place] == keys
        together = np.where(found, self.pair_counts[place] if len(self.pairs) else 0, 0)
        after = together / np.maximum(self.counts[before], 1)
        share = np.where((before >= 0) & (self.counts[before] > 0), _BIGRAM_SHARE, 0.0)
        odds: NDArray[np.float64] = np.log(share * after + (1 - share) * single)
        return odds


@dataclass(frozen=True)
class _Tree:
    """Node 0 is silence; every other has a phoneme and a parent (-1: the root). `end_nodes` say `end_words`."""

    phoneme: NDArray[np.int64]
    parent: NDArray[np.int64]
    end_nodes: NDArray[np.int64]
    end_words: NDArray[np.int64]

    @classmethod
    def of(cls, lexicon: Lexicon, phonemes: Sequence[str]) -> _Tree:
        ids = {symbol: index for index, symbol in enumerate(phonemes)}
        nodes: dict[tuple[int, int], int] = {}
        phoneme, parent = [ids[SILENCE]], [-1]
        ends: list[tuple[int, int]] = []
        place = {word: index for index, word in enumerate(lexicon.words)}
        for word, sound in lexicon.entries:
            if any(symbol not in ids for symbol in sound):
                continue
            node = -1
            for symbol in sound:
                key = (node, ids[symbol])
                if key not in nodes:
                    nodes[key] = len(phoneme)
                    phoneme.append(ids[symbol])
                    parent.append(node)
                node = nodes[key]
            ends.append((node, place[word]))
        columns = np.array(ends, dtype=np.int64).reshape(-1, 2)
        return cls(np.array(phoneme), np.array(parent), columns[:, 0], columns[:, 1])


class _Search:
    """One utterance's paths.

    A path in the tree knows the moment at which its word began. Of each moment are kept the best paths to `_RIVALS`
    different words that end there, so that the next word can choose which of them it follows.
    """

    def __init__(self, tree: _Tree, lexicon: Lexicon, moments: int) -> None:
        self.tree, self.lexicon = tree, lexicon
        shape = (moments + 1, _RIVALS)
        # By moment: words that end there, the best first; how good they are; moment and place of the one before.
        self.said, self.score = np.full(shape, -1), np.full(shape, -np.inf)
        self.before = np.zeros((*shape, 2), dtype=np.int64)
        self.score[0, 0] = 0.0

    def run(self, scores_TP: Floats) -> str:
        tree = self.tree
        first = tree.parent < 0  # silence and the first phonemes of words
        parent = np.where(first, 0, tree.parent)
        score_N = np.full(len(tree.phoneme), -np.inf)
        since_N = np.zeros(len(tree.phoneme), dtype=np.int64)
        for now, scores_P in enumerate(scores_TP):
            # A word may begin where one has ended, or after silence.
            root = self.score[now, 0]
            begin, begun = (root, now) if root >= score_N[0] else (score_N[0], since_N[0])
            enter_N = np.where(first, begin, score_N[parent])
            came_N = np.where(first, begun, since_N[parent])
            enter_N[0], came_N[0] = root, now
            moved = enter_N > score_N
            since_N = np.where(moved, came_N, since_N)
            score_N = np.where(moved, enter_N, score_N) + scores_P[tree.phoneme]
            self._end_words(now + 1, score_N, since_N)
        return self._text(len(scores_TP) if self.score[-1, 0] >= score_N[0] else int(since_N[0]))

    def _end_words(self, now: int, score_N: NDArray[np.float64], since_N: NDArray[np.int64]) -> None:
        """Keep the best paths on which a word ends now."""
        ends = score_N[self.tree.end_nodes]
        if not np.isfinite(ends.max()):
            return
        near_E = np.flatnonzero(ends > ends.max() - _BEAM)
        words_E, since_E = self.tree.end_words[near_E], since_N[self.tree.end_nodes[near_E]]
        sound_E = ends[near_E] - self.score[since_E, 0]  # the path was that of the best word before
        odds_ER = self.lexicon.log_odds(self.said[since_E], words_E[:, None])
        total_ER = sound_E[:, None] + self.score[since_E] + _LANGUAGE_WEIGHT * odds_ER
        rival_E, total_E = total_ER.argmax(axis=1), total_ER.max(axis=1)
        order = np.argsort(-total_E, kind="stable")
        different = np.sort(np.unique(words_E[order], return_index=True)[1])  # one path to each word
        kept = order[different[:_RIVALS]]
        self.said[now, : len(kept)], self.score[now, : len(kept)] = words_E[kept], total_E[kept]
        self.before[now, : len(kept)] = np.stack([since_E[kept], rival_E[kept]], axis=1)

    def _text(self, moment: int) -> str:
        words: list[str] = []
        place = 0
        while moment > 0:
            words.append(self.lexicon.words[self.said[moment, place]])
            moment, place = self.before[moment, place]
        return " ".join(reversed(words))
