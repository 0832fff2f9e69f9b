"""Speech in chunks: any way of cutting gives the same, which is what the offline network gives when its attention is
masked to chunks; nothing is lost; cost does not grow."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_models import BOTH, DIT, MELS, audio_tokens, flow_model, reference
from stepaudio.decoder.chunks import Schedule, flow_stream, read_voice
from stepaudio.decoder.dit import BlockState
from stepaudio.decoder.encoder import Distances, _run
from stepaudio.decoder.flow import AlignedFlow, Sampling
from stepaudio.decoder.layers import Memory, chunk_mask
from stepaudio.decoder.streaming import CrossFade, SpeechStream
from stepaudio.decoder.tokens import realign
from stepaudio.errors import InputError

SAMPLING = Sampling(steps=2, seed=7)
SMALL = Schedule((3, 6, 12))


class LinearVocoder:
    """Each frame's samples are linear in it and in `reach` frames on either side; streams with that look-ahead."""

    rate = 1000
    hop = 5

    def __init__(self, reach=0):
        generator = torch.Generator().manual_seed(0)
        self.reach = reach
        self.weight = torch.randn(self.hop, MELS, 2 * reach + 1, generator=generator) / MELS

    def __call__(self, mel, state=None, *, last=True):
        if state is None:
            state = mel.new_zeros(mel.shape[0], MELS, self.reach)
        mel = torch.cat([state, mel, mel.new_zeros(mel.shape[0], MELS, self.reach * last)], dim=2)
        if mel.shape[2] <= 2 * self.reach:
            return mel.new_zeros(mel.shape[0], 0), mel
        samples = F.conv1d(mel, self.weight.to(mel)).transpose(1, 2).flatten(1)
        return samples, mel[:, :, mel.shape[2] - 2 * self.reach :]


@functools.cache
def model(kind):
    return flow_model(BOTH[kind])


@functools.cache
def voice(kind, groups):
    return read_voice(model(kind), reference(groups), SAMPLING)


def stream(kind, groups=2, schedule=SMALL):
    return flow_stream(model(kind), voice(kind, groups), schedule)


def whole(kind, tokens, groups=2, schedule=SMALL):
    own = stream(kind, groups, schedule)
    return torch.cat([own.push(tokens), own.flush()], dim=1)


# ---------------------------------------------------------------- schedule


def test_released_schedule():
    assert Schedule().ends(15 + 24 + 48 + 48 + 10) == [15, 39, 87, 135, 145]
    assert Schedule().ends(17) == [17]
    assert Schedule().ends(18) == [15, 18]
    for bad in ((), (0,), (15, 25)):
        with pytest.raises(InputError):
            Schedule(bad)


@pytest.mark.parametrize("kind", BOTH)
def test_first_audio_after_30_tokens(kind):
    own = stream(kind, schedule=Schedule())
    tokens = audio_tokens(6)
    assert own.push(tokens[:29]).shape[1] == 0
    assert own.push(tokens[29:]).shape[1] == {"dit": 30, "unet": 51}[kind]


# ---------------------------------------------------------------- the flow


cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(BOTH)),
        "count": st.integers(0, 75),
        "cuts": st.lists(st.integers(0, 75), max_size=6),
        "prompt": st.sampled_from([0, 2]),
    }
)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_cut_anywhere(case):
    tokens = audio_tokens(15)[: case["count"]]
    expected = whole(case["kind"], tokens, case["prompt"])
    assert expected.shape == (MELS, model(case["kind"]).frames(tokens))
    own = stream(case["kind"], case["prompt"])
    for _ in range(2):  # flushed streams are as new
        pieces = [own.push(piece) for piece in np.split(tokens, sorted(case["cuts"]))] + [own.flush()]
        assert torch.equal(torch.cat(pieces, dim=1), expected)


def offline(flow: AlignedFlow, ref, tokens, schedule):
    """The offline network on reference and reply at once, with masks for attention in place of caches."""
    encoder, dit, up = flow.encoder, flow.estimator, flow.config.encoder.upsample
    head, reply = realign(ref.tokens), realign(tokens)
    prompt, rows = len(head), len(head) + len(reply)
    ends = torch.tensor(([prompt] if prompt else []) + [prompt + end for end in schedule.ends(len(reply))])
    x = encoder.embed(flow.input_embedding(torch.cat([flow.rows(head), flow.rows(reply)])[None]))
    first, before = encoder.pre_lookahead_layer(F.pad(x[:, :prompt], (0, 0, 0, 3)), prompt, None)
    then, _ = encoder.pre_lookahead_layer(F.pad(x[:, prompt:], (0, 0, 0, 3)), len(reply), before if prompt else None)

    def layers(modules, x, factor):
        window = flow.config.encoder.window * factor
        mask = chunk_mask(ends * factor, rows * factor, window=window, prompt=prompt * factor)[None]
        return _run(modules, x, Distances.within(rows * factor, x), mask, [Memory()] * len(modules))[0]

    x = layers(encoder.encoders, torch.cat([first, then], dim=1), 1)
    x = layers(encoder.up_encoders, encoder.up_embed(encoder.up_layer(x, None)[0]), up)
    mu = flow.encoder_proj(encoder.after_norm(x))
    mask = chunk_mask(ends * up, rows * up, window=flow.config.estimator.window, prompt=prompt * up)[None, None]
    times = flow.times(SAMPLING)

    def velocity(inputs, k):
        h = dit.in_proj(inputs)
        for block, said in zip(dit.blocks, times[k], strict=False):
            h, _, _ = block(h, said, mask, BlockState())
        return dit.final_layer(h, times[k][-1])

    fixed = flow.conditions(mu, flow.speaker(ref)[None], [flow.reference_mel(ref, prompt * up)])
    return flow.follow(velocity, flow.noise(SAMPLING).frames(0, rows * up), fixed, SAMPLING)[0, prompt * up :].T


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 120), st.sampled_from([0, 2, 3]))
@torch.inference_mode()
def test_a_stream_is_the_masked_offline_network(count, prompt):
    # Windows are 12 rows in the encoder and 20 frames in the DiT: up to 72 rows, both have begun to forget.
    tokens = audio_tokens(24)[:count]
    if not len(realign(tokens)):
        return
    flow, read = in_double(prompt)
    own = flow_stream(flow, read, SMALL)
    got = torch.cat([own.push(tokens), own.flush()], dim=1)
    expected = offline(flow, reference(prompt), tokens, SMALL)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    assert expected.std() > 0.1


@functools.cache
def in_double(prompt):
    flow = flow_model(DIT, torch.float64)
    return flow, read_voice(flow, reference(prompt), SAMPLING)


def test_one_chunk_without_a_reference_is_the_offline_decoder():
    tokens = audio_tokens(5)  # 15 rows: fewer than the first chunk and its look-ahead
    expected = model("dit").generate([tokens], [reference(0)], SAMPLING)[0]
    torch.testing.assert_close(whole("dit", tokens, 0, Schedule()), expected, atol=1e-4, rtol=0)
    expected = model("unet").generate([tokens], [reference(2)], SAMPLING)[0]
    torch.testing.assert_close(whole("unet", tokens, 2, Schedule()), expected, atol=1e-4, rtol=0)


def tensors(value, seen):
    """Elements of all tensors that can be reached."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.nn.Module):
        return 0
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, np.ndarray):
        return value.nbytes if value.base is None else tensors(value.base, seen)
    if isinstance(value, dict):
        return sum(tensors(item, seen) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(tensors(item, seen) for item in value)
    return tensors(vars(value), seen) if hasattr(value, "__dict__") else 0


@pytest.mark.parametrize("kind", BOTH)
def test_what_a_stream_holds_does_not_grow(kind):
    own = stream(kind, 2, Schedule((6,)))
    tokens = audio_tokens(200)
    held = []
    for piece in np.split(tokens, 20):
        own.push(piece)
        held.append(tensors(own, set()))
    frame = 4 * MELS  # at 22.05 kHz a chunk is sometimes a frame longer
    assert max(held[10:]) <= max(held[5:10]) + frame
    assert own.flush().shape[1] > 0


@pytest.mark.parametrize("kind", BOTH)
def test_a_chunk_does_no_more_work_later(kind, monkeypatch):
    seen = []
    attend = F.scaled_dot_product_attention

    def counted(q, k, v, **kwargs):
        seen.append(q.shape[-2] * k.shape[-2])
        return attend(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    own = stream(kind, 2, Schedule((6,)))
    work = []
    for piece in np.split(audio_tokens(160), 16):  # 30 rows each, five chunks
        seen.clear()
        own.push(piece)
        work.append(sum(seen))
    assert max(work[8:]) <= 1.02 * max(work[4:8])


def test_a_voice_is_not_changed_by_its_streams():
    first = whole("dit", audio_tokens(9))
    stream("dit").push(audio_tokens(20, seed=3))
    assert torch.equal(whole("dit", audio_tokens(9)), first)


def test_a_long_reference():
    # 20 s of reference: upstream's buffers end at 16.
    long = read_voice(model("dit"), reference(167), Sampling(steps=1))
    own = flow_stream(model("dit"), long)
    assert torch.isfinite(torch.cat([own.push(audio_tokens(20)), own.flush()], dim=1)).all()


@pytest.mark.parametrize("kind", BOTH)
def test_bad_tokens_and_recovery(kind):
    expected = whole(kind, audio_tokens(8))
    own = stream(kind)
    with pytest.raises(InputError):
        own.push([2000, 2000, 3, 3, 3] * 8)
    own.reset()
    with pytest.raises(InputError):
        own.push([1.5] * 50)
    own.reset()
    assert torch.equal(torch.cat([own.push(audio_tokens(8)), own.flush()], dim=1), expected)


# ---------------------------------------------------------------- the waveform


@settings(max_examples=25, deadline=None)
@given(cases, st.integers(0, 3))
def test_speech_cut_anywhere(case, reach):
    kind, tokens, vocoder = case["kind"], audio_tokens(15)[: case["count"]], LinearVocoder(reach)
    mel = whole(kind, tokens, case["prompt"])
    expected = vocoder(mel[None])[0][0].numpy()
    assert len(expected) == model(kind).frames(tokens) * vocoder.hop
    speech = SpeechStream(stream(kind, case["prompt"]), vocoder)
    for _ in range(2):
        pieces = [speech.push(piece) for piece in np.split(tokens, sorted(case["cuts"]))] + [speech.flush()]
        np.testing.assert_allclose(np.concatenate(pieces), expected, atol=1e-5)
        assert all(piece.dtype == np.float32 for piece in pieces)


pieces_of_mel = st.lists(st.integers(0, 30), min_size=1, max_size=8)


@given(pieces_of_mel, st.integers(0, 3), st.integers(1, 9))
def test_cross_fade_loses_nothing_and_changes_only_the_fades(sizes, reach, overlap):
    vocoder = LinearVocoder(reach)
    fading = CrossFade(vocoder, overlap)
    mel = torch.randn(1, MELS, sum(sizes), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out, state = [], None
    for number, piece in enumerate(mel.split(sizes, dim=2)):
        samples, state = fading(piece, state, last=number == len(sizes) - 1)
        out.append(samples)
    got, expected = torch.cat(out, dim=1), vocoder(mel)[0]
    assert got.shape == expected.shape
    # Left of a cut the piece before it had no frames to the right, nor the one after it any left of the overlap.
    touched = torch.zeros(sum(sizes), dtype=torch.bool)
    for cut in np.cumsum(sizes)[:-1]:
        if reach:
            touched[max(0, cut - max(overlap, reach)) : max(cut, cut - overlap + reach)] = True
    exact = ~touched.repeat_interleave(vocoder.hop)
    torch.testing.assert_close(got[0, exact], expected[0, exact])


def test_fade_is_a_normalised_hamming_window():
    class Constant:
        rate, hop, calls = 1000, 4, 0

        def __call__(self, mel, state=None, *, last=True):
            self.calls += 1
            return mel.new_full((1, mel.shape[2] * 4), float(self.calls)), None

    fading = CrossFade(Constant(), 2)
    _, state = fading(torch.zeros(1, MELS, 5), last=False)
    samples, _ = fading(torch.zeros(1, MELS, 1), state)
    rising = np.hamming(17)[:8]  # a periodic window of 16
    np.testing.assert_allclose(samples[0, :8].numpy(), 1 + rising / 1.08, atol=1e-6)
    assert samples[0, 8:].tolist() == [2.0] * 4
