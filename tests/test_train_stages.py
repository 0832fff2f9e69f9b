"""A recipe from a manifest to a model, its plan, and what it may begin with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_models import tiny_model
from stepaudio.data.codes import read_tokenized, tokenize_manifest
from stepaudio.data.manifest import write_manifest
from stepaudio.errors import InputError, MissingError, NotFoundError
from stepaudio.lm import checkpoint
from stepaudio.lm.step1 import Config
from stepaudio.train.begin import code_vectors, fresh, grown
from stepaudio.train.hardware import Hardware
from stepaudio.train.huggingface import HfScorer, HfText
from stepaudio.train.lm import Rates, Step1Scorer
from stepaudio.train.loop import Schedule
from stepaudio.train.ngram import Ngram
from stepaudio.train.packing import pack
from stepaudio.train.plan import plan, table
from stepaudio.train.recipes import FIRST, NAMES, RECIPES, SECOND, THIRD, LmRecipe, Stage, recipe
from stepaudio.train.stages import train_lm
from training import codes, document, utterance

WORDS = ["ab", "ba", "cab", "a", "c"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Counting:
    """A tokenizer whose codes depend on the length alone, and that counts its calls."""

    def __init__(self):
        self.calls = 0

    def encode(self, samples):
        self.calls += 1
        return codes(len(samples), groups=6)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    import soundfile

    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    said = []
    for index in range(70):
        text = " ".join(rng.choice(WORDS, 3))
        audio = folder / f"{index}.wav"
        soundfile.write(audio, np.zeros(1000 + index), 16000)
        split = "dev" if index % 7 == 0 else "train"
        said.append(replace(utterance(text), audio=Path(audio.name), split=split, language="en"))
    write_manifest(folder / "manifest.jsonl", said)
    list(tokenize_manifest(folder / "manifest.jsonl", Counting(), "nano-tokenizer"))
    return folder / "manifest.jsonl"


def small(layout, shares, **changes):
    stages = tuple(Stage(f"stage{i}", own, 2000, Rates(3e-3), Schedule(3, 0.5)) for i, own in enumerate(shares))
    model = Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                   num_attention_groups=1, max_seq_len=512)  # fmt: skip
    return LmRecipe("small", model, stages, layout=layout, row=400, text=300, **changes)


# ---------------------------------------------------------------- codes


def test_speech_is_tokenized_once(manifest, tmp_path):
    tokenizer = Counting()
    assert sum(lines for lines, _ in tokenize_manifest(manifest, tokenizer, "nano-tokenizer")) == 70
    assert tokenizer.calls == 0
    pairs = read_tokenized(manifest, "nano-tokenizer", split="train")
    assert len(pairs) == 60
    for one, own in pairs:
        index = int(one.audio.stem)
        assert own.semantic.tolist() == codes(1000 + index).semantic.tolist()
    # A longer manifest keeps the groups that are whole.
    lines = manifest.read_text().splitlines()
    longer = manifest.with_name("longer.jsonl")
    longer.write_text("\n".join([*lines, *lines[:3]]) + "\n")
    list(tokenize_manifest(longer, tokenizer, "nano-tokenizer"))
    assert tokenizer.calls == 70 + 3 - 64
    with pytest.raises(MissingError, match="stepaudio data tokenize"):
        read_tokenized(manifest, "other")


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(("layout", "shares"), [("nano", [{"tts": 1, "asr": 1}]), ("paper", [FIRST, SECOND, THIRD])])
def test_a_recipe_is_followed_and_goes_on(manifest, tmp_path, layout, shares):
    chosen = small(layout, shares)
    whole = list(train_lm(chosen, manifest, tmp_path / "whole", save_every=2))
    cut = train_lm(chosen, manifest, tmp_path / "cut", save_every=2)
    next(cut)
    cut.close()
    list(train_lm(chosen, manifest, tmp_path / "cut", save_every=2))
    assert [line["stage"] for line in whole] == sorted(line["stage"] for line in whole)
    assert whole[-1]["held_out/loss/tts"] > 0
    models = [checkpoint.load(tmp_path / name / "model", dtype=torch.float32) for name in ("whole", "cut")]
    for (name, a), (_, b) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(a, b), name
    assert (tmp_path / "whole" / "model" / ("nano.json" if layout == "nano" else "tokenizer.model")).is_file()
    # And what was learned is what another run may begin with.
    more = list(train_lm(chosen, manifest, tmp_path / "more", start=tmp_path / "whole" / "model"))
    assert more[0]["loss"] < whole[0]["loss"]
    assert list(train_lm(chosen, manifest, tmp_path / "whole")) == []
    for other in ({"seed": 1}, {"start": tmp_path / "more" / "model"}):
        with pytest.raises(InputError, match="of another recipe, start or seed"):
            list(train_lm(chosen, manifest, tmp_path / "whole", **other))


def test_a_run_killed_while_it_hands_over_the_model_is_mended(manifest, tmp_path, monkeypatch):
    def cut_off(source, target, **options):
        copied = shutil_copytree(source, target, **options)
        (Path(copied) / checkpoint.SINGLE).write_bytes(b"half")
        raise KeyboardInterrupt

    chosen, shutil_copytree = small("nano", [{"tts": 1, "asr": 1}]), shutil.copytree
    monkeypatch.setattr(shutil, "copytree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        list(train_lm(chosen, manifest, tmp_path))
    monkeypatch.undo()
    list(train_lm(chosen, manifest, tmp_path))
    assert checkpoint.load(tmp_path / "model").config.hidden_size == 32


def test_the_shares_of_the_paper():
    for made in (RECIPES["paper_3b"](), RECIPES["paper_130b"]()):
        assert [stage.name for stage in made.stages] == list(NAMES)
        first, second, third = (stage.shares for stage in made.stages)
        assert first["continuation"] == 2 * first["text"]
        assert second["continuation"] == second["interleaved"]
        assert second["continuation"] + second["interleaved"] == 2 * second["text"]
        audio = [third[kind] for kind in ("continuation", "interleaved", "asr", "tts")]
        assert len(set(audio)) == 1
        assert sum(audio) * 3 == third["text"] * 4
        assert [stage.rates.vocabulary for stage in made.stages] == [5, 5, 1]
        last = made.stages[-1]
        assert last.rates.backbone * last.schedule.factor(10**6, 10**6) == pytest.approx(5e-6)


def test_plans(capsys):
    for name in RECIPES:
        assert name in table(plan(recipe(name)))
    small_plan = plan(small("nano", [{"tts": 1}]))
    assert small_plan.memory == 16 * small_plan.parameters
    assert plan(recipe("paper_3b")).parameters == pytest.approx(3.5e9, rel=0.02)
    giant = plan(recipe("paper_130b"))
    assert giant.devices(Hardware(1e15, 80e9)) >= giant.memory / 80e9
    assert giant.hours(Hardware(1e15, 80e9), 8) == pytest.approx(giant.flops / (0.4 * 8e15) / 3600)
    with pytest.raises(NotFoundError, match="cpu_nano"):
        recipe("nothing")


# ---------------------------------------------------------------- models to begin with


def test_recomputing_changes_nothing():
    torch.manual_seed(0)
    row = pack([document(np.arange(5, 40)), document(np.arange(9, 30))], ["text"])
    gradients = []
    for recompute in (False, True):
        scorer = Step1Scorer(tiny_model(vocab_size=64), recompute=recompute)
        scorer(row.tokens_1T, row.lengths, row.places_N).square().sum().backward()
        gradients.append([p.grad for p in scorer.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_vocabulary_grows_and_keeps_what_it_knew():
    model = tiny_model(vocab_size=64)
    larger = grown(model, 130, 0)
    assert larger.config.vocab_size == 192
    tokens = torch.arange(5, 30)[None]
    torch.testing.assert_close(larger(tokens)[..., :64], model(tokens))
    new = larger.lm_head.weight[64:]
    assert (new - model.lm_head.weight.mean(dim=0)).abs().max() < model.lm_head.weight.std() * 2
    assert grown(model, 10, 0).config.vocab_size == 64


def test_alike_codes_begin_alike():
    config = Config(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
                    num_attention_groups=1)  # fmt: skip
    codes = {"linguistic": range(10, 1034), "semantic": range(1034, 5130)}
    model = fresh(config, 5130, codes, "nano-tokenizer", 0)
    for stream, vectors in code_vectors("nano-tokenizer").items():
        nearest = torch.cdist(vectors[:50], vectors).topk(3, largest=False).indices[:, 2]
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            own = weight[codes[stream].start : codes[stream].stop]
            near = torch.cosine_similarity(own[:50], own[nearest]).mean()
            far = torch.cosine_similarity(own[:50], own[torch.arange(50) + 500]).mean()
            assert near > far + 0.2
            assert float(own.std()) == pytest.approx(0.02, rel=0.1)
    assert code_vectors("elsewhere") == {}


@pytest.fixture(scope="module")
def hugging(tmp_path_factory):
    """A random Llama with a tokenizer of letters."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("hf")
    letters = {letter: index for index, letter in enumerate(["<unk>", "</s>", *" abcdefghijklmnopqrstuvwxyzT,.'\nRW"])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(letters), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_documents_in_a_hugging_face_model_do_not_see_each_other(hugging):
    scorer = HfScorer.load(hugging, 40)
    rng = np.random.default_rng(0)
    documents = [document(rng.integers(5, 30, n)) for n in (4, 30, 12)]
    row = pack(documents, ["text"])
    together = scorer(row.tokens_1T, row.lengths, row.places_N)
    alone = [scorer(one.tokens_1T, one.lengths, one.places_N) for one in (pack([d], ["text"]) for d in documents)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_hugging_face_model_learns_speech(hugging, manifest, tmp_path):
    text = HfText(hugging)
    assert text.decode([*text.encode("ab"), text.vocabulary.text + 7]) == "ab<audio_7>"
    chosen = small("paper", [SECOND, THIRD])
    lines = list(train_lm(chosen, manifest, tmp_path, start=hugging))
    assert lines[-1]["loss"] < lines[0]["loss"]
    scorer = HfScorer.load(tmp_path / "model", 0)
    assert scorer.lm.get_input_embeddings().num_embeddings >= text.vocabulary.audio.stop
    assert HfText(tmp_path / "model").vocabulary == text.vocabulary


def test_what_is_no_model_is_refused(manifest, tmp_path):
    with pytest.raises(MissingError, match=r"config\.json"):
        list(train_lm(small("paper", [FIRST]), manifest, tmp_path / "out", start=tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError):
        list(train_lm(small("paper", [FIRST]), manifest, tmp_path / "out", start=tmp_path))


# ---------------------------------------------------------------- the baseline


def test_the_baseline_is_witten_bell():
    ngram = Ngram([document([5, 6, 5, 6, 7])], 10, order=2)
    # Trained: 5 after <1>, 6 after 5, 5 after 6, 6 after 5, 7 after 6.
    unigram = (2 + 3 * 0.1) / (5 + 3)
    assert ngram.probability((), 6) == pytest.approx(unigram)
    assert ngram.probability((5,), 6) == pytest.approx((2 + 1 * unigram) / (2 + 1))
    assert ngram.probability((9,), 6) == pytest.approx(unigram)
    for history in ((), (5,), (6,), (9,)):
        assert sum(ngram.probability(history, token) for token in range(10)) == pytest.approx(1)
    one = document([6, 7])
    expected = -np.log([ngram.probability((1,), 6), ngram.probability((6,), 7)]).mean()
    assert ngram.nats([one]) == pytest.approx(expected)
