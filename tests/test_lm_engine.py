from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lm_models import tiny_model
from stepaudio.errors import BackendError, BusyError, Cancelled, InputError
from stepaudio.lm.cache import common_prefix
from stepaudio.lm.engine import Engine
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.grammar import AudioGrammar, Vocabulary

GREEDY = SamplingParams(max_tokens=12, temperature=0, stop=())
DRAWN = SamplingParams(max_tokens=12, seed=5, stop=())
PROMPTS = [[1, 4, 20 + i, *range(40, 40 + 3 * i)] for i in range(9)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("bfloat16")


@pytest.fixture
def engine(model):
    engine = Engine(model, slots=4, tokens=256)
    yield engine
    engine.close()


def recompute(model, prompt, count):
    """Greedy decoding that computes everything again for every token."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        if ids[-10:].count(ids[-1]) > 1:
            logits[ids[-1]] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


def test_greedy_generation_equals_recomputation():
    model = tiny_model("float32")  # so that rounding cannot change which token is the likeliest
    engine = Engine(model, slots=2, tokens=64)
    reply = engine.generate(PROMPTS[3], GREEDY)
    engine.close()
    assert reply.reason == "length"
    assert reply.prompt_tokens == len(PROMPTS[3])
    assert reply.tokens == recompute(model, PROMPTS[3], 12)


def test_many_callers_get_what_each_would_get_alone(model, engine):
    alone = []
    for prompt in PROMPTS:
        fresh = Engine(model, slots=1, tokens=256)
        alone.append(fresh.generate(prompt, DRAWN).tokens)
        fresh.close()
    with ThreadPoolExecutor(len(PROMPTS)) as pool:  # more than there are slots
        together = list(pool.map(lambda prompt: engine.generate(prompt, DRAWN).tokens, PROMPTS))
    assert together == alone


def test_tokens_are_handed_over_in_the_callers_thread(engine):
    seen = []
    reply = engine.generate(PROMPTS[0], DRAWN, on_token=lambda token: seen.append((token, threading.current_thread())))
    assert [token for token, _ in seen] == reply.tokens
    assert {thread for _, thread in seen} == {threading.current_thread()}


def test_a_stop_id_ends_the_reply_and_is_not_in_it(engine):
    tokens = engine.generate(PROMPTS[1], GREEDY).tokens
    stop = tokens[5]
    reply = engine.generate(PROMPTS[1], SamplingParams(max_tokens=12, temperature=0, stop=(stop,)))
    assert reply.reason == "stop"
    assert reply.tokens == tokens[: tokens.index(stop)]


def test_the_next_turn_of_a_conversation_costs_only_its_new_tokens(engine):
    first = engine.generate(PROMPTS[5], DRAWN)
    assert first.cached_tokens == 0
    follow_up = [*PROMPTS[5], *first.tokens, 7, 8, 9]
    second = engine.generate(follow_up, DRAWN)
    assert second.cached_tokens >= len(PROMPTS[5]) + len(first.tokens) - 1
    engine.close()


def test_reused_and_copied_prefixes_change_nothing(model, engine):
    base = engine.submit(PROMPTS[8], SamplingParams(max_tokens=200, seed=1, stop=()))
    tokens = iter(base)
    next(tokens)  # running now, with its prompt in the cache
    variants = [[*PROMPTS[8][:cut], 99, 98] for cut in (4, 11, 20)]
    replies = [engine.generate(variant, DRAWN) for variant in variants]
    assert [reply.cached_tokens for reply in replies] == [4, 11, 20]
    tokens.close()
    for variant, reply in zip(variants, replies, strict=True):
        fresh = Engine(model, slots=1, tokens=256)
        assert fresh.generate(variant, DRAWN).tokens == reply.tokens
        fresh.close()


def test_slots_are_taken_from_the_sequence_used_longest_ago(engine):
    for i in range(4):
        engine.generate([100 + i] * 6, GREEDY)
    assert engine.generate([100] * 6, GREEDY).cached_tokens == 5  # used again: 101 is the oldest now
    engine.generate([200] * 6, GREEDY)
    held = {sequence[0] for sequence in engine.cache.sequences}
    assert held == {100, 102, 103, 200}


def test_cancelling_stops_within_a_step_and_frees_the_slot(engine):
    cancel = threading.Event()
    count = 0

    def on_token(token):
        nonlocal count
        count += 1
        cancel.set()

    long = SamplingParams(max_tokens=200, seed=1, stop=())
    with pytest.raises(Cancelled):
        engine.generate(PROMPTS[0], long, on_token=on_token, cancel=cancel)
    generated = max(len(held) for held in engine.cache.sequences) - len(PROMPTS[0])
    assert generated < 200
    assert count <= generated + 1
    for prompt in PROMPTS[:8]:  # every slot still works
        assert len(engine.generate(prompt, DRAWN).tokens) == 12


def test_cancelling_takes_effect_before_the_next_step(engine):
    steps = []
    step = engine._runner.step
    generation = None

    def stepping(spans):
        steps.append(len(spans))
        if len(steps) == 5:
            generation.cancel()
        return step(spans)

    engine._runner.step = stepping
    generation = engine.submit(PROMPTS[0], SamplingParams(max_tokens=200, seed=1, stop=()))
    with pytest.raises(Cancelled):
        list(generation)
    engine.generate(PROMPTS[1], GREEDY)
    assert sum(steps[:5]) == 5
    assert len(generation.tokens) == 5  # the step that ran still counted, none came after it
    assert generation.reply is None


def test_cancelling_what_waits(engine):
    running = [engine.submit(prompt, SamplingParams(max_tokens=200, seed=1, stop=())) for prompt in PROMPTS[:4]]
    waiting = engine.submit(PROMPTS[5], DRAWN)
    waiting.cancel()
    with pytest.raises(Cancelled):
        list(waiting)
    for generation in running:
        generation.cancel()


def test_leaving_the_loop_cancels(engine):
    generation = engine.submit(PROMPTS[0], SamplingParams(max_tokens=200, seed=1, stop=()))
    for _ in generation:
        break
    assert generation.cancelled


def test_a_finished_request_leaves_the_callers_event_alone(engine):
    cancel = threading.Event()
    engine.generate(PROMPTS[0], DRAWN, cancel=cancel)
    assert not cancel.is_set()


def test_the_cache_bounds_the_reply(engine):
    reply = engine.generate(list(range(5, 205)), SamplingParams(max_tokens=500, seed=1, stop=()))
    assert reply.reason == "length"
    assert len(reply.tokens) == 56
    with pytest.raises(InputError, match="no room"):
        engine.submit([5] * 256, GREEDY)


@pytest.mark.parametrize("prompt", [[], [-1], [5440]])
def test_prompts_that_cannot_be_run(engine, prompt):
    with pytest.raises(InputError):
        engine.submit(prompt)


def test_a_full_queue_is_said_to_be_busy(model):
    engine = Engine(model, slots=1, tokens=256, max_waiting=2)
    endless = SamplingParams(max_tokens=250, seed=1, stop=())
    first = iter(engine.submit(PROMPTS[0], endless))
    next(first)
    for _ in range(2):
        engine.submit(PROMPTS[1], endless)
    with pytest.raises(BusyError):
        engine.submit(PROMPTS[2], endless)
    engine.close()
    with pytest.raises(Cancelled):
        list(first)
    with pytest.raises(BackendError, match="closed"):
        engine.submit(PROMPTS[0])


def test_a_failing_step_fails_its_requests_and_no_others(engine):
    step = engine._runner.step

    def failing(spans):
        raise RuntimeError("no memory")

    engine._runner.step = failing
    with pytest.raises(BackendError, match="no memory"):
        engine.generate(PROMPTS[0], DRAWN)
    engine._runner.step = step
    assert len(engine.generate(PROMPTS[0], DRAWN).tokens) == 12


def test_a_sequence_that_cannot_be_drawn_fails_alone(engine):
    class Broken:
        def allowed(self):
            raise RuntimeError("lost count")

    other = engine.submit(PROMPTS[1], DRAWN)
    with pytest.raises(BackendError, match="lost count"):
        engine.generate(PROMPTS[0], DRAWN, grammar=Broken())
    assert len(list(other)) == 12


def test_grammar_holds_in_the_engine(engine):
    vocabulary = Vocabulary(text=320)
    reply = engine.generate(PROMPTS[0], SamplingParams(max_tokens=200, seed=3), grammar=AudioGrammar(vocabulary, 2, 6))
    assert reply.reason == "stop"
    assert len(reply.tokens) % 5 == 0
    assert 2 <= len(reply.tokens) // 5 <= 6
    for place, token in enumerate(reply.tokens):
        assert token in (vocabulary.linguistic if place % 5 < 2 else vocabulary.semantic)


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([], [1]) == 0
    assert common_prefix([1], [1, 2]) == 1
