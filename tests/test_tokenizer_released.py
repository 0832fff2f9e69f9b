"""A checkpoint in the released layout gives the codes that a plain numpy forward pass derives from it."""

import shutil

import numpy as np
import pytest
import torch

from oracles import released_tokenizer, tokenizer_numpy
from oracles.released_tokenizer import speech_like
from stepaudio.errors import InputError, MissingError
from stepaudio.tokenizer import linguistic, s3, semantic
from stepaudio.tokenizer.branch import encode
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.tokenizer.sanm import SanmConfig, SanmEncoder

SIZES = released_tokenizer.Sizes()


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, released_tokenizer.write(folder, SIZES)


def oracle_linguistic(weights, samples):
    return tokenizer_numpy.linguistic_codes(
        samples, weights.encoder, weights.shift, weights.scale, weights.centroids, heads=SIZES.heads
    )


@pytest.mark.parametrize("samples", [0, 399, 400, 3840, 3841, 4500, 7 * 3840, 25_000])
def test_linguistic_codes_are_the_oracles(released, samples):
    folder, weights = released
    audio = speech_like(samples / 16000)
    codes = encode(linguistic.load_released(folder), audio)
    assert codes.tolist() == oracle_linguistic(weights, audio)


def test_linguistic_codes_vary(released):
    folder, _ = released
    codes = encode(linguistic.load_released(folder), speech_like(4))
    assert len(set(codes.tolist())) > 20


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("samples", [100, 480, 16_000, 17_000])
def test_semantic_codes_are_the_oracles(released, backend, samples):
    folder, weights = released
    audio = speech_like(samples / 16000, seed=1)
    codes = encode(semantic.load_released(folder, backend=backend), audio)
    expected = tokenizer_numpy.semantic_codes(audio, weights.s3, blocks=SIZES.s3_blocks) if samples >= 480 else []
    assert codes.tolist() == expected


def test_semantic_length(released):
    folder, _ = released
    assert len(encode(semantic.load_released(folder), speech_like(30))) == 750


def test_full_size_paraformer_has_the_released_tensors():
    with torch.device("meta"):
        encoder = SanmEncoder(SanmConfig())
    ours = {f"encoder.{name}": tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    full = released_tokenizer.Sizes(dim=512, ffn=2048, blocks=50)
    assert ours == released_tokenizer.paraformer_shapes(full)
    assert ours["encoder.encoders0.0.self_attn.linear_q_k_v.weight"] == (1536, 560)
    assert ours["encoder.encoders.48.self_attn.fsmn_block.weight"] == (512, 1, 11)


def test_full_size_s3_has_the_released_shapes():
    with torch.device("meta"):
        state = s3.S3Encoder(s3.S3Config()).state_dict()
    assert tuple(state["conv1.weight"].shape) == (1280, 128, 3)
    assert tuple(state["positional_embedding"].shape) == (1500, 1280)
    assert tuple(state["blocks.5.up.weight"].shape) == (5120, 1280)
    assert len({name.split(".")[1] for name in state if name.startswith("blocks.")}) == 6


def test_dual_modes(released):
    folder, weights = released
    audio = speech_like(1.05)
    with DualTokenizer.load(folder) as tokenizer:
        offline = tokenizer.encode(audio)
        loud = audio * np.float32(0.999 / np.abs(audio).max())
        assert offline.linguistic.tolist() == oracle_linguistic(weights, loud)
        assert tokenizer.encode(audio * np.float32(0.5)).semantic.tolist() == offline.semantic.tolist()
        # 1.05 s is 4 steps and 1440 samples, which the released tail rule keeps; at 1 s it drops 640.
        assert len(tokenizer.encode(audio, mode="released").linguistic) == len(offline.linguistic) == 18
        assert len(tokenizer.encode(audio[:16000], mode="released").linguistic) == 16
        with pytest.raises(InputError, match="mode"):
            tokenizer.encode(audio, mode="fast")


def test_released_mode_cuts_at_30_seconds(released):
    folder, _ = released
    audio = speech_like(31)
    with DualTokenizer.load(folder) as tokenizer:
        loud = audio * np.float32(0.999 / np.abs(audio).max())
        pieces = [encode(tokenizer.semantic, loud[:480_000]), encode(tokenizer.semantic, loud[480_000:])]
        assert tokenizer.encode(audio, mode="released").semantic.tolist() == np.concatenate(pieces).tolist()
        offline = tokenizer.encode(audio).semantic
        assert offline[:690].tolist() == encode(tokenizer.semantic, loud[:480_000])[:690].tolist()


@pytest.mark.parametrize(
    "name",
    ["linguistic_tokenizer.npy", "speech_tokenizer_v1.onnx", f"{released_tokenizer.PARAFORMER}/am.mvn"],
)
def test_missing_file(tmp_path, name):
    released_tokenizer.write(tmp_path / "t", SIZES)
    (tmp_path / "t" / name).unlink()
    with pytest.raises(MissingError):
        DualTokenizer.load(tmp_path / "t")


def test_files_that_do_not_fit_together(tmp_path):
    released_tokenizer.write(tmp_path / "t", SIZES)
    np.save(tmp_path / "t" / "linguistic_tokenizer.npy", np.zeros((1024, 7), dtype=np.float32))
    with pytest.raises(InputError, match="linguistic_tokenizer"):
        DualTokenizer.load(tmp_path / "t")


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize(
    "name",
    [
        "linguistic_tokenizer.npy",
        "speech_tokenizer_v1.onnx",
        *(f"{released_tokenizer.PARAFORMER}/{name}" for name in ("model.pt", "am.mvn", "config.yaml")),
    ],
)
def test_damaged_file(released, tmp_path, name, backend):
    shutil.copytree(released[0], tmp_path / "t")
    (tmp_path / "t" / name).write_bytes(b"\x80\x04nothing: [of use")
    with pytest.raises(InputError):
        DualTokenizer.load(tmp_path / "t", semantic_backend=backend)


def test_pickled_code_is_not_run(tmp_path):
    released_tokenizer.write(tmp_path / "t", SIZES)

    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"encoder.x": Trap()}, tmp_path / "t" / released_tokenizer.PARAFORMER / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt"):
        DualTokenizer.load(tmp_path / "t")
