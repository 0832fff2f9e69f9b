from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.errors import BackendError, InputError
from stepaudio.lm.generate import Sampler, SamplingParams, repeated
from stepaudio.lm.grammar import AudioGrammar, TextGrammar, Vocabulary

RELEASED = Vocabulary()


def test_audio_block_of_the_released_vocabulary():
    assert RELEASED.linguistic == range(65536, 66560)
    assert RELEASED.semantic == range(66560, 70656)
    # L=[5, 9], S=[1, 2, 3]
    grammar = AudioGrammar(RELEASED)
    for token in (65541, 65545, 66561, 66562, 66563, 3):
        grammar = grammar.advance(token)
    assert grammar.ended


class AnyLogits:
    """A model that would say anything."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = np.random.default_rng(seed)
        self.size = size

    def __call__(self) -> np.ndarray:
        return self.random.normal(0, 5, self.size).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    low=st.integers(0, 4),
    more=st.none() | st.integers(0, 4),
    temperature=st.sampled_from([0.0, 0.7, 5.0]),
)
def test_whatever_the_model_says_audio_is_whole_groups(seed, low, more, temperature):
    vocabulary = Vocabulary(text=64)
    high = None if more is None else low + more
    sampler = Sampler(SamplingParams(temperature=temperature, top_k=0, seed=seed), AudioGrammar(vocabulary, low, high))
    logits, ids = AnyLogits(seed, vocabulary.audio.stop + 30), []
    for _ in range(60):
        scores = logits()
        scores[vocabulary.eot] += 6  # so that some replies do end
        token = sampler.draw(scores, ids)
        if token == vocabulary.eot:
            break
        ids.append(token)
    for place, token in enumerate(ids):
        assert token in (vocabulary.linguistic if place % 5 < 2 else vocabulary.semantic)
    if len(ids) < 60:
        assert len(ids) % 5 == 0
        assert len(ids) // 5 >= low
    if high is not None:
        assert len(ids) // 5 <= high


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_the_model_says_text_has_no_audio_and_no_controls(seed):
    vocabulary = Vocabulary(text=64)
    sampler = Sampler(SamplingParams(temperature=5, top_k=0, seed=seed), TextGrammar(vocabulary))
    logits = AnyLogits(seed, vocabulary.audio.stop + 30)
    for _ in range(30):
        assert sampler.draw(logits(), []) in {vocabulary.eot, *range(5, 64)}


@given(tokens=st.lists(st.sampled_from([0, 3, 4, 70, 64, 1087, 1088, 5183, 5184]), max_size=12))
def test_advance_accepts_exactly_what_allowed_offers(tokens):
    grammar = AudioGrammar(Vocabulary(text=64), min_groups=1, max_groups=2)
    for token in tokens:
        if any(token in span for span in grammar.allowed()):
            grammar = grammar.advance(token)
        else:
            with pytest.raises(InputError):
                grammar.advance(token)


def test_bounds_that_contradict_each_other():
    with pytest.raises(InputError):
        AudioGrammar(RELEASED, min_groups=3, max_groups=2)


def test_repetition_rule():
    assert repeated([1, 2, 3]) is None
    assert repeated([1, 2, 1]) == 1
    assert repeated([7, *range(100, 108), 7]) == 7  # the tenth from the end still counts
    assert repeated([7, *range(100, 109), 7]) is None  # the eleventh does not
    assert repeated([]) is None


def test_a_repeated_token_is_not_drawn_again_even_from_the_prompt():
    logits = np.array([0, 9, 5, 1], np.float32)
    params = SamplingParams(temperature=0)
    assert Sampler(params).draw(logits, [1, 0]) == 1
    assert Sampler(params).draw(logits, [1, 0, 1]) == 2
    assert Sampler(SamplingParams(temperature=0, guard_repetition=False)).draw(logits, [1, 0, 1]) == 1
    assert logits[1] == 9  # the caller's logits are left alone


def test_the_guard_yields_to_a_grammar_that_leaves_one_token():
    grammar = AudioGrammar(Vocabulary(text=64), min_groups=0, max_groups=0)
    sampler = Sampler(SamplingParams(), grammar)
    assert sampler.draw(np.zeros(6000, np.float32), [3, 3]) == 3


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_draws_stay_in_the_nucleus(seed, top_k, top_p, temperature):
    logits = np.random.default_rng(seed).normal(0, 2, 10).astype(np.float32)
    probabilities = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    ranked = sorted(range(10), key=lambda i: -probabilities[i])[: top_k or 10]
    kept, reached = [], 0.0
    for token in ranked:
        if reached >= top_p * sum(probabilities[i] for i in ranked) - 1e-9:
            break
        kept.append(token)
        reached += probabilities[token]
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, guard_repetition=False)
    sampler = Sampler(params)
    assert {sampler.draw(logits, []) for _ in range(50)} <= set(kept)


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    sampler = Sampler(SamplingParams(temperature=1, top_k=0, seed=0, guard_repetition=False))
    counts = np.bincount([sampler.draw(logits, []) for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / 20_000, [0.1, 0.2, 0.3, 0.4], atol=0.015)


def test_a_seed_repeats_and_another_does_not():
    logits = np.zeros(1000, np.float32)
    a, b, c = ([Sampler(SamplingParams(seed=seed, top_k=0)).draw(logits, []) for _ in range(3)] for seed in (1, 1, 2))
    assert a == b != c


def test_nan_is_an_error_not_a_token():
    with pytest.raises(BackendError, match="NaN"):
        Sampler(SamplingParams()).draw(np.array([0, np.nan, 1], np.float32), [])


@pytest.mark.parametrize(
    "values",
    [{"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}],
)
def test_sampling_params_out_of_range(values):
    with pytest.raises(InputError):
        SamplingParams(**values)
