"""Released flow files: their names and shapes, written, read and run; our own; and damaged ones."""

import pickle

import pytest
import torch

from flow_models import BOTH, audio_tokens, flow_model, reference
from stepaudio.decoder.checkpoint import load_flow, read_yaml, released_config, save_flow, save_released
from stepaudio.decoder.chunks import flow_stream, read_voice
from stepaudio.decoder.flow import RELEASED_22K, RELEASED_24K, Sampling, build
from stepaudio.errors import InputError, MissingError


def shapes(config):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}


def linear(name, outputs, inputs, bias=True):
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def conv(name, outputs, inputs, kernel):
    return {f"{name}.weight": (outputs, inputs, kernel), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conformer(name, dim=512, heads=8, ffn=2048):
    layer = {
        f"{name}.self_attn.pos_bias_u": (heads, dim // heads),
        f"{name}.self_attn.pos_bias_v": (heads, dim // heads),
    }
    for part in ("q", "k", "v", "out"):
        layer |= linear(f"{name}.self_attn.linear_{part}", dim, dim)
    layer |= linear(f"{name}.self_attn.linear_pos", dim, dim, bias=False)
    layer |= linear(f"{name}.feed_forward.w_1", ffn, dim) | linear(f"{name}.feed_forward.w_2", dim, ffn)
    return layer | norm(f"{name}.norm_ff", dim) | norm(f"{name}.norm_mha", dim)


def common():
    return linear("spk_embed_affine_layer", 80, 192) | linear("encoder_proj", 80, 512)


def released_24k():
    """The tensors of EditX's flow.pt, as published."""
    names = {"input_embedding.embedding.weight": (5121, 256)} | common()
    for place in ("embed", "up_embed"):
        names |= linear(f"encoder.{place}.out.0", 512, 512) | norm(f"encoder.{place}.out.1", 512)
    names |= conv("encoder.pre_lookahead_layer.conv1", 512, 512, 4) | conv("encoder.up_layer.conv", 512, 512, 5)
    names |= conv("encoder.pre_lookahead_layer.conv2", 512, 512, 3) | norm("encoder.after_norm", 512)
    for n in range(6):
        names |= conformer(f"encoder.encoders.{n}")
    for n in range(4):
        names |= conformer(f"encoder.up_encoders.{n}")
    dit = "decoder.estimator"
    names |= linear(f"{dit}.t_embedder.mlp.0", 512, 256) | linear(f"{dit}.t_embedder.mlp.2", 512, 512)
    names |= linear(f"{dit}.in_proj", 512, 320)
    for n in range(16):
        block = f"{dit}.blocks.{n}"
        for part in ("to_q", "to_k", "to_v", "proj"):
            names |= linear(f"{block}.attn.{part}", 512, 512)
        names |= norm(f"{block}.attn.q_norm", 64) | norm(f"{block}.attn.k_norm", 64)
        names |= linear(f"{block}.mlp.fc1", 2048, 512) | linear(f"{block}.mlp.fc2", 512, 2048)
        names |= conv(f"{block}.conv.block.1", 512, 512, 3) | norm(f"{block}.conv.block.3", 512)
        names |= conv(f"{block}.conv.block.6", 512, 512, 3) | linear(f"{block}.adaLN_modulation.1", 4608, 512)
    names |= linear(f"{dit}.final_layer.adaLN_modulation.1", 1024, 512)
    return names | linear(f"{dit}.final_layer.linear", 80, 512)


def unet_stage(name, inputs):
    names = linear(f"{name}.0.mlp.1", 256, 1024) | conv(f"{name}.0.res_conv", 256, inputs, 1)
    for block, width in (("block1", inputs), ("block2", 256)):
        names |= conv(f"{name}.0.{block}.block.0", 256, width, 3) | norm(f"{name}.0.{block}.block.1", 256)
    for n in range(4):
        part = f"{name}.1.{n}"
        names |= norm(f"{part}.norm1", 256) | norm(f"{part}.norm3", 256)
        for which in ("q", "k", "v"):
            names |= linear(f"{part}.attn1.to_{which}", 512, 256, bias=False)
        names |= linear(f"{part}.attn1.to_out.0", 256, 512)
        names |= linear(f"{part}.ff.net.0.proj", 1024, 256) | linear(f"{part}.ff.net.2", 256, 1024)
    return names


def released_22k():
    """The tensors of the flow.pt of the 22.05 kHz decoder: CosyVoice-300M's with a vocabulary of 5120."""
    names = {"input_embedding.weight": (5120, 512)} | common()
    names |= (
        linear("encoder.embed.out.0", 512, 512) | norm("encoder.embed.out.1", 512) | norm("encoder.after_norm", 512)
    )
    for n in range(6):
        names |= conformer(f"encoder.encoders.{n}")
    for n in range(0, 12, 3):
        names |= conv(f"length_regulator.model.{n}", 80, 80, 3) | norm(f"length_regulator.model.{n + 1}", 80)
    names |= conv("length_regulator.model.12", 80, 80, 1)
    unet = "decoder.estimator"
    names |= linear(f"{unet}.time_mlp.linear_1", 1024, 320) | linear(f"{unet}.time_mlp.linear_2", 1024, 1024)
    for n, inputs in enumerate((320, 256)):
        names |= unet_stage(f"{unet}.down_blocks.{n}", inputs) | unet_stage(f"{unet}.up_blocks.{n}", 512)
    for n in range(12):
        names |= unet_stage(f"{unet}.mid_blocks.{n}", 256)
    names |= conv(f"{unet}.down_blocks.0.2.conv", 256, 256, 3) | conv(f"{unet}.down_blocks.1.2", 256, 256, 3)
    names |= conv(f"{unet}.up_blocks.0.2.conv", 256, 256, 4) | conv(f"{unet}.up_blocks.1.2", 256, 256, 3)
    names |= conv(f"{unet}.final_block.block.0", 256, 256, 3) | norm(f"{unet}.final_block.block.1", 256)
    return names | conv(f"{unet}.final_proj", 80, 256, 1)


def test_names_and_shapes_are_the_released_ones():
    assert shapes(RELEASED_24K) == released_24k()
    assert shapes(RELEASED_22K) == released_22k()
    # The released 22.05 kHz file is 422 MB of float32.
    assert 4 * sum(torch.Size(shape).numel() for shape in released_22k().values()) == pytest.approx(422e6, rel=0.01)


@pytest.mark.parametrize(("config", "names"), [(RELEASED_24K, released_24k), (RELEASED_22K, released_22k)])
def test_a_released_file_shows_its_configuration(config, names):
    tensors = {name: torch.empty(shape, device="meta") for name, shape in names().items()}
    assert released_config(tensors, {}, "flow.pt") == config


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("save", [save_released, save_flow])
def test_written_read_and_run(tmp_path, kind, save):
    model = flow_model(BOTH[kind])
    save(model, tmp_path)
    loaded = load_flow(tmp_path)
    if save is save_flow:
        assert loaded.config == model.config
    expected = model.generate([audio_tokens(4)], [reference(2)], Sampling(steps=2))[0]
    got = loaded.generate([audio_tokens(4)], [reference(2)], Sampling(steps=2))[0]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)  # memory-mapped weights are aligned otherwise
    own = flow_stream(loaded, read_voice(loaded, reference(2), Sampling(steps=2)))
    mel = torch.cat([own.push(audio_tokens(9)), own.flush()], dim=1)
    assert mel.shape[1] == model.frames(audio_tokens(9))


@pytest.mark.parametrize("kind", BOTH)
def test_counters_among_the_weights_are_ignored(tmp_path, kind):
    save_released(flow_model(BOTH[kind]), tmp_path)
    tensors = torch.load(tmp_path / "flow.pt", weights_only=True)
    torch.save(tensors | {"epoch": 3, "step": 100}, tmp_path / "flow.pt")
    load_flow(tmp_path)


def test_yaml_with_tags_that_name_objects(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "__set_seed: !apply:random.seed [1986]\n"
        "sample_rate: 22050\n"
        "flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec\n"
        "  vocab_size: 5120\n"
        "  decoder: !new:x\n"
        "    estimator: !new:y\n"
        "      num_heads: 8\n"
        "feat: !name:matcha.mel\n"
        "  sampling_rate: !ref <sample_rate>\n"
        "pipeline: [!ref <feat>, !ref <unknown>]\n"
    )
    values = read_yaml(tmp_path / "c.yaml")
    assert values["flow"] == {"vocab_size": 5120, "decoder": {"estimator": {"num_heads": 8}}}
    assert values["feat"]["sampling_rate"] == 22050
    assert values["pipeline"][1] == "<unknown>"


def test_missing_and_damaged(tmp_path):
    with pytest.raises(MissingError, match=r"flow\.pt"):
        load_flow(tmp_path)
    save_released(flow_model(BOTH["dit"]), tmp_path)
    good = torch.load(tmp_path / "flow.pt", weights_only=True)
    for change in (
        {"encoder_proj.weight": None},
        {"decoder.estimator.blocks.1.attn.proj.bias": None},
        {"surprise": torch.zeros(1)},
        {"encoder_proj.bias": torch.zeros(7)},
    ):
        torch.save({n: t for n, t in (good | change).items() if t is not None}, tmp_path / "flow.pt")
        with pytest.raises(InputError):
            load_flow(tmp_path)
    for content in (b"", b"not a checkpoint", pickle.dumps([1])):
        (tmp_path / "flow.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"flow\.pt"):
            load_flow(tmp_path)
    torch.save(good, tmp_path / "flow.pt")
    (tmp_path / "cosyvoice.yaml").write_text("a: [")
    with pytest.raises(InputError, match="YAML"):
        load_flow(tmp_path)
    (tmp_path / "cosyvoice.yaml").unlink()
    with pytest.raises(MissingError, match="yaml"):
        load_flow(tmp_path)
    (tmp_path / "flow.safetensors").write_bytes(b"{}")
    with pytest.raises(InputError, match="safetensors"):
        load_flow(tmp_path)


def test_pickled_code_is_not_run(tmp_path):
    save_released(flow_model(BOTH["dit"]), tmp_path)

    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"encoder_proj.weight": Trap()}, tmp_path / "flow.pt")
    with pytest.raises(InputError, match=r"flow\.pt"):
        load_flow(tmp_path)


def test_a_packed_model_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="inference"):
        save_flow(flow_model(BOTH["dit"]).for_inference(torch.float32), tmp_path)
