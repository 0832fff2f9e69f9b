"""The nano language model at work, with a model that has learned three words by heart."""

import numpy as np
import pytest
import torch

from stepaudio.errors import Cancelled, InputError
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.nano import COUNTS, GroupGrammar, load_vocabulary, save_vocabulary
from stepaudio.lm.step1 import Config, Step1
from stepaudio.speech.nano_voice.language import NanoLm, together
from stepaudio.train.lexicon import Lexicon
from stepaudio.train.lm import LmTask, Rates, Step1Scorer
from stepaudio.train.loop import Loop, LoopConfig, Schedule
from training import codes, nano, utterance

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model that knows what "ab cab" and "ba ab" sound like, and reads it back."""
    torch.set_num_threads(1)
    made = nano()
    pairs = [(utterance("ab cab"), codes(0, groups=6)), (utterance("ba ab"), codes(1, groups=5))]
    documents = {kind: [getattr(made, kind)(*pair) for pair in pairs] for kind in ("tts", "asr")}
    config = Config(made.vocabulary.size, 64, 192, 2, 2, 2, max_seq_len=256)
    task = LmTask(Step1Scorer(Step1(config).initialise(0)), documents, {"tts": 1, "asr": 1}, Rates(1e-2), tokens=256)
    out = tmp_path_factory.mktemp("nano")
    list(Loop(task, LoopConfig(out, 300, schedule=Schedule(10, 0.3), bf16=False)).run())
    lexicon = Lexicon.of([(one.spoken, one.phonemes) for one, _ in pairs])
    lm = NanoLm(made.vocabulary, task.model.lm, lexicon)
    yield lm, pairs
    lm.close()


def joined(groups):
    return np.concatenate([g.linguistic for g in groups]), np.concatenate([g.semantic for g in groups])


def test_speaks_what_it_learned_group_by_group(learned):
    lm, pairs = learned
    for one, own in pairs:
        groups = list(lm.speak(one.phonemes.split(), speed=0, params=GREEDY))
        assert all(len(g.linguistic) == 2 and len(g.semantic) == 3 for g in groups)
        # What was known of the second ends within its last pause: a group of pause follows.
        known = len(own.semantic) // 3
        assert known <= len(groups) <= known + 1
        linguistic, semantic = joined(groups[:known])
        assert linguistic.tolist() == own.linguistic[: 2 * known].tolist()
        assert semantic.tolist() == own.semantic[: 3 * known].tolist()


def test_words_are_asked_for_when_the_window_needs_them(learned):
    lm, _ = learned
    asked = []

    def words():
        for word in ("ab", "cab"):
            asked.append(word)
            yield word

    stream = lm.speak(words(), speed=0, params=GREEDY)
    first = next(stream)
    assert asked == ["ab"]  # " ab " are four
    assert [first.word, *(group.word for group in stream)] == [0, 0, 0, 1, 1, 1]
    assert asked == ["ab", "cab"]


def test_reads_what_it_learned(learned):
    lm, pairs = learned
    for one, own in pairs:
        assert lm.transcribe(own) == one.spoken


def test_hearings_are_averaged_where_they_hear_the_same():
    first = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    later = np.concatenate([np.full((1, 3), 9, np.float32), first[:6] + 1])
    np.testing.assert_array_equal(together([first]), first)
    np.testing.assert_allclose(together([first, later]), first[:6] + 0.5, rtol=1e-5)


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


def test_the_grammar_gives_a_count_and_a_group():
    v = nano().vocabulary
    grammar = GroupGrammar(v, most=2, least=1)
    for allowed in (COUNTS[1:3], v.linguistic, v.linguistic, v.semantic, v.semantic, v.semantic):
        assert grammar.allowed() == (allowed,)
        with pytest.raises(InputError, match="may not come"):
            grammar.advance(allowed.stop)
        grammar = grammar.advance(allowed.start)


def test_the_vocabulary_is_kept(tmp_path):
    v = nano().vocabulary
    save_vocabulary(tmp_path, v)
    assert load_vocabulary(tmp_path) == v
    (tmp_path / "nano.json").write_text('{"format": 1, "phonemes": 3}')
    with pytest.raises(InputError, match="damaged"):
        load_vocabulary(tmp_path)
