from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.attention import attention
from stepaudio.lm import attention as module
from stepaudio.lm.attention import attend, attend_cached, attend_flex


def case(seed: int, t: int, s: int, heads: int = 6, groups: int = 2, d: int = 8, batch: int = 2):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, n, h, d, generator=generator) for n, h in ((t, heads), (s, groups), (s, groups)))
    return q, k, v, torch.rand(heads, generator=generator)


def expected(q, k, v, slopes):
    rows = [attention(*(x.double().numpy() for x in (a, b, c, slopes))) for a, b, c in zip(q, k, v, strict=True)]
    return np.stack(rows)


@pytest.mark.parametrize("form", [attend, attend_flex])
@pytest.mark.parametrize(("t", "s"), [(1, 1), (7, 7), (5, 12), (1, 30)])
def test_attention_equals_the_explicit_loop(form, t, s):
    q, k, v, slopes = case(0, t, s)
    np.testing.assert_allclose(form(q, k, v, slopes).numpy(), expected(q, k, v, slopes), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    t=st.integers(1, 12),
    past=st.integers(0, 9),
    groups=st.sampled_from([1, 2, 3, 6]),
    seed=st.integers(0, 99),
)
def test_blocks_of_queries_change_nothing(t, past, groups, seed):
    q, k, v, slopes = case(seed, t, t + past, groups=groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERY_BLOCK", 4)
        out = attend(q, k, v, slopes)
    np.testing.assert_allclose(out.numpy(), expected(q, k, v, slopes), atol=1e-6)


def test_cached_attention_of_different_lengths_equals_the_loop():
    q, k, v, slopes = case(3, 1, 20, batch=3)
    positions = torch.tensor([19, 0, 7])
    out = attend_cached(q[:, 0], k.transpose(1, 2), v.transpose(1, 2), positions, slopes)
    for b, position in enumerate(positions.tolist()):
        seen = slice(b, b + 1), slice(0, position + 1)
        np.testing.assert_allclose(
            out[b : b + 1, None].numpy(), expected(q[b : b + 1], k[seen], v[seen], slopes), atol=1e-6
        )


def test_prefill_holds_a_block_of_the_bias_and_no_more(monkeypatch):
    sizes: list[int] = []
    bias = module._bias
    monkeypatch.setattr(module, "_bias", lambda *args: sizes.append((out := bias(*args)).numel()) or out)
    q, k, v, slopes = case(0, 1024, 1024, batch=1)
    attend(q, k, v, slopes)
    assert max(sizes) == 6 * module.QUERY_BLOCK * 1024
    assert len(sizes) == 1024 // module.QUERY_BLOCK


def test_gradients_match_plain_softmax():
    q, k, v, slopes = case(5, 6, 6)
    tensors = [x.double().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: attend(*x, slopes.double()), tensors, atol=1e-4)
