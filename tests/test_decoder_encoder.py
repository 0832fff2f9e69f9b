"""The encoders' pieces against plain numpy, element by element, in float64."""

import math

import numpy as np
import pytest
import torch

from flow_models import DIT, UNET, audio_tokens, flow_model, randomise
from stepaudio.decoder.encoder import Distances, EncoderConfig, RelativeAttention, stretch
from stepaudio.decoder.layers import Memory, TimeConv, masked_group_norm
from stepaudio.decoder.tokens import realign


def position(distance, width):
    rates = [10000 ** (-2 * i / width) for i in range(width // 2)]
    return np.array([f(distance * rate) for rate in rates for f in (math.sin, math.cos)])


def attention_by_loops(module, x, key_positions, queries):
    """Attention of the last `queries` of x [S, C], whose positions are given."""
    w = {name: p.detach().numpy() for name, p in module.named_parameters()}
    heads, width = module.heads, x.shape[1]
    head = width // heads

    def linear(name, rows):
        return rows @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    q, k, v = (linear(f"linear_{part}", x).reshape(-1, heads, head) for part in "qkv")
    out = np.zeros((queries, heads, head))
    for row in range(queries):
        i = len(x) - queries + row
        for h in range(heads):
            scores = np.zeros(len(x))
            for j in range(len(x)):
                p = linear("linear_pos", position(key_positions[i] - key_positions[j], width)).reshape(heads, head)[h]
                content = (q[i, h] + w["pos_bias_u"][h]) @ k[j, h]
                scores[j] = (content + (q[i, h] + w["pos_bias_v"][h]) @ p) / math.sqrt(head)
            weights = np.exp(scores - scores.max())
            out[row, h] = (weights / weights.sum()) @ v[:, h]
    return linear("linear_out", out.reshape(queries, width))


@pytest.fixture(params=[True, False])
def attention(request):
    module = RelativeAttention(EncoderConfig(dim=16, heads=2, key_bias=request.param)).double()
    randomise(module)
    return module


def test_attention_is_the_formula(attention):
    x = torch.randn(1, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got, _ = attention(x, Distances.within(7, like=x), None, Memory())
    expected = attention_by_loops(attention, x[0].numpy(), np.arange(7), 7)
    np.testing.assert_allclose(got[0].detach().numpy(), expected, atol=1e-12)


def test_attention_over_a_prompt_far_behind(attention):
    x = torch.randn(1, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    positions = np.array([0, 1, 2, 998, 999, 1000, 1001, 1002, 1003])
    kv = attention(x, Distances.within(9, like=x), None, Memory())[1]
    memory = Memory(prompt=kv[:, :, :, :3], recent=kv[:, :, :, 3:5])
    apart = Distances.between(torch.from_numpy(positions[5:]), torch.from_numpy(positions), like=x)
    got, _ = attention(x[:, 5:], apart, None, memory)
    expected = attention_by_loops(attention, x[0].numpy(), positions, 4)
    np.testing.assert_allclose(got[0].detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_time_conv(stride):
    conv = TimeConv(3, 5, 4, stride=stride).double()
    x = torch.randn(2, 11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w, b = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    expected = [
        [[(w[o] * x[n, t : t + 4].numpy().T).sum() + b[o] for o in range(5)] for t in range(0, 8, stride)]
        for n in range(2)
    ]
    np.testing.assert_allclose(conv(x).detach().numpy(), expected, atol=1e-12)


def test_group_norm_counts_only_what_is_there():
    norm = torch.nn.GroupNorm(2, 6).double()
    randomise(norm)
    x = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([[9], [4]]))[..., None].double()
    got = masked_group_norm(x, norm, mask)
    for row, length in enumerate((9, 4)):
        expected = norm(x[row : row + 1, :length].transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(got[row : row + 1, :length], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(masked_group_norm(x[:1], norm, None), got[:1], atol=1e-12, rtol=0)


def test_stretch_interpolates_between_centres():
    x = torch.tensor([[0.0], [1.0], [4.0]])
    # Output centres 0.5 .. 5.5 of six lie at 0.25, 0.75, ... 2.75 of three, whose own are 0.5, 1.5, 2.5.
    assert stretch(x, 6)[:, 0].tolist() == [0.0, 0.25, 0.75, 1.75, 3.25, 4.0]
    assert stretch(x[:0], 3).tolist() == [[0.0]] * 3


def upsample_encoder_by_numpy(encoder, x):
    """The upsampling encoder in one piece, its attention by loops."""
    w = {name: p.detach().numpy() for name, p in encoder.named_parameters()}

    def norm(name, rows, eps):
        rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + eps)
        return rows * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name, rows):
        return rows @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def conv(name, rows, left, right):
        rows = np.pad(rows, ((left, right), (0, 0)))
        kernel = w[f"{name}.weight"].shape[2]
        steps = range(len(rows) - kernel + 1)
        return np.stack([(w[f"{name}.weight"] * rows[t : t + kernel].T).sum((1, 2)) for t in steps]) + w[f"{name}.bias"]

    def embed(name, rows):
        return norm(f"{name}.out.1", linear(f"{name}.out.0", rows), 1e-5) * math.sqrt(encoder.config.dim)

    def layers(name, modules, rows):
        for i, layer in enumerate(modules):
            rows = rows + attention_by_loops(
                layer.self_attn, norm(f"{name}.{i}.norm_mha", rows, 1e-12), np.arange(len(rows)), len(rows)
            )
            hidden = linear(f"{name}.{i}.feed_forward.w_1", norm(f"{name}.{i}.norm_ff", rows, 1e-12))
            rows = rows + linear(f"{name}.{i}.feed_forward.w_2", hidden / (1 + np.exp(-hidden)))
        return rows

    rows = embed("embed", x)
    ahead = conv("pre_lookahead_layer.conv1", rows, 0, 3)
    rows = rows + conv("pre_lookahead_layer.conv2", np.where(ahead > 0, ahead, 0.01 * ahead), 2, 0)
    rows = layers("encoders", encoder.encoders, rows)
    rows = embed("up_embed", conv("up_layer.conv", rows.repeat(2, axis=0), 4, 0))
    return norm("after_norm", layers("up_encoders", encoder.up_encoders, rows), 1e-5)


def test_upsample_encoder():
    model = flow_model(DIT, torch.float64)
    rows = torch.from_numpy(realign(audio_tokens(3)))[None]
    embedded = model.input_embedding(rows)
    got = model.encoder(embedded, torch.tensor([9]))
    expected = upsample_encoder_by_numpy(model.encoder, embedded[0].detach().numpy())
    assert got.shape == (1, 18, 32)
    np.testing.assert_allclose(got[0].detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("config", [DIT, UNET], ids=["dit", "unet"])
def test_padding_changes_nothing(config):
    model = flow_model(config, torch.float64)
    x = torch.randn(2, 12, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = model.encoder(x, torch.tensor([12, 5]))
    alone = model.encoder(x[1:, :5], torch.tensor([5]))
    torch.testing.assert_close(both[1:, : alone.shape[1]], alone, atol=1e-12, rtol=0)
