"""The ablation's sequences, and that its language models learn them by heart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.data.manifest import Utterance
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.ablation import AblationConfig, Layout, example, perplexities, train, transcribe
from stepaudio.train.pieces import Pieces

TEXTS = ["ab ba", "ba ab", "cab", "ab cab", "a b c"]


def utterances():
    made = []
    for text in TEXTS:
        phonemes = f" {text} "
        ends = tuple(90 * (place + 1) for place in range(len(phonemes)))
        made.append(Utterance(Path("x"), text, ends[-1] / 1000, spoken=text, phonemes=phonemes, ends=ends))
    return made


def codes(seed, groups=8):
    rng = np.random.default_rng(seed)
    return DualCodes(rng.integers(0, 1024, 2 * groups + 1), rng.integers(0, 4096, 3 * groups + 2))


@pytest.fixture(scope="module")
def pieces():
    return Pieces.of(TEXTS, 12)


def test_text_follows_the_words_in_time(pieces):
    one = example(utterances()[0], codes(0), pieces)
    assert one.linguistic.shape == (16, 2)
    assert one.semantic.shape == (16, 3)
    assert (one.linguistic[8:] == one.linguistic[7, -1]).all()  # the last code goes on
    written = [(group, int(piece)) for group, piece in enumerate(one.pieces) if piece]
    assert pieces.decode(piece for _, piece in written) == "ab ba"
    # "ab" ends at 270 ms: its first piece stands behind the fourth group, which ends at 480 ms.
    assert written[0][0] == 3
    second = next(group for group, piece in written if pieces.names[piece].startswith("▁") and group > 3)
    assert second >= -(-540 // 120)


def test_words_that_cannot_be_told_apart_give_no_example(pieces):
    joined = Utterance(Path("x"), "a b", 1.0, spoken="a b", phonemes="ab", ends=(100, 200))
    assert example(joined, codes(0), pieces) is None


@pytest.mark.parametrize(("streams", "group"), [("dual", 6), ("semantic", 4), ("linguistic", 3)])
def test_layouts(pieces, streams, group):
    one = example(utterances()[0], codes(0), pieces)
    layout = Layout(streams, len(pieces))
    tokens = layout.tokens(one).view(-1, group)
    assert layout.group == group
    assert tokens[:, -1].tolist() == one.pieces.tolist()
    expected = []
    if streams != "semantic":
        expected.append(one.linguistic + len(pieces))
    if streams != "linguistic":
        expected.append(one.semantic + len(pieces) + 1024)
    np.testing.assert_array_equal(tokens[:, :-1].numpy(), np.concatenate(expected, axis=1))
    assert tokens.max() < layout.vocabulary


@pytest.mark.parametrize("streams", ["dual", "linguistic"])
def test_a_model_learns_transcripts_by_heart(pieces, streams, tmp_path):
    torch.set_num_threads(1)
    examples = [example(u, codes(seed), pieces) for seed, u in enumerate(utterances())]
    layout = Layout(streams, len(pieces))
    config = AblationConfig(steps=100, batch_seconds=30, width=96, layers=2, learning_rate=5e-3, warmup=5, bf16=False)
    log = []
    model = train(layout, examples, config, tmp_path, log.append)
    assert transcribe(model, layout, examples, pieces) == TEXTS
    figures = perplexities(model, layout, examples)
    assert ("semantic" in figures) == (streams == "dual")
    assert figures["linguistic"] < 50
    assert [line["step"] for line in log] == [50, 100]
