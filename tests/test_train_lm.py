"""Documents, packing and the language model's training."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_models import tiny_model, tiny_tokenizer
from stepaudio.errors import InputError
from stepaudio.lm.attention import attend, attend_flex, attend_packed
from stepaudio.lm.nano import COUNTS, opening
from stepaudio.lm.prompts import Prompts, Turn
from stepaudio.train.documents import PaperDocuments, SpeakingRate, timed_words
from stepaudio.train.lm import LmTask, Rates, Step1Scorer
from stepaudio.train.loop import Loop, LoopConfig, Schedule
from stepaudio.train.packing import Mixture, pack
from training import codes, document, nano, utterance


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# ---------------------------------------------------------------- documents


def test_a_pause_belongs_to_the_word_before():
    words = timed_words(utterance("ab c"))
    assert [(word.phonemes, word.end) for word in words] == [("ab", 360), ("c", 540)]


def rows(document, given):
    """The groups of a document behind its first tokens, ten or nine tokens each."""
    return document.tokens[given:].reshape(-1, 10 if document.kind == "tts" else 9).tolist()


def test_nano_speech_moves_a_window_over_the_phonemes():
    made = nano()
    v = made.vocabulary
    one, own = utterance("ab c"), codes(0)
    document = made.tts(one, own)
    assert document.tokens[:2].tolist() == opening(made.rate.level(one))
    # " ab c " ends at 90, 180, 270, 360, 450, 540 ms; groups at 120, 240, 360, 480, 600, 720 ms.
    windows = [" ab ", "ab c", "b c ", "c ", " ", ""]
    counts = [1, 1, 2, 1, 1, 0]
    for row, window, count, group in zip(rows(document, 2), windows, counts, range(6), strict=True):
        assert row[:4] == v.write(window)
        assert row[4] == COUNTS[count]
        assert row[5:7] == (own.linguistic[2 * group :][:2] + v.linguistic.start).tolist()
        assert row[7:] == (own.semantic[3 * group :][:3] + v.semantic.start).tolist()
    trained = document.trained[2:].reshape(-1, 10)
    assert trained[:, 4:].all()
    assert not trained[:, :4].any()


def test_a_window_catches_up_when_more_phonemes_end_than_it_holds():
    made = nano()
    fast = utterance("abcabc ab", per_symbol=20)  # six end in 120 ms
    counts = [row[4] - COUNTS.start for row in rows(made.tts(fast, codes(0, groups=3)), 2)]
    assert counts == [4, 4, 3]


def test_nano_hearing_writes_what_sounded_in_the_group_before():
    made = nano()
    v = made.vocabulary
    one, own = utterance("ab c"), codes(0)
    document = made.asr(one, own)
    heard = rows(document, 1)
    told = document.targets[1:].reshape(-1, 9)[:, 5:].tolist()
    assert len(heard) == 7
    assert all(row[5:] == v.write("") for row in heard)
    # Moments at 15, 45, 75, 105 ms and so on: the pause lasts to 90 ms, "a" to 180.
    assert told[:4] == [v.write(sounds) for sounds in ("", "   a", "aabb", "b   ")]
    assert heard[6][:5] == heard[5][:5]
    trained = document.trained[1:].reshape(-1, 9)
    assert trained[1:, 5:].all()
    assert trained.sum() == 6 * 4
    row = pack([document], ["asr"])
    assert row.targets_N.tolist() == [id for own in told[1:] for id in own]
    assert set(v.write("")) == set(row.tokens_1T[0, row.places_N + 1].tolist())


def test_places_and_symbols_have_ids_of_their_own():
    v = nano().vocabulary
    assert v.phonemes == " abc"
    ids = [v.place(i) for i in range(4)] + [v.linguistic, v.semantic]
    assert all(a.stop == b.start for a, b in pairwise(ids))
    assert v.write("c?") == [v.place(0).start + 4, v.place(1).start, v.place(2).start, v.place(3).start]
    assert v.size % 64 == 0
    assert v.size >= v.semantic.stop


def test_speeds_are_levels_of_the_speaking_rate():
    said = [utterance("abc", per_symbol) for per_symbol in (150, 120, 100, 80, 60)]
    rate = SpeakingRate(said)
    assert [rate.level(u) for u in said] == [0, 1, 2, 3, 4]
    assert rate.rate(said[2]) == pytest.approx(102 / 100)


def paper():
    return PaperDocuments(Prompts(tiny_tokenizer()), stretch=(1, 2))


def test_paper_documents_train_what_their_kind_says():
    made, one, own = paper(), utterance("ab ba cab a b"), codes(3, groups=9)
    v = made.prompts.tokenizer.vocabulary
    audio = own.tokens(tail="drop") + v.text

    def trained(document):
        return document.tokens[document.trained].tolist()

    assert trained(made.continuation(own)) == [*audio, v.eot]
    assert trained(made.tts(one, own)) == [*audio, v.eot]
    text = made.prompts.tokenizer.encode_continuation(one.text)
    assert trained(made.asr(one, own)) == [*text, v.eot]
    assert trained(made.text("ab ba")) == [*made.prompts.tokenizer.encode("ab ba"), v.eot]
    mixed = made.interleaved(one, own, np.random.default_rng(0))
    assert [id for id in mixed.tokens if id in v.audio] == audio.tolist()
    kinds = [id in v.audio for id in mixed.tokens[1:-1]]
    assert kinds[0] is False
    assert sum(a != b for a, b in pairwise(kinds)) >= 3  # text, audio, text, audio


def test_a_conversation_learns_its_last_reply_and_hears_its_last_question():
    made = paper()
    v = made.prompts.tokenizer.vocabulary
    audio = [v.text + code for code in (1, 2, 1030, 1031, 1032)]
    turns = [
        Turn("human", [audio]),
        Turn("assistant", ["good day"]),
        Turn("human", [audio]),
        Turn("assistant", ["fine"]),
    ]
    one = made.chat(turns, ["how are you", None, "and now"])
    assert one.tokens[one.trained].tolist() == [*made.prompts.tokenizer.encode_continuation("fine"), v.eot]
    assert sum(id in v.audio for id in one.tokens) == len(audio)
    assert "how are you" in made.prompts.tokenizer.decode(one.tokens.tolist())
    with pytest.raises(InputError, match="transcript"):
        made.chat(turns)
    with pytest.raises(InputError, match="assistant"):
        made.chat(turns[:3])


# ---------------------------------------------------------------- packing


def test_packed_documents_compute_what_they_compute_alone():
    model = Step1Scorer(tiny_model())
    rng = np.random.default_rng(0)
    documents = [document(rng.integers(5, 5000, n)) for n in (7, 300, 1, 40)]
    row = pack(documents, ["text"])
    together = model(row.tokens_1T, row.lengths, row.places_N)
    alone = [model(one.tokens_1T, one.lengths, one.places_N) for one in (pack([d], ["text"]) for d in documents)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert row.targets_N.tolist() == [t for d in documents for t in d.tokens[1:].tolist()]


def test_one_document_changes_nothing_of_another():
    model = Step1Scorer(tiny_model())
    rng = np.random.default_rng(0)
    documents = [document(rng.integers(5, 5000, n)) for n in (20, 30, 25)]
    changed = [documents[0], document(rng.integers(5, 5000, 30)), documents[2]]
    rows = [pack(own, ["text"]) for own in (documents, changed)]
    logits = [model(row.tokens_1T, row.lengths, row.places_N) for row in rows]
    assert torch.equal(logits[0][:20], logits[1][:20])
    assert torch.equal(logits[0][50:], logits[1][50:])
    assert not torch.allclose(logits[0][21:50], logits[1][21:50])


def test_the_fused_kernel_keeps_documents_apart_too():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 50, 6, 16), torch.randn(1, 50, 2, 16), torch.randn(1, 50, 2, 16)
    slopes = torch.rand(6)
    packed = attend_packed(q, k, v, slopes, [20, 25, 5])
    torch.testing.assert_close(attend_flex(q, k, v, slopes, [20, 25, 5]), packed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 20:45], attend(q[:, 20:45], k[:, 20:45], v[:, 20:45], slopes))


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(1, 60), min_size=1, max_size=8), min_size=1, max_size=4
    ),
    weights=st.lists(st.floats(0.1, 4), min_size=4, max_size=4),
    tokens=st.integers(1, 200),
    stop=st.integers(0, 30),
)
def test_shares_hold_in_trained_tokens_and_the_cursor_goes_on(lengths, weights, tokens, stop):
    documents = {kind: [document([5] * n, kind) for n in own] for kind, own in lengths.items()}
    shares = dict(zip(sorted(documents), weights, strict=False))
    mixture = Mixture(documents, shares, tokens=tokens)
    drawn = [next(mixture) for _ in range(stop)]
    state = mixture.state()
    after = [next(mixture) for _ in range(40)]
    for row in drawn + after:
        size = sum(len(documents[kind][index].tokens) for kind, index in row)
        assert size <= tokens or len(row) == 1
    references = [reference for row in drawn + after for reference in row]
    total = sum(documents[kind][index].count for kind, index in references)
    for kind, share in shares.items():
        own = sum(documents[k][index].count for k, index in references if k == kind)
        assert abs(own - total * share / sum(shares.values())) <= len(documents) * 60
        # Each document comes equally often.
        times = np.bincount([index for k, index in references if k == kind], minlength=len(documents[kind]))
        assert times.max() - times.min() <= 1
    mixture.check()
    again = Mixture(documents, shares, tokens=tokens)
    again.restore(state)
    assert [next(again) for _ in range(40)] == after


def test_wrong_shares_are_noticed():
    documents = {kind: [document([5] * 10, kind)] for kind in "ab"}
    mixture = Mixture(documents, {"a": 1, "b": 1}, tokens=100)
    next(mixture)
    mixture.trained["a"] += 100
    with pytest.raises(RuntimeError, match=r"instead of 50\.0%"):
        mixture.check()
    with pytest.raises(InputError, match="'c'"):
        Mixture(documents, {"a": 1, "c": 1}, tokens=100)


# ---------------------------------------------------------------- the task


def task(**changes):
    rng = np.random.default_rng(0)
    documents = {kind: [document(rng.integers(5, 40, 12), kind) for _ in range(4)] for kind in ("asr", "tts")}
    model = Step1Scorer(tiny_model(vocab_size=64))
    return LmTask(model, documents, {"tts": 3, "asr": 1}, **{"streams": {"low": range(5, 20)}, "tokens": 30} | changes)


def test_the_loss_is_the_cross_entropy_of_trained_tokens():
    own = task()
    batch = own.load([("tts", 0), ("asr", 1)])
    loss = own.loss(batch, 0)
    nats, low = [], []
    for kind, index in (("tts", 0), ("asr", 1)):
        tokens = torch.from_numpy(own.documents[kind][index].tokens).long()
        log_probability = own.model.lm(tokens[None])[0].log_softmax(dim=-1)
        nats += [-float(log_probability[t, tokens[t + 1]]) for t in range(12)]
        low += [n for n, t in zip(nats[-12:], tokens[1:], strict=True) if 5 <= t < 20]
    assert loss.count == 24
    assert float(loss.total) == pytest.approx(sum(nats), rel=1e-4)
    total, count = loss.figures["loss/low"]
    assert count == len(low)
    assert float(total) == pytest.approx(sum(low), rel=1e-4)
    assert loss.figures["share/tts"] == (12, 24)


def test_flops_are_those_of_the_layers():
    own = task()
    c = own.model.lm.config
    width, keys = c.num_attention_heads * c.head_dim, c.num_attention_groups * c.head_dim
    weights = c.num_hidden_layers * c.hidden_size * (2 * width + 2 * keys + 3 * c.intermediate_size)
    # Causal attention: every token against half of its document, twice, two operations each.
    attention = c.num_hidden_layers * width * (10**2 + 20**2) / 2 * 4
    norms = 2 * c.num_hidden_layers * c.hidden_size
    expected = 3 * (2 * (weights + norms) * 30 + attention + 2 * 64 * c.hidden_size * 7)
    assert own.model.flops([10, 20], 7) == expected


def test_the_vocabulary_learns_at_its_own_rate():
    (optimizer,) = task(rates=Rates(1e-3, vocabulary=5.0)).optimizers()
    rates = {round(group["lr"], 6): sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    model = task().model.lm
    assert rates[5e-3] == model.lm_head.weight.numel() + model.model.embed_tokens.weight.numel()
    assert set(rates) == {1e-3, 5e-3}
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups if group["lr"] > 4e-3)


def test_learns_by_heart_and_goes_on_exactly(tmp_path):
    def run(out, stop=60):
        own = task(rates=Rates(5e-3))
        loop = Loop(own, LoopConfig(out, 60, schedule=Schedule(5, 0.3), log_every=20, save_every=20, bf16=False))
        lines = []
        for line in loop.run():
            lines.append(line)
            if line["step"] == stop:
                break
        return loop, lines

    whole, lines = run(tmp_path / "whole")
    assert lines[0]["loss"] < math.log(64)
    assert lines[-1]["loss"] < 0.6  # a quarter of it is the first tokens, which cannot be known
    assert lines[-1]["share/tts"] == pytest.approx(0.75, abs=0.1)
    run(tmp_path / "cut", stop=40)
    resumed, _ = run(tmp_path / "cut")
    for a, b in zip(whole.task.model.parameters(), resumed.task.model.parameters(), strict=True):
        assert torch.equal(a, b)
