"""Both runners, all weight kinds: cached equals uncached, batched equals single, forked equals recomputed."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_models import KINDS, tiny_config, tiny_model
from stepaudio.errors import InputError
from stepaudio.lm import checkpoint, native
from stepaudio.lm.cache import Cache
from stepaudio.lm.native import NativeRunner, why_not
from stepaudio.lm.quantize import Int8Linear, quantize
from stepaudio.lm.runner import Span, TorchRunner, make_runner

TOKENS = torch.randint(0, 5000, (90,), generator=torch.Generator().manual_seed(7)).tolist()
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.06}  # of the logits' largest


@pytest.fixture(scope="module")
def models():
    return {kind: tiny_model(kind) for kind in KINDS}


def runner_of(model, form, slots=4, tokens=128):
    dtype = model.model.embed_tokens.weight.dtype
    cache = Cache(model.config, slots=slots, tokens=tokens, dtype=dtype)
    for _ in range(slots - 1):
        cache.allocate()
    if form == "native":
        if native.library() is None:
            pytest.skip("no C++ compiler")
        assert why_not(model, cache) is None
        return NativeRunner(model, cache)
    return TorchRunner(model, cache)


def assert_close(a, b, kind):
    assert (a - b).abs().max() <= TOLERANCE[kind] * b.abs().max()


forms = pytest.mark.parametrize("form", ["torch", "native"])
kinds = pytest.mark.parametrize("kind", KINDS)


@forms
@kinds
def test_cached_equals_uncached(models, form, kind):
    model = models[kind]
    runner = runner_of(model, form)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS[:20]]))[0].float()
    assert_close(runner.step([Span(0, TOKENS[:12])])[0], expected[11], kind)
    for i in range(12, 20):
        assert_close(runner.step([Span(0, TOKENS[i : i + 1])])[0], expected[i], kind)
    assert runner.cache.sequences[0] == TOKENS[:20]


@forms
@kinds
def test_batched_equals_single(models, form, kind):
    together, alone = runner_of(models[kind], form), runner_of(models[kind], form)
    spans = [Span(0, TOKENS[:5]), Span(1, TOKENS[5:6]), Span(2, TOKENS[6:40])]
    for _ in range(2):
        joint = together.step(spans)
        for row, span in zip(joint, spans, strict=True):
            single = alone.step([span])[0]
            if form == "native":
                assert torch.equal(row, single)
            else:
                assert_close(row, single, kind)


@forms
@kinds
def test_forked_prefix_equals_recomputed(models, form, kind):
    runner = runner_of(models[kind], form)
    runner.step([Span(0, TOKENS[:30])])
    fork = runner.cache.fork(0, 17)
    assert runner.cache.sequences[fork] == TOKENS[:17]
    forked = runner.step([Span(fork, TOKENS[50:60])])[0]
    recomputed = runner.step([Span(1, TOKENS[:17] + TOKENS[50:60])])[0]
    if form == "native":
        assert torch.equal(forked, recomputed)
    else:
        assert_close(forked, recomputed, kind)
    # The original goes on as if nothing had happened.
    untouched = runner_of(models[kind], form)
    untouched.step([Span(0, TOKENS[:30])])
    assert torch.equal(runner.step([Span(0, [5])]), untouched.step([Span(0, [5])]))


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 89), max_size=6, unique=True), kind=st.sampled_from(KINDS))
def test_native_prefill_is_the_same_to_the_bit_however_it_is_cut(models, cuts, kind):
    whole, pieces = runner_of(models[kind], "native"), runner_of(models[kind], "native")
    expected = whole.step([Span(0, TOKENS)])  # 90 rows: more than one call
    edges = [0, *sorted(cuts), len(TOKENS)]
    for start, stop in pairwise(edges):
        logits = pieces.step([Span(1, TOKENS[start:stop])])
    assert torch.equal(logits, expected)


@kinds
def test_native_equals_torch_beyond_one_chunk_of_everything(kind):
    # A vocabulary that is no multiple of the chunk, a batch of more rows than a tile, groups of one head.
    model = tiny_model(kind, vocab_size=5437, num_attention_groups=6)
    runners = [runner_of(model, form, slots=13) for form in ("native", "torch")]
    spans = [Span(slot, TOKENS[slot : 2 * slot + 1]) for slot in range(12)]
    for _ in range(2):
        a, b = (runner.step(spans) for runner in runners)
        assert_close(a, b, kind)


@kinds
def test_a_model_that_runs_natively_is_still_the_same_model(kind, tmp_path):
    model = tiny_model(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runner_of(model, "native")
    assert model.model.layers[0].mlp.gate_proj.weight.stride(0) == 2 * model.config.hidden_size  # has been moved
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    if kind != "int8":  # which cannot be saved
        checkpoint.save(model, tmp_path)
        saved = checkpoint.load(tmp_path, dtype=before["lm_head.weight"].dtype).state_dict()
        assert all(torch.equal(saved[name], before[name]) for name in before)
    with torch.no_grad():
        said, again = (each(torch.tensor([TOKENS[:9]])).float() for each in (model, tiny_model(kind)))
        assert_close(said, again, kind)


def test_whole_numbers_do_not_overflow_where_a_matrix_is_wide():
    # Equal weights and equal activations everywhere: the largest sums that there can be, in rows of 16384.
    model = tiny_model("bfloat16", intermediate_size=16384)
    with torch.no_grad():
        for block in model.model.layers:
            for matrix in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
                matrix.weight.fill_(0.02)
    quantize(model, "int8")
    native_row, torch_row = (runner_of(model, form).step([Span(0, TOKENS[:5])])[0] for form in ("native", "torch"))
    assert_close(native_row, torch_row, "int8")


def test_rounded_activations_lose_about_as_much_as_rounded_weights(models):
    if native.library() is None:
        pytest.skip("no C++ compiler")
    rounded_weights = copy.deepcopy(models["int8"])  # and activations of float32
    for parent in list(rounded_weights.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Int8Linear):
                linear = torch.nn.Linear(*reversed(child.weight.shape), bias=False)
                linear.weight.data = child.weight.float() * child.scale[:, None]
                setattr(parent, name, linear)
    rounded_weights.float()

    def logits(model):
        runner = runner_of(model, "native")
        return torch.stack([runner.step([Span(0, [token])])[0] for token in TOKENS[:20]])

    exact, between, whole = (logits(m) for m in (models["float32"], rounded_weights, models["int8"]))
    assert (whole - between).norm() < 1.5 * (between - exact).norm()
    assert (whole - exact).norm() < 0.05 * exact.norm()


def test_one_large_activation_costs_only_its_neighbours():
    """A scale is shared by 256 activations, so an outlier does not round those beyond them to nothing."""
    if native.library() is None:
        pytest.skip("no C++ compiler")
    model = tiny_model("bfloat16", hidden_size=768, num_attention_heads=6, head_dim=32)
    with torch.no_grad():
        model.model.embed_tokens.weight[TOKENS[0], 0] = 1000 * model.model.embed_tokens.weight[TOKENS[0]].abs().amax()
        for block in model.model.layers:  # the outlier's own products are left out, the others' remain
            for matrix in (*block.self_attn.children(), *block.mlp.children()):
                if isinstance(matrix, torch.nn.Linear) and matrix.in_features == 768:
                    matrix.weight[:, 0] = 0
        model.lm_head.weight[:, 0] = 0
    quantize(model, "int8")
    native_row, torch_row = (runner_of(model, form).step([Span(0, TOKENS[:1])])[0] for form in ("native", "torch"))
    assert torch.nn.functional.cosine_similarity(native_row, torch_row, dim=0) > 0.8


@forms
def test_a_span_that_does_not_fit_changes_nothing(models, form):
    runner = runner_of(models["float32"], form, tokens=16)
    runner.step([Span(0, TOKENS[:10])])
    with pytest.raises(InputError, match="do not fit"):
        runner.step([Span(1, [1]), Span(0, TOKENS[:7])])
    assert [len(held) for held in runner.cache.sequences[:2]] == [10, 0]
    assert runner.step([Span(0, TOKENS[:6])]).isfinite().all()


def test_native_refuses_ids_outside_the_vocabulary(models):
    with pytest.raises(IndexError):
        runner_of(models["float32"], "native").step([Span(0, [5440])])


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({"head_dim": 20}, torch.float32, "multiples"),
        ({}, torch.bfloat16, "cache"),
        ({}, torch.float16, "weights"),
    ],
)
def test_what_the_native_step_cannot_do_runs_on_torch(changes, dtype, reason):
    if native.library() is None:
        pytest.skip("no C++ compiler")
    model = tiny_model(**changes)
    if dtype is torch.float16:
        model.half()
    cache = Cache(model.config, slots=1, tokens=8, dtype=dtype)
    assert reason in why_not(model, cache)
    assert isinstance(make_runner(model, cache), TorchRunner)


def test_without_a_compiler_torch_does_the_work(monkeypatch, models, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    try:
        cache = Cache(tiny_config(), slots=1, tokens=8, dtype=torch.float32)
        assert isinstance(make_runner(models["float32"], cache), TorchRunner)
        assert "no C++ compiler" in caplog.text
    finally:
        native.library.cache_clear()


def test_a_source_that_does_not_compile_is_reported(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-no-such-flag"))
    native.library.cache_clear()
    try:
        assert native.library() is None
        assert "no-such-flag" in caplog.text
    finally:
        native.library.cache_clear()


@pytest.mark.slow
def test_compiled_decoding_equals_eager():
    model = tiny_model()
    compiled, eager = (
        TorchRunner(model, Cache(model.config, slots=3, tokens=64, dtype=torch.float32), compiled=flag)
        for flag in (True, False)
    )
    for spans in ([Span(0, [3]), Span(1, [4])], [Span(0, [5]), Span(1, [6])], [Span(2, [7])]):
        assert_close(compiled.step(spans), eager.step(spans), "float32")
