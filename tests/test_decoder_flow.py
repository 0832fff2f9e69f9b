"""The solver against closed forms, conditions, batches, lengths and the training objective."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from flow_models import BOTH, DIT, MELS, SPEAKER, UNET, audio_tokens, flow_model, reference
from stepaudio.bench.decoder_reference import EagerDiT, EagerUNet, solve
from stepaudio.decoder.chunks import Schedule
from stepaudio.decoder.flow import (
    FlowBatch,
    Reference,
    Sampling,
    build,
    nearest,
)
from stepaudio.decoder.solver import Noise, cosine_grid, euler, guided
from stepaudio.decoder.tokens import realign
from stepaudio.errors import InputError


def test_grid_is_the_published_one():
    expected = [0, 0.0123, 0.0489, 0.1090, 0.1910, 0.2929, 0.4122, 0.5460, 0.6910, 0.8436, 1]
    np.testing.assert_allclose(cosine_grid(10).numpy(), expected, atol=5e-5)
    with pytest.raises(InputError):
        cosine_grid(0)


def test_a_straight_flow_is_followed_exactly():
    start, end = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for steps in (1, 10):
        got = euler(lambda x, k: end - start, start, cosine_grid(steps))
        torch.testing.assert_close(got, end, atol=1e-12, rtol=0)


def test_a_gaussian_flow_converges_to_its_closed_form():
    # Noise N(0, 1) to data N(m, s^2): x_t has variance v = (1 - t)^2 + s^2 t^2, and the velocity is linear in x.
    m, s = 1.5, 0.3
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = []
    for steps in (10, 100, 1000):
        grid = cosine_grid(steps)

        def velocity(x, k, grid=grid):
            t = grid[k]
            return m + (s * s * t - (1 - t)) / ((1 - t) ** 2 + s * s * t * t) * (x - m * t)

        errors.append((euler(velocity, start, grid) - (m + s * start)).abs().max().item())
    assert errors[0] < 0.2
    for coarse, fine in pairwise(errors):
        assert 7 < coarse / fine < 14  # first order


def test_guidance():
    fixed = torch.ones(2, 5, 9)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    calls = []

    def velocity(inputs, k):
        calls.append(len(inputs))
        return inputs[..., :3] * (k + 2) + inputs[..., 3:6]

    torch.testing.assert_close(guided(velocity, fixed, 0.7)(x, 1), 1.7 * (3 * x + 1) - 0.7 * 3 * x)
    torch.testing.assert_close(guided(velocity, fixed, 0.0)(x, 1), 3 * x + 1)
    assert calls == [4, 2]


def test_noise_depends_on_seed_and_position_alone():
    noise = Noise(3, 8)
    whole = noise.frames(0, 2500)
    assert torch.equal(whole[990:1020], Noise(3, 8).frames(990, 1020))
    assert torch.equal(noise.frames(5, 5), torch.zeros(0, 8))
    assert not torch.equal(whole[:10], Noise(4, 8).frames(0, 10))
    assert not torch.equal(whole[:1000], whole[1000:2000])
    assert abs(whole.mean()) < 0.03
    assert abs(whole.std() - 1) < 0.03
    assert Noise(3, 8).frames(10**9, 10**9 + 2).shape == (2, 8)


def test_mel_lengths():
    assert flow_model(UNET).frames(audio_tokens(10)) == 103
    aligned = flow_model(DIT)
    assert aligned.frames(audio_tokens(1)) * aligned.config.hop == 2880
    assert aligned.frames(audio_tokens(2)[:8]) == 8


@pytest.mark.parametrize("kind", BOTH)
def test_generate_is_the_plain_solver(kind):
    model = flow_model(BOTH[kind], torch.float64)
    tokens, ref = audio_tokens(4), reference(2)
    mel = model.generate([tokens], [ref], Sampling(seed=5))[0]
    mu, [prompt] = model._encode([tokens], [ref])
    frames = mu.shape[1]
    assert prompt == 12
    cond = torch.zeros(1, MELS, frames, dtype=torch.float64)
    cond[0, :, :prompt] = ref.mel
    speaker = model.spk_embed_affine_layer(ref.speaker[None].double() / ref.speaker.norm())
    weights, config = dict(model.estimator.state_dict()), model.config.estimator
    if kind == "dit":
        plain = EagerDiT(weights, config.depth, config.heads)
    else:
        plain = EagerUNet(weights, len(config.channels), config.blocks, config.mid_blocks, config.heads)
    noise = Noise(5, MELS).frames(0, frames).T[None].double()
    with torch.no_grad():
        expected = solve(plain, noise, mu.transpose(1, 2), speaker, cond, steps=10)[0, :, prompt:]
    torch.testing.assert_close(mel, expected.float(), atol=1e-4, rtol=0)  # the solver adds up in float32


@pytest.mark.parametrize("kind", BOTH)
def test_a_batch_gives_what_each_gives_alone(kind):
    model = flow_model(BOTH[kind], torch.float64)
    tokens = [audio_tokens(6), audio_tokens(2, 1)[:8], audio_tokens(1, 2), audio_tokens(6, 3)]
    references = [reference(0), reference(4, 1, frames=21), reference(1, 2), reference(2, 3)]
    together = model.generate(tokens, references)
    for own, ref, mel in zip(tokens, references, together, strict=True):
        assert mel.shape == (MELS, model.frames(own))
        torch.testing.assert_close(mel, model.generate([own], [ref])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_every_condition_is_heard(kind):
    model = flow_model(BOTH[kind])
    base = model.generate([audio_tokens(3)], [reference(2)], Sampling(steps=2))[0]

    def differs(tokens, ref, sampling):
        return (model.generate([tokens], [ref], sampling)[0] - base).abs().max() > 1e-3

    ref, two = reference(2), Sampling(steps=2)
    assert not differs(audio_tokens(3), ref, two)
    assert differs(audio_tokens(3, seed=9), ref, two)
    assert differs(audio_tokens(3), Reference(-ref.speaker, ref.tokens, ref.mel), two)
    assert differs(audio_tokens(3), Reference(ref.speaker, ref.tokens, -ref.mel), two)
    assert differs(audio_tokens(3), Reference(ref.speaker, audio_tokens(2, seed=9), ref.mel), two)
    for other in (Sampling(3), Sampling(2, guidance=0), Sampling(2, temperature=0.5), Sampling(2, seed=1)):
        assert differs(audio_tokens(3), ref, other)
    # Only the direction of a speaker vector counts.
    assert not differs(audio_tokens(3), Reference(7 * ref.speaker, ref.tokens, ref.mel), two)


def test_normalised_mels():
    plain, scaled = flow_model(DIT), flow_model(replace(DIT, mel_mean=-5.0, mel_std=2.0))
    ref = reference(1)
    expected = plain.generate([audio_tokens(2)], [ref])[0] * 2 - 5
    got = scaled.generate([audio_tokens(2)], [Reference(ref.speaker, ref.tokens, ref.mel * 2 - 5)])[0]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_nearest():
    assert nearest(torch.arange(3)[:, None], 6)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest(torch.arange(5)[:, None], 2)[:, 0].tolist() == [0, 2]
    assert nearest(torch.arange(5)[:, None], 0).shape == (0, 1)


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_to_say(kind):
    model = flow_model(BOTH[kind])
    assert model.generate([], []) == []
    assert [mel.shape for mel in model.generate([[], []], [reference(0)] * 2)] == [(MELS, 0)] * 2
    mixed = model.generate([[], audio_tokens(2)], [reference(1), reference(0)])
    assert [mel.shape[1] for mel in mixed] == [0, model.frames(audio_tokens(2))]
    torch.testing.assert_close(mixed[1], model.generate([audio_tokens(2)], [reference(0)])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_bad_input(kind):
    model = flow_model(BOTH[kind])
    tokens, ref = audio_tokens(2), reference(1)
    for bad_tokens, bad_reference, sampling in (
        ([2000, 3], ref, Sampling()),
        (tokens, Reference(torch.zeros(SPEAKER + 1)), Sampling()),
        (tokens, Reference(ref.speaker, ref.tokens, ref.mel.T), Sampling()),
        (tokens, Reference(ref.speaker, [2000, 3], ref.mel), Sampling()),
        (tokens, ref, Sampling(steps=0)),
    ):
        with pytest.raises(InputError):
            model.generate([bad_tokens], [bad_reference], sampling)
    with pytest.raises(InputError):
        model.generate([tokens], [])
    with pytest.raises(InputError, match="both"):
        Reference(ref.speaker, ref.tokens)


# ---------------------------------------------------------------- training


def batch(kind):
    generator = torch.Generator().manual_seed(0)
    own = [audio_tokens(4), audio_tokens(2, 1)]
    if kind == "dit":
        own = [realign(tokens) for tokens in own]
    lengths = torch.tensor([len(tokens) for tokens in own])
    mel_lengths = torch.tensor([24, 13]) if kind == "dit" else torch.tensor([41, 20])
    tokens = torch.zeros(2, int(lengths[0]), *own[0].shape[1:], dtype=torch.long)
    mel = torch.full((2, int(mel_lengths[0]), MELS), 99.0)
    for row in range(2):
        tokens[row, : lengths[row]] = torch.from_numpy(own[row])
        mel[row, : mel_lengths[row]] = torch.randn(int(mel_lengths[row]), MELS, generator=generator)
    return FlowBatch(tokens, lengths, mel, mel_lengths, torch.randn(2, SPEAKER, generator=generator))


@pytest.mark.parametrize("kind", BOTH)
def test_loss_trains_every_weight(kind):
    model = build(BOTH[kind]).train()
    loss = model.loss(batch(kind), torch.Generator().manual_seed(0), drop=0.0)
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert not silent
    assert loss.ndim == 0
    assert 0.5 < loss < 20


@pytest.mark.parametrize("kind", BOTH)
def test_loss_falls(kind):
    torch.manual_seed(0)
    model = build(BOTH[kind]).train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(60):
        optimiser.zero_grad()
        loss = model.loss(batch(kind), torch.Generator().manual_seed(step))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:15])


class Perfect(torch.nn.Module):
    """Knows the target: velocity (x1 - x) / (1 - t), with the mel read from where `conditions` put it."""

    def __init__(self, mel):
        super().__init__()
        self.mel, self.seen = mel, []

    def time_of_each(self, t, dtype):
        return t.to(dtype)

    def __call__(self, inputs, time, lengths, **_):
        self.seen.append(inputs[..., MELS:])
        return (self.mel - inputs[..., :MELS]) / (1 - time[:, None, None])


@pytest.mark.parametrize("kind", BOTH)
def test_loss_of_a_perfect_estimator_is_zero(kind):
    model = flow_model(BOTH[kind])
    clips = batch(kind)
    _, mel, _ = model._encode_batch(clips, None)
    model.decoder.estimator = Perfect(mel.detach())
    assert model.loss(clips, torch.Generator().manual_seed(1)) < 1e-6


@pytest.mark.parametrize("kind", BOTH)
def test_conditions_shown_in_training(kind):
    """Half of the clips show a prefix of at most 30 %; all conditions are dropped together in a fifth."""
    model = flow_model(BOTH[kind])
    clips = batch(kind)
    _, mel, lengths = model._encode_batch(clips, None)
    model.decoder.estimator = spy = Perfect(mel.detach())
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        model.loss(clips, generator)
    seen = torch.stack(spy.seen)
    dropped = (seen == 0).all(-1).all(-1)
    assert abs(dropped.float().mean() - 0.2) < 0.07
    shown = (seen[..., 2 * MELS :] != 0).all(-1).sum(-1)
    assert (shown <= 0.3 * lengths).all()
    assert abs((shown[~dropped] > 0).float().mean() - 0.5) < 0.15  # a prefix may be shorter than a frame
    for kept, count in zip(seen[~dropped], shown[~dropped], strict=True):
        assert (kept[count:, 2 * MELS :] == 0).all()


@pytest.mark.parametrize("kind", BOTH)
def test_loss_ignores_padding(kind):
    model = flow_model(BOTH[kind])
    plain = batch(kind)
    padded = batch(kind)
    padded.mel[1, int(padded.mel_lengths[1]) :] = -1e3
    padded.tokens[1, int(padded.token_lengths[1]) :] = 7
    a, b = (model.loss(x, torch.Generator().manual_seed(2)) for x in (plain, padded))
    assert math.isclose(a.item(), b.item(), rel_tol=1e-5)


def test_training_in_chunks():
    model = build(DIT).train()
    clips = batch("dit")
    ends = torch.tensor(Schedule((3,)).ends(12))
    assert ends.tolist() == [3, 6, 9, 12]
    whole = model.loss(clips, torch.Generator().manual_seed(0))
    chunked = model.loss(clips, torch.Generator().manual_seed(0), ends=ends)
    chunked.backward()
    assert torch.isfinite(chunked)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert chunked != whole
    with pytest.raises(InputError):
        build(UNET).loss(batch("unet"), torch.Generator(), ends=ends)
