"""The tokenizer's training, on recordings small enough to be learned by heart: every letter is a chord."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.data.manifest import read_manifest
from stepaudio.errors import InputError
from stepaudio.tokenizer import checkpoint
from stepaudio.tokenizer.branch import BranchStream, encode
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.train.asr import Recognizer, RecognizerConfig
from stepaudio.train.codes import perplexity, usage
from stepaudio.train.kmeans import fit_codebook
from stepaudio.train.pieces import Pieces
from stepaudio.train.reader import greedy
from stepaudio.train.speech import batches, fit_frontend, samples
from stepaudio.train.tokenizer import TokenizerTask, TrainConfig, fit_linguistic, linguistic_recipe, loop, train

TEXTS = ["abca", "cab", "bcac", "ba"]
MODEL = RecognizerConfig(width=64, blocks=1, reader_blocks=1, levels=(5, 5, 5), codes=32, pieces=8)


def chord(text):
    t = np.arange(16000 // 4) / 16000
    tones = {"a": (300, 900), "b": (500, 2100), "c": (1300, 3300)}
    letters = [sum(np.sin(2 * np.pi * hz * t) for hz in tones[c]) * np.sin(np.pi * t * 4) for c in text]
    rng = np.random.default_rng(len(text))
    return (0.2 * np.concatenate(letters) + 0.001 * rng.standard_normal(4000 * len(text))).astype(np.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("data")
    with (folder / "manifest.jsonl").open("w") as lines:
        for index, text in enumerate(TEXTS):
            soundfile.write(folder / f"{index}.wav", chord(text), 16000)
            entry = {"audio": f"{index}.wav", "text": text, "duration": 0.25 * len(text), "language": "en"}
            lines.write(json.dumps(entry) + "\n")
    return folder / "manifest.jsonl"


def config(manifest, out, **changes):
    model = replace(MODEL, **changes.pop("model", {}))
    defaults = {
        "steps": 300,
        "warmup": 10,
        "learning_rate": 5e-3,
        "batch_seconds": 10.0,
        "log_every": 5,
        "bf16": False,
        "augment": False,
    }
    return TrainConfig(manifest, out, model, **(defaults | changes))


def features(trainer, count=None):
    rows = [(u, torch.from_numpy(trainer.frontend(samples(u))), 1.0) for u in trainer.utterances[:count]]
    batch = trainer.batch(rows)
    return batch.x_BTI, batch.lengths_B


@torch.no_grad()
def read(trainer, x, lengths):
    """The texts that the reader writes from the codes alone."""
    model = trainer.model.eval()
    scores = model.reader.scores(model.reader(model.encode(x, lengths)[0], lengths))
    return [greedy(row[:n], trainer.pieces.names) for row, n in zip(scores, lengths, strict=True)]


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_learns_the_texts_through_the_bottleneck(manifest, tmp_path, quantizer):
    """Every text can be read from the codes alone within 300 updates, and usually within 100."""
    trainer = TokenizerTask(config(manifest, tmp_path, model={"quantizer": quantizer}, bf16=quantizer == "fsq"))
    x, lengths = features(trainer)
    log, texts = [], []
    for line in loop(trainer).run():
        log.append(line)
        texts = read(trainer, x, lengths)
        trainer.model.train()
        if texts == TEXTS:
            break
    assert texts == TEXTS
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert 0 < log[-1]["usage"] <= 1
    assert 1 < log[-1]["perplexity"] <= 125


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_the_exported_branch_gives_the_codes_of_training(manifest, tmp_path, quantizer):
    trainer = train(config(manifest, tmp_path, model={"quantizer": quantizer}, steps=5))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5]
    branch = checkpoint.load_branch(tmp_path / checkpoint.SEMANTIC)
    heard = samples(trainer.utterances[0])
    x, lengths = features(trainer, 1)
    with torch.inference_mode():
        trainer.model.encoder.half().float()  # the export is half precision
        seen = trainer.model.eval().encode(x, lengths)[1]
    assert len(set(seen.tolist())) > 1
    assert encode(branch, heard).tolist() == seen.tolist()
    stream = BranchStream(branch)
    streamed = [code for start in range(0, len(heard), 777) for code in stream.push(heard[start : start + 777])]
    assert [*streamed, *stream.flush()] == seen.tolist()


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_an_interrupted_run_ends_as_the_whole_one(manifest, tmp_path, quantizer):
    model = {"quantizer": quantizer, "dropout": 0.1}
    options = {"steps": 7, "save_every": 4, "batch_seconds": 1.5, "model": model}
    whole = train(config(manifest, tmp_path / "whole", **options))
    cut = TokenizerTask(config(manifest, tmp_path / "cut", **options))
    for line in loop(cut).run():
        if line["step"] == 5:  # one step after the checkpoint: that step is lost and done again
            break
    resumed = train(config(manifest, tmp_path / "cut", **options))
    assert json.loads((tmp_path / "cut" / "log.jsonl").read_text().splitlines()[-1])["step"] == 7
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_another_run_is_refused(manifest, tmp_path):
    train(config(manifest, tmp_path, steps=1))
    with pytest.raises(InputError, match="another"):
        loop(TokenizerTask(config(manifest, tmp_path, steps=1, seed=1)))


def test_the_other_branch_wants_a_folder_of_its_own(manifest, tmp_path):
    train(config(manifest, tmp_path, steps=1))
    with pytest.raises(InputError, match="the other branch's run"):
        train(replace(config(manifest, tmp_path, steps=1), model=replace(config(manifest, tmp_path).model, stack=7)))


def test_a_width_that_heads_cannot_share_is_refused():
    for width in (-64, 0, 3, 97):
        with pytest.raises(InputError, match="width"):
            RecognizerConfig(width=width)


def test_linguistic_codebook_and_a_whole_tokenizer(manifest, tmp_path):
    recipe = replace(linguistic_recipe(64), blocks=1, reader_blocks=1, pieces=8)
    linguistic = replace(config(manifest, tmp_path, steps=20), model=recipe)
    train(linguistic)
    fit_linguistic(linguistic, codes=16, iterations=4)
    figures = [json.loads(line) for line in (tmp_path / "kmeans.jsonl").read_text().splitlines()]
    assert [figure["iteration"] for figure in figures] == [1, 2, 3, 4]
    assert figures[-1]["error"] <= figures[0]["error"]
    assert figures[-1]["usage"] > 0.5

    train(config(manifest, tmp_path / "semantic", steps=1))
    (tmp_path / "semantic" / checkpoint.SEMANTIC).rename(tmp_path / checkpoint.SEMANTIC)
    with DualTokenizer.load(tmp_path) as tokenizer:
        codes = tokenizer.encode(chord("abc"))
        assert (len(codes.linguistic), len(codes.semantic)) == (13, 19)


# ------------------------------------------------------------------ k-means


def blobs():
    """Four well separated clusters of 50, in blocks of 30."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    points = centres.repeat(50, 1) + torch.randn(200, 2, generator=generator)
    return points, lambda: points.split(30)


def test_kmeans_finds_the_means_of_separate_clusters():
    points, blocks = blobs()
    lines = []
    codebook = fit_codebook(blocks, 4, iterations=12, seed=3, log=lines.append)
    expected = sorted(points.view(50, 4, 2).mean(dim=0).tolist())
    torch.testing.assert_close(torch.tensor(sorted(codebook.vectors.tolist())), torch.tensor(expected))
    assert lines[-1]["usage"] == 1
    assert lines[-1]["perplexity"] == pytest.approx(4)
    residual = (points - codebook.decode(codebook.encode(points))).square().sum(dim=1).mean()
    assert lines[-1]["error"] == pytest.approx(float(residual), rel=1e-4)


def test_kmeans_resumes_exactly(tmp_path):
    _, blocks = blobs()
    whole = fit_codebook(blocks, 7, iterations=6, seed=1)
    fit_codebook(blocks, 7, iterations=2, seed=1, checkpoint=tmp_path / "k.pt")
    resumed = fit_codebook(blocks, 7, iterations=6, seed=1, checkpoint=tmp_path / "k.pt")
    assert torch.equal(whole.vectors, resumed.vectors)
    with pytest.raises(InputError, match="another run"):
        fit_codebook(blocks, 7, seed=2, checkpoint=tmp_path / "k.pt")


def test_kmeans_needs_enough_vectors():
    with pytest.raises(InputError, match="201 codes"):
        fit_codebook(blobs()[1], 201)


# ------------------------------------------------------------------ data and figures


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 3))
def test_batches_hold_every_utterance_once(durations, seed, epoch):
    groups = batches(durations, seconds=20, seed=seed, epoch=epoch)
    assert sorted(index for group in groups for index in group) == list(range(len(durations)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(durations[i] for i in group) <= 20
    assert groups == batches(durations, seconds=20, seed=seed, epoch=epoch)


def test_frontend_normalises(manifest):
    utterances = read_manifest(manifest)
    frontend = fit_frontend(utterances, stack=5, skip=4)
    frames = np.concatenate([frontend.fbank(samples(u)) for u in utterances])
    normalised = (frames + frontend.shift[:80]) * frontend.scale[:80]
    np.testing.assert_allclose(normalised.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(normalised.std(axis=0), 1, atol=1e-3)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nothing",
        "[1]",
        '{"audio": "a.wav", "text": "a"}',
        '{"audio": "a.wav", "text": " ", "duration": 1}',
        '{"audio": "a.wav", "text": "a", "duration": 0}',
    ],
)
def test_bad_manifests(tmp_path, line):
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(InputError):
        read_manifest(tmp_path / "m.jsonl")


def test_a_recording_without_a_frame_is_named(manifest, tmp_path):
    for path in manifest.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    soundfile.write(tmp_path / "3.wav", np.zeros(300), 16000)
    with pytest.raises(InputError, match=r"3\.wav is too short"):
        train(config(tmp_path / "manifest.jsonl", tmp_path / "out", steps=1))


def test_pieces():
    pieces = Pieces.of(["Ab  c", "ｂ你 ab", "abc"], 20)
    assert pieces.decode(pieces.encode("CAB   你")) == "cab 你"
    assert pieces.encode("z")[-1] == 1
    assert Pieces(pieces.model).names == pieces.names


def test_usage_and_perplexity():
    counts = np.array([5, 5, 0, 0])
    assert usage(counts) == 0.5
    assert perplexity(counts) == pytest.approx(2)
    assert perplexity(np.zeros(4, dtype=np.int64)) == 0


def test_recommended_size():
    """2 to 8 million parameters, of which the tokenizer keeps the lower half."""
    model = Recognizer(RecognizerConfig(), vocabulary=500, phonemes=60)
    total = sum(p.numel() for p in model.parameters())
    kept = sum(p.numel() for p in model.encoder.parameters())
    assert 2e6 < total < 8e6
    assert kept < 0.6 * total
