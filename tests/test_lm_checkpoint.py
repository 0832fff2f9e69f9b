from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from full_disk import full_disk
from lm_models import tiny_config, tiny_model
from stepaudio.errors import InputError, MissingError, NotFoundError
from stepaudio.lm.checkpoint import INDEX, SINGLE, load, save
from stepaudio.lm.engine import Engine
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.quantize import Int8Linear

TOKENS = torch.tensor([[1, 4, 100, 2000, 5000, 3]])


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def logits(model):
    with torch.no_grad():
        return model(TOKENS)


def test_a_saved_checkpoint_loads_and_generates(model, tmp_path):
    save(model, tmp_path)
    loaded = load(tmp_path, dtype=torch.float32)
    assert loaded.config == model.config
    assert torch.equal(logits(loaded), logits(model))
    replies = []
    for each in (model, loaded):
        engine = Engine(each, slots=1, tokens=64)
        replies.append(engine.generate([1, 4, 7], SamplingParams(max_tokens=8, seed=1)))
        engine.close()
    assert replies[0] == replies[1]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_shards_equal_a_single_file(model, tmp_path):
    save(model, tmp_path / "single")
    save(model, tmp_path / "sharded", shard_bytes=1_000_000)
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "sharded" / INDEX).read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    merged = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert merged.keys() == load_file(tmp_path / "single" / SINGLE).keys()
    one, many = (load(tmp_path / name, dtype=torch.float32) for name in ("single", "sharded"))
    assert torch.equal(logits(one), logits(many))


def test_saving_again_leaves_no_stale_file(model, tmp_path):
    save(model, tmp_path, shard_bytes=1_000_000)
    other = tiny_model(seed=1)
    save(other, tmp_path)
    assert torch.equal(logits(load(tmp_path, dtype=torch.float32)), logits(other))


def test_a_full_disk_keeps_the_model_that_was_there(model, tmp_path):
    save(model, tmp_path)
    with pytest.raises(OSError, match="File too large"), full_disk(100_000):
        save(tiny_model(seed=1), tmp_path)
    assert torch.equal(logits(load(tmp_path, dtype=torch.float32)), logits(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", SINGLE]


def test_tensors_take_the_wanted_dtype(model, tmp_path):
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.slopes.dtype == torch.float32
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())


def test_a_checkpoint_of_the_wanted_dtype_is_mapped_not_copied(model, tmp_path):
    save(model, tmp_path)
    loaded = load(tmp_path, dtype=torch.float32)
    weight = loaded.model.embed_tokens.weight
    path = str((tmp_path / SINGLE).resolve())
    with open("/proc/self/maps") as maps:
        mapped = [
            [int(edge, 16) for edge in line.split()[0].split("-")] for line in maps if line.rstrip().endswith(path)
        ]
    assert any(start <= weight.data_ptr() < stop for start, stop in mapped)


def test_quantised_while_loading(model, tmp_path):
    save(model, tmp_path)
    loaded = load(tmp_path, quantize="int8")
    assert isinstance(loaded.lm_head, Int8Linear)
    assert sum(isinstance(module, Int8Linear) for module in loaded.modules()) == 2 * 7 + 1
    assert loaded.model.embed_tokens.weight.dtype == torch.bfloat16
    with pytest.raises(InputError, match="quantised"):
        save(loaded, tmp_path / "again")
    with pytest.raises(InputError, match="CUDA"):
        load(tmp_path, quantize="int4")


def test_the_released_layout_as_others_write_it(tmp_path):
    """Written with nothing but the format's own library, by the names of the specification."""
    config = tiny_config()
    keys = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_attention_groups vocab_size"
    values = {key: getattr(config, key) for key in keys.split()}
    (tmp_path / "config.json").write_text(json.dumps({**values, "head_dim": 32, "model_type": "step1"}))
    wide = 6 * 32
    shapes = {"q_proj": (wide, 192), "k_proj": (64, 192), "v_proj": (64, 192), "o_proj": (192, wide)}
    mlp = {"gate_proj": (256, 192), "up_proj": (256, 192), "down_proj": (192, 256)}
    tensors = {f"model.layers.{i}.self_attn.{n}.weight": s for i in range(2) for n, s in shapes.items()}
    tensors |= {f"model.layers.{i}.mlp.{n}.weight": s for i in range(2) for n, s in mlp.items()}
    tensors |= {
        f"model.layers.{i}.{n}.weight": (192,)
        for i in range(2)
        for n in ("input_layernorm", "post_attention_layernorm")
    }
    tensors |= {
        "model.embed_tokens.weight": (5440, 192),
        "lm_head.weight": (5440, 192),
        "model.norm.weight": (192,),
    }
    save_file({name: torch.randn(shape).bfloat16() * 0.05 for name, shape in tensors.items()}, tmp_path / SINGLE)
    assert logits(load(tmp_path)).isfinite().all()


def test_checkpoints_that_cannot_be_loaded(model, tmp_path):
    with pytest.raises(MissingError):
        load(tmp_path / "none")
    with pytest.raises(NotFoundError, match=r"config\.json"):
        load(tmp_path)
    save(model, tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    removed = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(InputError, match=r"lacks model\.norm\.weight"):
        load(tmp_path)
    save_file(tensors | {"model.norm.weight": removed, "rotary.freq": removed.clone()}, tmp_path / SINGLE)
    with pytest.raises(InputError, match=r"unknown rotary\.freq"):
        load(tmp_path)
    save_file(tensors | {"model.norm.weight": removed[:-1].clone()}, tmp_path / SINGLE)
    with pytest.raises(InputError, match=r"model\.norm\.weight has shape \[191\]"):
        load(tmp_path)
    (tmp_path / SINGLE).write_bytes(b"not tensors")
    with pytest.raises(InputError, match="not a safetensors file"):
        load(tmp_path)
    (tmp_path / SINGLE).unlink()
    with pytest.raises(MissingError, match="neither"):
        load(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(InputError, match="not a safetensors index"):
        load(tmp_path)


def test_a_missing_shard_is_named(model, tmp_path):
    save(model, tmp_path, shard_bytes=1_000_000)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(MissingError, match="model-00002"):
        load(tmp_path)


def test_an_index_cannot_point_out_of_its_folder(model, tmp_path):
    save(model, tmp_path / "other")
    inside = tmp_path / "inside"
    inside.mkdir()
    with safe_open(tmp_path / "other" / SINGLE, framework="pt") as file:
        weight_map = dict.fromkeys(file.keys(), f"../other/{SINGLE}")
    (inside / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    (inside / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(MissingError):
        load(inside)
