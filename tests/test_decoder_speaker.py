import numpy as np
import onnxruntime
import pytest
import torch

from oracles.released_campplus import Sizes, write
from stepaudio.decoder.speaker import CampPlus, SpeakerEmbedding, load_campplus, load_speaker
from stepaudio.errors import AudioError, InputError, MissingError


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp("speaker") / "campplus.onnx"
    write(path, Sizes())
    return path


def voice(seconds=1.0, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    return (0.1 * np.sin(2 * np.pi * 150 * t) * (1 + np.sin(5 * t)) + 0.01 * rng.normal(size=len(t))).astype(np.float32)


@pytest.mark.parametrize("frames", [9, 200, 201, 450])
def test_the_module_is_the_released_graph(released, frames):
    features = np.random.default_rng(0).normal(0, 1, (2, frames, 80)).astype(np.float32)
    session = onnxruntime.InferenceSession(released, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": features})[0]
    model = load_campplus(released)
    assert (model.config.layers, model.config.dim, model.config.bands) == ((2, 3, 2), 12, 80)
    with torch.inference_mode():
        np.testing.assert_allclose(model(torch.from_numpy(features)).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_default_sizes_are_the_released_ones():
    model = CampPlus()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["xvector.tdnn.linear.weight"] == (128, 320, 5)
    assert shapes["xvector.block1.tdnnd12.cam_layer.linear1.weight"] == (64, 128, 1)
    assert shapes["xvector.block2.tdnnd24.cam_layer.linear_local.weight"] == (32, 128, 3)
    assert shapes["xvector.transit1.linear.weight"] == (256, 512, 1)
    assert shapes["xvector.dense.linear.weight"] == (192, 1024, 1)


def test_both_backends_agree_and_give_unit_vectors(released):
    vectors = [load_speaker(released, backend=backend).embed(voice()) for backend in ("onnx", "torch")]
    assert vectors[0].shape == (12,)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1)
    np.testing.assert_allclose(*vectors, atol=1e-4)
    other = load_speaker(released).embed(voice(seed=1)[::-1].copy())
    assert np.abs(other - vectors[0]).max() > 1e-3


def test_loudness_changes_nothing_but_by_the_floor(released):
    encoder = load_speaker(released)
    np.testing.assert_allclose(encoder.embed(voice()), encoder.embed(0.5 * voice()), atol=1e-4)


def test_features_are_kaldis_with_its_own_window():
    """By the definition, in float64: samples as they are, mean removed, emphasised, the Povey window, 512 points,
    log-mel, and each band's mean over time removed."""
    samples = voice(0.1)
    heard = []
    SpeakerEmbedding(lambda features: heard.append(features) or np.ones((1, 12), np.float32), 12).embed(samples)
    mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(8000), 82)
    at = mel(np.arange(257) * 16_000 / 512)
    powers = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame -= frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        frame *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
        powers.append(np.abs(np.fft.rfft(frame, 512)) ** 2)
    assert heard[0].shape == (1, len(powers), 80)
    for band in (0, 40, 79):
        left, centre, right = edges[band : band + 3]
        triangle = np.clip(np.minimum((at - left) / (centre - left), (right - at) / (right - centre)), 0, None)
        triangle[-1] = 0
        expected = np.log(np.maximum(np.array(powers) @ triangle, 1.19e-7))
        np.testing.assert_allclose(heard[0][0, :, band], expected - expected.mean(), atol=1e-3)


@pytest.mark.parametrize("clip", [np.zeros(16_000, np.float32), voice(0.05)])
def test_clips_without_speech_are_refused(released, clip):
    with pytest.raises(AudioError, match="no speech"):
        load_speaker(released).embed(clip)


def test_other_files_are_refused(tmp_path):
    for backend in ("onnx", "torch"):
        with pytest.raises(MissingError):
            load_speaker(tmp_path / "none.onnx", backend=backend)
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    for backend in ("onnx", "torch"):
        with pytest.raises(InputError):
            load_speaker(tmp_path / "bad.onnx", backend=backend)
