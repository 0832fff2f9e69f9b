"""The ablation's sequences, and that its language models learn them by heart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.data.manifest import Utterance
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.ablation import AFTER, PLACES, Arrangement, perplexities, transcribe
from stepaudio.train.loop import Loop, LoopConfig, Schedule

LINES = [" ab ba ", " ba ab ", " cab ", " ab cab ", " a b c "]


def utterances():
    for phonemes in LINES:
        ends = tuple(90 * (place + 1) for place in range(len(phonemes)))
        yield Utterance(Path("x"), phonemes.strip(), ends[-1] / 1000, phonemes=phonemes, ends=ends)


def codes(seed, groups=8):
    rng = np.random.default_rng(seed)
    return DualCodes(rng.integers(0, 1024, 2 * groups + 1), rng.integers(0, 4096, 3 * groups + 2))


def known():
    return [(utterance, codes(seed)) for seed, utterance in enumerate(utterances())]


@pytest.mark.parametrize(("streams", "size"), [("dual", 5), ("semantic", 3), ("linguistic", 2)])
def test_phonemes_follow_the_codes_in_time(streams, size):
    arrangement = Arrangement(streams, "abc")
    utterance, spoken = known()[0]
    document = arrangement.asr(utterance, spoken)
    rows = document.tokens[1:].reshape(-1, size + PLACES)
    assert len(rows) == 8 + AFTER
    assert (rows[8:, :size] == rows[7, :size]).all()  # the last codes go on
    assert arrangement.phonemes_of(document) == list("abba")
    expected = []
    if streams != "semantic":
        expected.append(spoken.linguistic[:16].reshape(8, 2) + arrangement.linguistic.start)
    if streams != "linguistic":
        expected.append(spoken.semantic[:24].reshape(8, 3) + arrangement.semantic.start)
    np.testing.assert_array_equal(rows[:8, :size], np.concatenate(expected, axis=1))
    assert document.trained[1:].reshape(rows.shape)[:, size:].all()
    assert not document.trained[1:].reshape(rows.shape)[:, :size].any()
    # "a" ends at 180 ms, in the second group: it stands behind the third.
    assert [group for group, row in enumerate(rows) if (row[size:] > 1).any()] == [2, 3, 4, 5]
    assert (arrangement.continuation(spoken).tokens[1:] == rows[:8, :size].reshape(-1)).all()


def test_too_many_phonemes_give_no_document():
    crowded = Utterance(Path("x"), "a", 1.0, phonemes="a" * 50, ends=(960,) * 50)
    assert Arrangement("dual", "abc").asr(crowded, codes(0)) is None


@pytest.mark.parametrize("streams", ["dual", "linguistic"])
def test_a_model_learns_transcripts_by_heart(streams, tmp_path):
    torch.set_num_threads(1)
    arrangement = Arrangement(streams, "abc")
    task = arrangement.task(known(), width=96, layers=2, rate=5e-3)
    config = LoopConfig(tmp_path, steps=60, schedule=Schedule(5), bf16=False, save_every=1000)
    before = perplexities(task, arrangement, [spoken for _, spoken in known()])
    for _ in Loop(task, config).run():
        pass
    documents = [arrangement.asr(*one) for one in known()]
    heard = transcribe(task.model.eval().lm, arrangement, documents)
    assert heard == [list(line.replace(" ", "")) for line in LINES]
    after = perplexities(task, arrangement, [spoken for _, spoken in known()])
    assert ("semantic" in after) == (streams == "dual")
    assert after["all"] < before["all"] / 10
    assert before["linguistic"] > 1000
