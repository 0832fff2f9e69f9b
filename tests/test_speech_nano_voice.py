"""The nano language model at work, with a model that has learned three words by heart."""

import numpy as np
import pytest
import torch

from stepaudio.errors import Cancelled, InputError
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.nano import NEXT, WordGrammar, load_vocabulary, save_vocabulary
from stepaudio.lm.step1 import Config, Step1
from stepaudio.speech.nano_voice.language import NanoLm
from stepaudio.train.lm import LmTask, Rates, Step1Scorer
from stepaudio.train.loop import Loop, LoopConfig, Schedule
from test_train_lm import codes, nano, utterance

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model that knows what "ab cab" and "ba ab" sound like, and reads it back."""
    torch.set_num_threads(1)
    made = nano()
    pairs = [(utterance("ab cab"), codes(0, groups=8)), (utterance("ba ab"), codes(1, groups=7))]
    documents = {kind: [getattr(made, kind)(*pair) for pair in pairs] for kind in ("tts", "asr")}
    config = Config(made.vocabulary.size, 64, 192, 2, 2, 2, max_seq_len=256)
    task = LmTask(Step1Scorer(Step1(config).initialise(0)), documents, {"tts": 1, "asr": 1}, Rates(1e-2), tokens=256)
    out = tmp_path_factory.mktemp("nano")
    list(Loop(task, LoopConfig(out, 300, schedule=Schedule(10, 0.3), bf16=False)).run())
    lm = NanoLm.of(made.vocabulary, task.model.lm)
    yield lm, pairs
    lm.close()


def joined(groups):
    return np.concatenate([g.linguistic for g in groups]), np.concatenate([g.semantic for g in groups])


def test_speaks_what_it_learned_group_by_group(learned):
    lm, pairs = learned
    for one, own in pairs:
        groups = list(lm.speak(one.phonemes.split(), speed=0, params=GREEDY))
        assert all(len(g.linguistic) == 2 and len(g.semantic) == 3 for g in groups)
        linguistic, semantic = joined(groups)
        assert linguistic.tolist() == own.linguistic[: 2 * len(groups)].tolist()
        assert semantic.tolist() == own.semantic[: 3 * len(groups)].tolist()
        assert len(groups) == len(own.semantic) // 3


def test_a_word_is_spoken_once_the_next_is_known(learned):
    lm, _ = learned
    asked = []

    def words():
        for word in ("ab", "cab"):
            asked.append(word)
            yield word

    stream = lm.speak(words(), speed=0, params=GREEDY)
    next(stream)
    assert asked == ["ab", "cab"]


def test_reads_what_it_learned(learned):
    lm, pairs = learned
    for one, own in pairs:
        assert lm.transcribe(own) == one.spoken


def test_a_seed_repeats_and_what_is_unknown_is_left_out(learned):
    lm, _ = learned
    hot = SamplingParams(temperature=2.0, seed=7, top_k=0)
    first, second = (joined(list(lm.speak(["ab", "?!", "cab"], params=hot))) for _ in range(2))
    assert first[0].tolist() == second[0].tolist()
    assert list(lm.speak(["?!"])) == []
    with pytest.raises(InputError, match="speeds 0 to 4"):
        list(lm.speak(["ab"], speed=5))


def test_speaking_can_be_cancelled(learned):
    from threading import Event

    lm, _ = learned
    cancel = Event()
    stream = lm.speak(["ab"] * 8, params=GREEDY, cancel=cancel)
    next(stream)
    cancel.set()
    with pytest.raises(Cancelled):
        list(stream)


def test_the_grammar_gives_whole_groups_and_ends_between_them():
    v = nano().vocabulary
    grammar = WordGrammar(v, max_groups=2)
    end = range(NEXT, NEXT + 1)
    for place in range(10):
        expected = (v.semantic,) if place % 5 > 1 else (v.linguistic,) if place % 5 else (end, v.linguistic)
        assert grammar.allowed() == expected
        grammar = grammar.advance(expected[-1].start)
    assert grammar.allowed() == (end,)
    with pytest.raises(InputError, match="place 10"):
        grammar.advance(v.linguistic.start)


def test_the_vocabulary_is_kept(tmp_path):
    v = nano().vocabulary
    save_vocabulary(tmp_path, v)
    assert load_vocabulary(tmp_path) == v
    (tmp_path / "nano.json").write_text('{"format": 1, "phonemes": 3}')
    with pytest.raises(InputError, match="damaged"):
        load_vocabulary(tmp_path)
