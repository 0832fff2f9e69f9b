"""Training of the vocoder: closed forms of its losses, who learns in which turn, resumption."""

import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from nano_voice import VOCOS, tone
from stepaudio.data.manifest import Utterance, read_manifest, write_manifest
from stepaudio.decoder.vocos import VOCODER, Vocos, load_vocos, save_vocos
from stepaudio.errors import InputError
from stepaudio.train.discriminators import Discriminators, adversarial_loss, feature_loss, hinge_loss
from stepaudio.train.loop import Loop, LoopConfig, Schedule
from stepaudio.train.vocoder import VocoderConfig, VocoderTask, mel_loss, spectral_loss, train_vocoder


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    said = []
    for number in range(6):
        soundfile.write(folder / f"{number}.flac", tone(0.5 + 0.1 * number, 110 * (number + 1)), 24_000)
        said.append(Utterance(f"{number}.flac", "a tone", 0.5 + 0.1 * number))
    write_manifest(folder / "manifest.jsonl", said)
    return folder / "manifest.jsonl"


def config(manifest, **changes):
    return VocoderConfig(manifest, VOCOS, frames=8, batch=2, **changes)


def noise(rows, seconds=0.5):
    return 0.3 * torch.randn(rows, int(24_000 * seconds), generator=torch.Generator().manual_seed(0))


def test_losses_of_a_sound_and_its_half_are_known():
    real = noise(2)
    assert float(spectral_loss(real, real)) == 0
    # Half as loud: |R - M| / |R| = 1 / 2, and every logarithm is log 2 less.
    assert_close(spectral_loss(real / 2, real), torch.tensor(0.5 + math.log(2)), rtol=1e-3, atol=0)
    assert_close(mel_loss(real / 2, real, 24_000), torch.tensor(math.log(2)), rtol=1e-3, atol=0)


def test_the_game_has_the_losses_of_hinges():
    scores = [torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 0.0]])]
    features = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])]
    real, fake = ([(score, [feature])] for score, feature in zip(scores, features, strict=True))
    assert float(hinge_loss(real, fake)) == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert float(adversarial_loss(fake)) == pytest.approx(1.5)
    assert float(feature_loss(real, fake)) == pytest.approx(1.0)


def test_discriminators_tell_what_they_are_taught():
    torch.manual_seed(0)
    judge = Discriminators((256, 512))
    real, fake = noise(2), torch.from_numpy(np.stack([tone(0.5), tone(0.5, 330)]))
    optimizer = torch.optim.Adam(judge.parameters(), 2e-3)
    before = float(hinge_loss(judge(real), judge(fake)).detach())
    for _ in range(30):
        optimizer.zero_grad()
        hinge_loss(judge(real), judge(fake)).backward()
        optimizer.step()
    assert float(hinge_loss(judge(real), judge(fake)).detach()) < before / 2


def test_segments_are_of_one_length_and_the_same_for_an_epoch(manifest):
    task = VocoderTask(config(manifest))
    assert task._plan(0) == task._plan(0) != task._plan(1)
    assert task.load(next(task.cursor)).samples.shape == (2, 8 * 480)


def test_a_vocoder_learns_to_sound_like_its_mel(manifest, tmp_path):
    lines = list(
        train_vocoder(config(manifest), LoopConfig(tmp_path, 60, log_every=20, schedule=Schedule(5), bf16=False))
    )
    assert lines[-1]["mel"] < 0.9 * lines[0]["mel"]
    assert load_vocos(tmp_path / VOCODER).config == VOCOS


def test_each_turn_teaches_its_own_player(manifest, tmp_path):
    save_vocos(Vocos(VOCOS), tmp_path / VOCODER)
    task = VocoderTask(config(manifest, init=tmp_path / VOCODER, adversarial=True))
    vocoder, judge = task.optimizers()
    own = [{id(p) for group in o.param_groups for p in group["params"]} for o in (vocoder, judge)]
    assert not own[0] & own[1]
    assert own[0] | own[1] == {id(p) for p in task.model.parameters()}
    task.loss(task.load(next(task.cursor)), 1).total.backward()
    assert all(p.grad is None for p in task.vocoder.parameters())


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_run_that_was_stopped_ends_the_same(manifest, tmp_path, adversarial):
    torch.manual_seed(0)
    save_vocos(Vocos(VOCOS), tmp_path / VOCODER)
    training = config(manifest, init=tmp_path / VOCODER, adversarial=adversarial)
    ends = []
    for out, stops in ((tmp_path / "whole", (8,)), (tmp_path / "cut", (5, 8))):
        for steps in stops:
            loop = Loop(VocoderTask(training), LoopConfig(out, 8, save_every=5, log_every=4, bf16=False))
            for _ in loop.run():
                if steps == 5 and loop.step >= 5:
                    break
        ends.append([p.detach().clone() for p in loop.task.model.parameters()])
    assert_close(*ends, rtol=0, atol=0)
    fewer = read_manifest(manifest)[:3]
    for task in (VocoderTask(replace(training, learning_rate=0.5)), VocoderTask(training, fewer)):
        with pytest.raises(InputError, match="of another model"):
            Loop(task, LoopConfig(tmp_path / "cut", 8, bf16=False))


def test_the_second_stage_needs_the_first(manifest):
    with pytest.raises(InputError, match="first stage"):
        VocoderTask(config(manifest, adversarial=True))
