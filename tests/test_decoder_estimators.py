"""The estimators equal the network written down plainly, alone and in batches."""

import pytest
import torch

from flow_models import BOTH, MELS, flow_model
from stepaudio.bench.decoder_reference import EagerDiT, EagerUNet
from stepaudio.decoder.layers import chunk_mask


def eager(model):
    weights, config = dict(model.estimator.state_dict()), model.config.estimator
    if hasattr(config, "depth"):
        return EagerDiT(weights, config.depth, config.heads)
    return EagerUNet(weights, len(config.channels), config.blocks, config.mid_blocks, config.heads)


def inputs(frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, mu, cond = torch.randn(3, 2, MELS, frames, generator=generator, dtype=torch.float64)
    return x, mu, torch.randn(2, MELS, generator=generator, dtype=torch.float64), cond


def joined(x, mu, speaker, cond):
    return torch.cat([x, mu, speaker[:, :, None].expand_as(x), cond], dim=1).transpose(1, 2)


T = torch.tensor([0.3, 0.8], dtype=torch.float64)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("frames", [1, 2, 31])
def test_equals_the_plain_network(kind, frames):
    model = flow_model(BOTH[kind], torch.float64)
    x, mu, speaker, cond = inputs(frames)
    expected = eager(model)(x, mu, T, speaker, cond)
    got = model.estimator(joined(x, mu, speaker, cond), model.estimator.time_of_each(T, torch.float64))
    torch.testing.assert_close(got.transpose(1, 2), expected, atol=1e-10, rtol=0)
    assert expected.std() > 0.01


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("short", [1, 18, 19])
def test_padding_changes_nothing(kind, short):
    model = flow_model(BOTH[kind], torch.float64)
    x, mu, speaker, cond = inputs(31)
    got = model.estimator(
        joined(x, mu, speaker, cond), model.estimator.time_of_each(T, torch.float64), torch.tensor([31, short])
    ).transpose(1, 2)
    for row, frames in enumerate((31, short)):
        own = [part[row : row + 1] for part in (x, mu, speaker, cond)]
        own = [part[:, :, :frames] if part.ndim == 3 else part for part in own]
        expected = eager(model)(own[0], own[1], T[row : row + 1], own[2], own[3])
        torch.testing.assert_close(got[row : row + 1, :, :frames], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_time_of_a_batch_is_the_time_of_each(kind):
    model = flow_model(BOTH[kind], torch.float64)
    x = joined(*inputs(9))
    shared = model.estimator.times(T, torch.float64)
    each = model.estimator.time_of_each(T[1:].repeat(2), torch.float64)
    torch.testing.assert_close(model.estimator(x, shared[1]), model.estimator(x, each), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_compute_the_same(kind, dtype):
    model = flow_model(BOTH[kind])
    x = joined(*inputs(40)).float()
    expected = model.estimator(x, model.estimator.times(T, torch.float32)[0])
    model.for_inference(dtype)
    got = model.estimator(x.to(dtype), model.estimator.times(T, dtype)[0]).float()
    error = (got - expected).square().mean().sqrt() / expected.std()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


def test_chunk_mask_by_hand():
    mask = chunk_mask(torch.tensor([2, 5, 6]), 6, window=1, prompt=1)
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
