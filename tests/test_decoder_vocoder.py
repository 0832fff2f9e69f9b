import dataclasses

import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from oracles import hift_plain
from pieces import sizes, spoken
from stepaudio.decoder.convolution import Stream
from stepaudio.decoder.vocoder import HIFT_22K, HIFT_24K, Hift, hift_config, load_hift, save_hift
from stepaudio.errors import InputError, MissingError

SMALL = {"channels": 32, "pitch_channels": 8}
GENERATIONS = [dataclasses.replace(config, **SMALL) for config in (HIFT_22K, HIFT_24K)]


def small(config):
    torch.manual_seed(0)
    model = Hift(config).eval()
    # A fresh network predicts no pitch to speak of; this one is voiced about half of the time and not too loud.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
        model.f0_predictor.classifier.weight.mul_(100)
        model.conv_post.bias[:9] -= 2
    return model


def mels(frames, rows=1, seed=0):
    return torch.randn(rows, 80, frames, generator=torch.Generator().manual_seed(seed)) - 4


@pytest.mark.parametrize("config", GENERATIONS)
@torch.inference_mode()
def test_the_network_is_the_plain_one(config, tmp_path):
    model, mel = small(config), mels(9, rows=2)
    save_hift(model, tmp_path / "hift.pt")
    tensors = torch.load(tmp_path / "hift.pt", weights_only=True)
    pitch = hift_plain.pitch(tensors, mel)
    assert_close(model.pitch(mel), pitch)
    assert (pitch > 10).any()
    source = model.m_source(pitch, Stream().following(last=True))
    expected = hift_plain.filter(
        tensors, mel, source, rates=config.upsample_rates, source_kernels=config.source_kernels
    )
    samples, _ = load_hift(tmp_path / "hift.pt")(mel)
    assert samples.shape == (2, 9 * config.hop)
    assert 0.01 < samples.abs().max() < 0.99
    assert_close(samples, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", GENERATIONS)
@settings(max_examples=4, deadline=None)
@given(sizes)
@torch.inference_mode()
def test_pieces_are_the_whole(config, cuts):
    model, mel = small(config), mels(26)
    assert_close(spoken(model, mel, cuts, seed=3), model(mel, Stream(3))[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("config", GENERATIONS)
@torch.inference_mode()
def test_samples_come_after_the_lookahead_that_is_declared(config):
    model = small(config)
    for frames in (model.lookahead, model.lookahead + 1, model.lookahead + 5):
        samples, _ = model(mels(frames), last=False)
        whole = samples.shape[1] // config.hop
        assert whole == frames - model.lookahead


@torch.inference_mode()
def test_rows_of_a_batch_are_what_they_are_alone():
    model, mel = small(GENERATIONS[1]), mels(8, rows=3)
    together, _ = model(mel)
    for row in range(3):
        assert_close(together[row : row + 1], model(mel[row : row + 1])[0], rtol=0, atol=2e-5)


@torch.inference_mode()
def test_no_frames_give_no_samples_and_a_single_one_its_hop():
    for config in GENERATIONS:
        model = small(config)
        assert model(mels(0))[0].shape == (1, 0)
        assert model(mels(1))[0].shape == (1, config.hop)


def test_it_can_be_trained():
    model = small(GENERATIONS[1]).train()
    samples, _ = model(mels(6, rows=2))
    (samples.square().mean() + model.pitch(mels(6)).mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- released files


def released_shapes(rates, up_kernels, source_kernels):
    """Tensor names and shapes of a released `hift.pt`, written out."""
    shapes = {"m_source.l_linear.weight": (1, 9), "m_source.l_linear.bias": (1,)}

    def normed(name, outputs, inputs, kernel, bias=None):
        shapes[f"{name}.parametrizations.weight.original0"] = (outputs, 1, 1)
        shapes[f"{name}.parametrizations.weight.original1"] = (outputs, inputs, kernel)
        shapes[f"{name}.bias"] = (bias or outputs,)

    def block(name, channels, kernel):
        for i in range(3):
            normed(f"{name}.convs1.{i}", channels, channels, kernel)
            normed(f"{name}.convs2.{i}", channels, channels, kernel)
            shapes[f"{name}.activations1.{i}.alpha"] = shapes[f"{name}.activations2.{i}.alpha"] = (channels,)

    normed("conv_pre", 512, 80, 7)
    below = 1
    for rate in rates:
        below *= rate
    channels = 512
    for level, rate in enumerate(rates):
        below //= rate
        normed(f"ups.{level}", channels, channels // 2, up_kernels[level], bias=channels // 2)
        channels //= 2
        shapes[f"source_downs.{level}.weight"] = (channels, 18, 2 * below if below > 1 else 1)
        shapes[f"source_downs.{level}.bias"] = (channels,)
        block(f"source_resblocks.{level}", channels, source_kernels[level])
        for i, kernel in enumerate((3, 7, 11)):
            block(f"resblocks.{3 * level + i}", channels, kernel)
    normed("conv_post", 18, channels, 7)
    for i in range(5):
        normed(f"f0_predictor.condnet.{2 * i}", 512, 512 if i else 80, 3)
    shapes |= {"f0_predictor.classifier.weight": (1, 512), "f0_predictor.classifier.bias": (1,)}
    return shapes


@pytest.mark.parametrize(
    ("config", "shapes", "megabytes"),
    [
        (HIFT_22K, released_shapes((8, 8), (16, 16), (7, 11)), 81.9),
        (HIFT_24K, released_shapes((8, 5, 3), (16, 11, 7), (7, 7, 11)), None),
    ],
)
def test_names_and_shapes_are_the_released_ones(config, shapes, megabytes, tmp_path):
    path = tmp_path / "hift.pt"
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(tensors, path)
    if megabytes:
        assert path.stat().st_size / 1e6 == pytest.approx(megabytes, abs=0.2)
    model = load_hift(path)
    assert model.config == config
    conv = model.resblocks[0].convs1[0].weight
    name = "resblocks.0.convs1.0.parametrizations.weight.original"
    assert_close(conv, torch._weight_norm(tensors[f"{name}1"], tensors[f"{name}0"], 0))
    save_hift(model, path)
    assert {name: tuple(tensor.shape) for name, tensor in torch.load(path, weights_only=True).items()} == shapes


def test_older_names_and_training_prefixes_are_read(tmp_path):
    model, path = small(GENERATIONS[0]), tmp_path / "hift.pt"
    save_hift(model, path)
    tensors = torch.load(path, weights_only=True)
    old = {
        "generator."
        + name.replace(".parametrizations.weight.original0", ".weight_g").replace(
            ".parametrizations.weight.original1", ".weight_v"
        ): tensor
        for name, tensor in tensors.items()
    }
    torch.save(old, path)
    for (name, ours), theirs in zip(load_hift(path).state_dict().items(), model.state_dict().values(), strict=True):
        assert_close(ours, theirs, msg=name)


def test_the_yaml_section_is_read():
    section = {
        "in_channels": 80,
        "base_channels": 512,
        "nb_harmonics": 8,
        "sampling_rate": 22050,
        "upsample_rates": [8, 8],
        "upsample_kernel_sizes": [16, 16],
        "istft_params": {"n_fft": 16, "hop_len": 4},
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "source_resblock_kernel_sizes": [7, 11],
        "f0_predictor": {"num_class": 1, "in_channels": 80, "cond_channels": 512},
    }
    assert hift_config(section, HIFT_24K) == HIFT_22K
    assert hift_config({}, HIFT_24K) == HIFT_24K


class Danger:
    def __reduce__(self):
        return (print, ("code in the file was run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv_pre.weight": torch.zeros(4, 80, 7)}, "not a HiFT vocoder"),
        ({"conv_pre.weight_v": torch.zeros(4, 80, 7)}, "but not conv_pre.weight_g"),
        ([torch.zeros(1)], "table of tensors"),
        ({"conv_pre.weight": Danger()}, "more than tensors"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path, capsys):
    torch.save(content, tmp_path / "hift.pt")
    with pytest.raises(InputError, match=message):
        load_hift(tmp_path / "hift.pt")
    assert "was run" not in capsys.readouterr().out


def test_damaged_and_missing_files_are_refused(tmp_path):
    with pytest.raises(MissingError, match="missing"):
        load_hift(tmp_path / "hift.pt")
    (tmp_path / "hift.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="damaged"):
        load_hift(tmp_path / "hift.pt")
