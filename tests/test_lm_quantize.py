from __future__ import annotations

import pytest
import torch

from lm_models import tiny_model
from stepaudio.errors import InputError
from stepaudio.lm.quantize import INT4_GROUP, Int8Linear, quantize, quantize_int4, quantized_linear
from stepaudio.lm.step1 import Step1, preset


def test_int8_rounds_to_half_a_step_of_its_row():
    weight = torch.randn(20, 64) * torch.logspace(-3, 2, 20)[:, None]
    layer = Int8Linear(weight)
    restored = layer.weight.float() * layer.scale[:, None]
    assert ((restored - weight).abs() <= layer.scale[:, None] * 0.5001).all()
    assert layer.weight.abs().amax(dim=1).eq(127).all()


def test_a_row_of_zeros_stays_zero():
    layer = Int8Linear(torch.zeros(2, 64))
    assert layer(torch.randn(3, 64)).eq(0).all()


def test_int8_layer_equals_its_dequantised_matrix():
    layer = Int8Linear(torch.randn(20, 64))
    x = torch.randn(5, 64)
    torch.testing.assert_close(layer(x), x @ (layer.weight.float() * layer.scale[:, None]).T)


def test_loss_of_a_model_in_int8_is_small():
    """How far int8 moves the predicted distribution: KL divergence in nats per token, and agreement."""
    model = Step1(preset("nano")).initialise(0)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # a fresh model's predictions are nearly flat; sharpen them
        tokens = torch.randint(0, 9000, (2, 64), generator=torch.Generator().manual_seed(0))
        exact = model(tokens).log_softmax(-1)
        quantize(model, "int8")
        rounded = model(tokens).log_softmax(-1)
    divergence = (exact.exp() * (exact - rounded)).sum(-1).mean()
    assert exact.exp().amax(-1).mean() > 0.02
    assert 0 < divergence < 2e-3
    assert (exact.argmax(-1) == rounded.argmax(-1)).float().mean() > 0.95


def test_int4_levels_restore_the_weight():
    weight = torch.randn(6, 2 * INT4_GROUP)
    levels, scales = quantize_int4(weight)
    assert levels.shape == weight.shape
    assert 0 <= levels.min() <= levels.max() <= 15
    assert scales.shape == (2, 6, 2)
    step, middle = (scales[..., i].T.repeat_interleave(INT4_GROUP, dim=1) for i in range(2))
    restored = (levels - 8) * step + middle
    assert ((restored - weight).abs() <= step * 0.5001).all()


def test_int4_needs_a_gpu_and_names_are_checked():
    with pytest.raises(InputError, match="CUDA"):
        quantized_linear(torch.randn(8, 128), "int4")
    with pytest.raises(InputError, match="int3"):
        quantize(tiny_model(), "int3")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_int4_layer_on_a_gpu():
    weight = torch.randn(256, 512, device="cuda")
    layer = quantized_linear(weight, "int4")
    levels, scales = quantize_int4(weight)
    step, middle = (scales[..., i].T.repeat_interleave(INT4_GROUP, dim=1) for i in range(2))
    x = torch.randn(3, 512, device="cuda", dtype=torch.bfloat16)
    expected = x.float() @ ((levels - 8) * step + middle).T
    assert (layer(x).float() - expected).abs().max() < 0.02 * expected.abs().max()
