"""The lexicon search against every sentence there could be, and what it learns from a manifest."""

from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.train import lexicon as module
from stepaudio.train.lexicon import SILENCE, Lexicon

PHONEMES = [SILENCE, "a", "b", "c"]


def taught():
    heard = [("ab ba", " ab ba "), ("ab cab", " ab cab "), ("ba cc", "ba c"), ("ab ab ab", "ab ab"), ("ba", "ba")]
    return Lexicon.of([*heard, ("cab ba ba", "cab ba ba"), ("unknown ab", "unknownab")])


def test_words_sound_as_they_were_heard():
    lexicon = taught()
    # "ab ab ab" is heard as two words, so it teaches no sounds; nor does "unknown ab".
    assert dict(lexicon.entries) == {"ab": "ab", "ba": "ba", "cab": "cab", "cc": "c"}
    place = {word: index for index, word in enumerate(lexicon.words)}
    assert [int(lexicon.counts[place[word]]) for word in ("ab", "ba", "cab", "cc")] == [6, 5, 2, 1]
    first = np.array([place["ab"], place["ab"], place["ba"], -1])
    second = np.array([place["ba"], place["cc"], place["ba"], place["ab"]])
    single = (lexicon.counts[second] + 1) / (14 + 4)
    after = np.array([1 / 6, 0, 1 / 5, 0])
    expected = np.where(first >= 0, 0.7 * after + 0.3 * single, single)
    np.testing.assert_allclose(np.exp(lexicon.log_odds(first, second)), expected)


def brute_force(lexicon, scores):
    """The best score over all sentences of up to two words and all times of their phonemes and silences."""
    best = {}
    spots = {phoneme: index for index, phoneme in enumerate(PHONEMES)}
    for count in (0, 1, 2):
        for entries in product(lexicon.entries, repeat=count):
            words = tuple(word for word, _ in entries)
            places = [lexicon.words.index(word) for word in words]
            odds = lexicon.log_odds(np.array([-1, *places[:-1]]), np.array(places)).sum() if count else 0.0
            for gaps in product((False, True), repeat=count + 1):
                symbols = [SILENCE] if gaps[0] else []
                for (_, sound), gap in zip(entries, gaps[1:], strict=True):
                    symbols += [*sound, *([SILENCE] if gap else [])]
                total = fit([spots[s] for s in symbols], scores) + module._LANGUAGE_WEIGHT * odds
                best[words] = max(best.get(words, -np.inf), total)
    return best


def fit(row, scores):
    """The best score of passing through a row of phonemes, a moment or more in each."""
    if not row or len(row) > len(scores):
        return -np.inf
    table = np.full((len(scores), len(row)), -np.inf)
    for t, p in product(range(len(scores)), range(len(row))):
        came = (
            0.0 if t == p == 0 else max(table[t - 1, p] if t else -np.inf, table[t - 1, p - 1] if t and p else -np.inf)
        )
        table[t, p] = came + scores[t, row[p]]
    return table[-1, -1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_the_search_finds_a_best_sentence(seed, moments):
    """With so few moments no sentence of three words fits, so all of them are tried. Words count by themselves here:
    only then does it make no difference to when a word begins what came before it, as the search takes for granted."""
    lexicon = Lexicon.of([("ab ba", "ab ba"), ("ab cab", "ab cab")])
    scores = np.log(np.random.default_rng(seed).dirichlet(np.ones(4) * 0.3, moments) + 1e-9).astype(np.float32)
    with patch.object(module, "_BIGRAM_SHARE", 0.0):
        every = brute_force(lexicon, scores)
        found = tuple(lexicon.decode(scores, PHONEMES).split())
    assert every[found] == pytest.approx(max(every.values()), rel=1e-5)


def test_homophones_are_told_apart_by_their_neighbours():
    lexicon = Lexicon.of([("a two", "a b"), ("c to", "c b")] * 2)
    for first, expected in (("a", "a two"), ("c", "c to")):
        scores = np.full((2, 4), -20.0, dtype=np.float32)
        scores[0, PHONEMES.index(first)] = scores[1, PHONEMES.index("b")] = 0
        assert lexicon.decode(scores, PHONEMES) == expected


def test_a_word_may_be_told_by_what_follows_it():
    lexicon = Lexicon.of([("two a", "b a")] * 3 + [("to c", "b c")] * 5)
    for last, expected in (("a", "two a"), ("c", "to c")):
        scores = np.full((2, 4), -20.0, dtype=np.float32)
        scores[0, PHONEMES.index("b")] = scores[1, PHONEMES.index(last)] = 0
        assert lexicon.decode(scores, PHONEMES) == expected


def test_of_words_that_sound_alike_so_many_are_kept(monkeypatch):
    """The rarest of three is only found when there is room for it beside the others."""
    lexicon = Lexicon.of([("one a", "b a")] * 2 + [("two c", "b c")] * 9 + [("six c", "b c")] * 6)
    scores = np.full((2, 4), -20.0, dtype=np.float32)
    scores[0, PHONEMES.index("b")] = scores[1, PHONEMES.index("a")] = 0
    for rivals, expected in ((1, "two a"), (2, "two a"), (3, "one a")):
        monkeypatch.setattr(module, "_RIVALS", rivals)
        assert lexicon.decode(scores, PHONEMES) == expected


def test_nothing_to_read():
    assert taught().decode(np.zeros((0, 4), np.float32), PHONEMES) == ""
    assert Lexicon.of([]).decode(np.zeros((3, 4), np.float32), PHONEMES) == ""
    silence = np.log(np.array([[0.97, 0.01, 0.01, 0.01]] * 6, dtype=np.float32))
    assert taught().decode(silence, PHONEMES) == ""
