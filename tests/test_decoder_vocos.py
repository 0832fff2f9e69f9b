import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pieces import sizes, spoken
from stepaudio.decoder.mel import MEL_24K
from stepaudio.decoder.vocos import Vocos, VocosConfig, load_vocos, save_vocos
from stepaudio.errors import InputError, MissingError

SMALL = VocosConfig(n_fft=64, hop=16, dim=12, hidden=24, blocks=3)


def small(**changes):
    torch.manual_seed(0)
    config = VocosConfig(**{name: getattr(SMALL, name) for name in SMALL.__slots__} | changes)
    model = Vocos(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def mels(frames, rows=1):
    return torch.randn(rows, 80, frames, generator=torch.Generator().manual_seed(0))


def test_the_default_has_the_size_that_was_measured():
    assert sum(p.numel() for p in Vocos().parameters()) == pytest.approx(2.8e6, rel=0.01)


def test_its_mel_can_be_the_decoders():
    assert VocosConfig(n_fft=1920, hop=480).mel == MEL_24K
    assert VocosConfig(n_fft=960, hop=240, upsample=2).mel == MEL_24K


@settings(max_examples=10, deadline=None)
@given(sizes, st.integers(0, 15))
@torch.inference_mode()
def test_mel_frames_can_be_two_frames_each(cuts, ahead):
    model = small(ahead=ahead, upsample=2)
    whole, _ = model(mels(25))
    assert model.hop == 32
    assert whole.shape == (1, 25 * 32)
    assert_close(spoken(model, mels(25), cuts), whole, rtol=0, atol=1e-5)
    early, _ = model(mels(25), last=False)
    assert early.shape[1] // 32 == 25 - model.lookahead


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(0, 12))
@torch.inference_mode()
def test_pieces_are_the_whole(cuts, ahead):
    model = small(ahead=ahead)
    whole, _ = model(mels(25))
    assert whole.shape == (1, 25 * 16)
    assert_close(spoken(model, mels(25), cuts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ahead", [0, 1, 4, 12])
@torch.inference_mode()
def test_samples_come_after_the_lookahead_that_is_declared(ahead):
    model = small(ahead=ahead)
    assert model.lookahead == ahead + 2  # 24 of 64 samples of a frame are complete 1.5 frames later
    samples, _ = model(mels(20), last=False)
    assert samples.shape[1] // 16 == 20 - model.lookahead


@torch.inference_mode()
def test_what_lies_beyond_the_lookahead_changes_nothing():
    model = small(ahead=4)
    mel = mels(20)
    changed = mel.clone()
    changed[..., 15:] += 1
    heard = (15 - model.lookahead) * 16
    assert_close(model(mel)[0][:, :heard], model(changed)[0][:, :heard], rtol=0, atol=0)
    assert not torch.allclose(model(mel)[0], model(changed)[0])


@torch.inference_mode()
def test_the_head_is_torchs_inverse_transform():
    """What the head is given, through `torch.istft`; it cuts other ends, where fewer windows overlap."""
    model, given = small(), []
    model.istft.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    samples, _ = model(mels(12, rows=2))
    whole = torch.istft(given[0], 64, 16, 64, torch.hann_window(64))
    assert_close(samples[:, 8:-8], whole, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_rows_of_a_batch_are_what_they_are_alone():
    model, mel = small(), mels(9, rows=3)
    together, _ = model(mel)
    for row in range(3):
        assert_close(together[row : row + 1], model(mel[row : row + 1])[0], rtol=0, atol=1e-5)


def test_it_learns():
    """A few steps towards a target lower the spectral distance."""
    torch.manual_seed(0)
    model = Vocos(SMALL)
    mel, target = mels(8, rows=2), torch.randn(2, 128)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = (model(mel)[0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < 0.8 * losses[0]


def test_written_and_read(tmp_path):
    model = small()
    save_vocos(model, tmp_path / "vocos.safetensors")
    read = load_vocos(tmp_path / "vocos.safetensors")
    assert read.config == model.config
    assert_close(read(mels(5))[0], model(mels(5))[0], rtol=0, atol=0)


def test_bad_files_and_sizes_are_refused(tmp_path):
    with pytest.raises(MissingError):
        load_vocos(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    with pytest.raises(InputError, match="damaged"):
        load_vocos(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="0 to 21"):
        VocosConfig(ahead=22)
