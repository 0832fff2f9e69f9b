"""Training of the flow: clips, closed forms, dropped conditions, resumption."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from nano_voice import FLOW, TRAINING, tone
from stepaudio.data.manifest import Utterance
from stepaudio.decoder.checkpoint import load_flow
from stepaudio.decoder.flow import FlowBatch, Sampling, build
from stepaudio.decoder.flow import Reference as VoiceReference
from stepaudio.decoder.timbre import TIMBRE, TimbreConfig, TimbreEncoder, load_timbre, save_timbre
from stepaudio.decoder.tokens import PAD
from stepaudio.errors import InputError, MissingError
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.clips import PEAK, Recordings, clip, mel_of
from stepaudio.train.flow import FlowTask, begin_codes, load_speech, new_speech, save_speech, without_codes
from stepaudio.train.loop import Loop, LoopConfig, Schedule


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def codes(seconds, number):
    random = np.random.default_rng(number)
    groups = round(seconds / 0.12)
    return DualCodes(random.integers(0, 1024, 2 * groups), random.integers(0, 4096, 3 * groups))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    tokenized = []
    for number in range(8):
        seconds = 0.6 + 0.12 * number
        soundfile.write(folder / f"{number}.flac", tone(seconds, 110 * (1 + number % 2)), 24_000)
        said = Utterance(folder / f"{number}.flac", "a tone", seconds, speaker=f"tone {number % 2}")
        tokenized.append((said, codes(seconds, number)))
    return Recordings(tokenized, TRAINING.spec)


@pytest.mark.parametrize(
    ("samples", "groups", "rows"), [(24_000, 9, 25), (24_000, 8, 24), (23_900, 8, 24), (24_000, 5, 15)]
)
def test_a_clip_has_two_mel_frames_for_every_row(samples, groups, rows):
    made = clip(tone(2)[:samples], codes(0.12 * groups, 0), TRAINING.spec)
    assert made.rows.shape == (rows, 2)
    assert made.mel.shape == (2 * rows, 80)


def test_mels_are_of_one_loudness():
    assert_close(mel_of(tone(1), TRAINING.spec), mel_of(0.1 * tone(1), TRAINING.spec), rtol=0, atol=1e-2)
    peak = float(np.abs(tone(1)).max())
    wanted = TRAINING.spec(torch.from_numpy(tone(1) / peak * PEAK)[None])[0].T
    assert_close(mel_of(tone(1), TRAINING.spec), wanted, rtol=0, atol=1e-2)


def test_references_are_other_clips_of_the_same_speaker(recordings):
    task = FlowTask(TRAINING, recordings)
    pairs = [pair for epoch in range(3) for item in task._plan(epoch) for pair in item]
    assert {index for index, _, _ in pairs} == set(range(8))
    assert all(other != index and other % 2 == index % 2 for index, other, _ in pairs)
    assert task._plan(0) == task._plan(0) != task._plan(1)


def test_codebooks_are_dropped_whole_and_never_both():
    rows = torch.arange(12).reshape(3, 2, 2)
    lost = without_codes(rows, torch.tensor([True, False, True]), torch.tensor([False, True, True]))
    assert lost.tolist() == [[[PAD, 1], [PAD, 3]], [[4, PAD], [6, PAD]], [[PAD, 9], [PAD, 11]]]


def test_the_prior_is_the_error_of_the_encoded_tokens(recordings):
    torch.manual_seed(0)
    model = build(FLOW)
    one = recordings[0]
    lengths = torch.tensor([len(one.rows)])
    batch = FlowBatch(one.rows[None].long(), lengths, one.mel[None].float(), 2 * lengths, torch.randn(1, 8))
    with torch.no_grad():
        without, by_half = (model.loss(batch, torch.Generator().manual_seed(0), prior=p) for p in (0.0, 0.5))
        mu, mel, _ = model._encode_batch(batch, None)
    assert_close(by_half - without, 0.5 * (mu - mel).square().mean())


def test_codes_begin_as_their_codebook_vectors():
    torch.manual_seed(0)
    flow = new_speech(TRAINING).flow
    begin_codes(flow, "nano-tokenizer")
    table = flow.input_embedding.embedding.weight.detach()
    # Codes 0 and 1 differ in one digit of six by one step, codes 0 and 4095 in all of them.
    semantic = table[PAD + 1 :]
    assert (semantic[0] - semantic[1]).norm() < (semantic[0] - semantic[4095]).norm() / 2


def test_it_learns_and_what_it_learned_is_written(recordings, tmp_path):
    task = FlowTask(TRAINING, recordings)
    loop = Loop(task, LoopConfig(tmp_path, 60, log_every=20, schedule=Schedule(5), bf16=False))
    lines = list(loop.run())
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    save_speech(task.model, tmp_path)
    again = load_speech(tmp_path)
    assert_close(again.flow.encoder_proj.weight, task.model.flow.encoder_proj.weight, rtol=0, atol=1e-3)
    [mel] = load_flow(tmp_path).generate([np.arange(2).tolist()], [VoiceReference(torch.ones(8))], Sampling(2))
    assert mel.shape == (80, 0)  # two linguistic codes alone are no row


def test_a_run_that_was_stopped_ends_the_same(recordings, tmp_path):
    ends = []
    for out, stops in ((tmp_path / "whole", (8,)), (tmp_path / "cut", (5, 8))):
        for steps in stops:
            loop = Loop(FlowTask(TRAINING, recordings), LoopConfig(out, 8, save_every=5, log_every=4, bf16=False))
            for _ in loop.run():
                if steps == 5 and loop.step >= 5:
                    break
        ends.append([p.detach().clone() for p in loop.task.model.parameters()])
    assert_close(*ends, rtol=0, atol=0)
    for other in (
        replace(TRAINING, learning_rate=0.5),
        replace(TRAINING, drop=0.9),
        replace(TRAINING, batch_seconds=9),
    ):
        with pytest.raises(InputError, match="of another model"):
            Loop(FlowTask(other, recordings), LoopConfig(tmp_path / "cut", 8, bf16=False))


# ---------------------------------------------------------------- timbre


def test_timbre_does_not_depend_on_padding():
    torch.manual_seed(0)
    encoder = TimbreEncoder(TimbreConfig(dim=8, speaker=8)).eval()
    mel = torch.randn(1, 37, 80)
    padded = torch.cat([mel, torch.full((1, 20, 80), 9.0)], dim=1)
    assert_close(encoder(padded, torch.tensor([37])), encoder(mel, torch.tensor([37])))
    assert_close(encoder.embed(mel[0].T), encoder(mel, torch.tensor([37]))[0])


def test_timbre_is_mean_and_deviation_over_time():
    torch.manual_seed(0)
    encoder = TimbreEncoder(TimbreConfig(mels=4, dim=8, layers=0, speaker=8))
    encoder.head = torch.nn.Identity()
    mel = torch.randn(1, 50, 4)
    wanted = torch.cat([mel[0].mean(0), mel[0].std(0, correction=0)])
    assert_close(encoder(mel, torch.tensor([50]))[0], wanted)


def test_timbre_files_are_checked(tmp_path):
    encoder = TimbreEncoder(TimbreConfig(dim=8))
    save_timbre(encoder, tmp_path / TIMBRE)
    assert_close(load_timbre(tmp_path / TIMBRE).head.weight, encoder.head.weight)
    with pytest.raises(MissingError):
        load_timbre(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    with pytest.raises(InputError, match="damaged"):
        load_timbre(tmp_path / "bad.safetensors")
