from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lm_models import tiny_config, tiny_model
from stepaudio.errors import InputError, NotFoundError
from stepaudio.lm.step1 import PRESETS, Config, Step1, alibi_slopes, parameter_count, preset


def test_parameter_counts_are_those_of_the_released_models():
    assert parameter_count(preset("tts_3b")) == 3_529_706_496
    assert parameter_count(preset("chat_130b")) == 131_946_590_208


def test_tensor_names_and_shapes_are_those_of_the_released_3b():
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Step1(preset("tts_3b")).state_dict().items()}
    expected = {
        "model.embed_tokens.weight": (74752, 3072),
        "model.norm.weight": (3072,),
        "lm_head.weight": (74752, 3072),
    }
    for i in range(32):
        layer = f"model.layers.{i}."
        expected |= {
            f"{layer}self_attn.q_proj.weight": (3072, 3072),
            f"{layer}self_attn.k_proj.weight": (256, 3072),
            f"{layer}self_attn.v_proj.weight": (256, 3072),
            f"{layer}self_attn.o_proj.weight": (3072, 3072),
            f"{layer}mlp.gate_proj.weight": (8192, 3072),
            f"{layer}mlp.up_proj.weight": (8192, 3072),
            f"{layer}mlp.down_proj.weight": (3072, 8192),
            f"{layer}input_layernorm.weight": (3072,),
            f"{layer}post_attention_layernorm.weight": (3072,),
        }
    assert shapes == expected
    assert len(shapes) == 291


def test_chat_model_has_795_tensors():
    with torch.device("meta"):
        assert len(Step1(preset("chat_130b")).state_dict()) == 795


def test_slopes_of_48_heads():
    slopes = alibi_slopes(preset("tts_3b")).double()
    assert slopes.shape == (48,)
    expected = {1: 2 ** (-1 / 4), 32: 2**-8, 33: 2 ** (-1 / 8), 48: 2 ** (-31 / 8)}
    for head, slope in expected.items():
        assert slopes[head - 1] == pytest.approx(slope, rel=1e-6)
    assert slopes[0] * 4**0.5 == pytest.approx(1.6818, abs=5e-5)  # the bias of head 1 at distance 4 ...
    assert slopes[0] * 16**0.5 == pytest.approx(3.3636, abs=5e-5)  # ... and at 16, negated


def test_slopes_of_a_power_of_two_and_of_96_heads():
    assert torch.allclose(alibi_slopes(tiny_config(num_attention_heads=8)), 2.0 ** -torch.arange(1.0, 9.0))
    slopes = alibi_slopes(preset("chat_130b"))
    assert slopes.shape == (96,)
    assert slopes[63] == 2**-8
    assert slopes[64] == pytest.approx(2 ** (-4 / 64))


def test_position_interpolation_leaves_the_steepest_slope_and_divides_the_flattest():
    plain = alibi_slopes(tiny_config(num_attention_heads=8))
    stretched = alibi_slopes(tiny_config(num_attention_heads=8, max_pos_interp_ratio=4.0))
    assert stretched[0] == plain[0]
    assert stretched[-1] == pytest.approx(plain[-1] / 2)  # sqrt(4 ** 1)
    assert stretched[3] == pytest.approx(plain[3] / 4 ** (0.5 * 3 / 7))


def test_explicit_slopes_override():
    config = tiny_config(alibi_slopes=(0.5,) * 6, max_pos_interp_ratio=4.0)
    assert alibi_slopes(config).tolist() == [0.5] * 6


def test_config_survives_json_and_reads_other_names():
    config = tiny_config(alibi_slopes=(0.5,) * 6)
    written = json.loads(json.dumps(config.to_dict()))
    assert Config.from_dict(written) == config
    assert written["tie_word_embeddings"] is False
    assert written["architectures"] == ["Step1ForCausalLM"]
    other = Config.from_dict({"num_key_value_heads": 4, "max_position_embeddings": 77, "torch_dtype": "bfloat16"})
    assert (other.num_attention_groups, other.max_seq_len) == (4, 77)
    defaults = Config.from_dict({})
    assert (defaults.hidden_size, defaults.intermediate_size, defaults.num_attention_heads) == (
        5120,
        13312,
        40,
    )
    assert (defaults.num_attention_groups, defaults.num_hidden_layers, defaults.vocab_size) == (8, 48, 65536)
    assert (defaults.max_seq_len, defaults.head_dim) == (4096, 128)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "llama"},
        {"num_attention_heads": 6, "num_attention_groups": 4},
        {"hidden_size": "wide"},
        {"num_hidden_layers": 0},
        {"alibi_slopes": [1.0]},
    ],
)
def test_a_config_that_cannot_be_used_is_an_input_error(values):
    with pytest.raises(InputError):
        Config.from_dict(values)


def test_config_files_that_cannot_be_read(tmp_path):
    with pytest.raises(NotFoundError):
        Config.read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Config.read(tmp_path / "config.json")
    with pytest.raises(NotFoundError, match="nano"):
        preset("giant")


def test_presets_grow():
    counts = [parameter_count(config) for config in PRESETS.values()]
    assert counts == sorted(counts)
    assert counts[0] < 10e6
    assert 100e6 < counts[3] < 130e6


def forward_in_numpy(model: Step1, tokens: list[int]) -> np.ndarray:
    """The whole network from the formulas, float64, using only the checkpoint's tensors."""
    from oracles.attention import attention

    config = model.config
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight

    slopes = alibi_slopes(config).double().numpy()
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config.num_hidden_layers):
        p = f"model.layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = ((h @ w[f"{p}self_attn.{n}_proj.weight"].T).reshape(len(tokens), -1, config.head_dim) for n in "qkv")
        x = x + attention(q, k, v, slopes).reshape(len(tokens), -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate, up = (h @ w[f"{p}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def test_forward_equals_the_formulas():
    model = tiny_model()
    tokens = torch.randint(0, 5000, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(tokens)
    for row, expected in zip(
        logits.double().numpy(), map(lambda t: forward_in_numpy(model, t), tokens.tolist()), strict=True
    ):
        np.testing.assert_allclose(row, expected, atol=2e-5 * np.abs(expected).max())


def test_initialisation_is_seeded():
    a, b, c = (tiny_model(seed=seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_model_trains():
    model = tiny_model()
    tokens = torch.randint(0, 5000, (1, 6))
    loss = torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:])
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
