"""The recipe `cpu_smoke` from text to a language model: a teacher speaks, the tokenizer hears, the model learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stepaudio.data.codes import read_tokenized, tokenize_manifest
from stepaudio.data.plan import HEARTS
from stepaudio.data.synthesis import Line, synthesize
from stepaudio.lm import checkpoint
from stepaudio.lm.nano import load_vocabulary
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.train.corpus import nano_corpus
from stepaudio.train.documents import NanoDocuments, SpeakingRate
from stepaudio.train.lm import LmTask, Step1Scorer
from stepaudio.train.ngram import Ngram
from stepaudio.train.recipes import NANO_SHARES, recipe
from stepaudio.train.stages import train_lm

NOUNS = ["dog", "house", "river", "window", "garden", "teacher", "letter", "bottle", "train", "song"]
VERBS = ["finds", "opens", "follows", "likes", "paints"]
ADJECTIVES = ["small", "yellow", "quiet", "broken", "heavy"]
SENTENCES, HELD_OUT = 150, 15


def texts():
    rng = np.random.default_rng(0)
    pattern = ("the", ADJECTIVES, NOUNS, VERBS, "a", ADJECTIVES, NOUNS)
    made = [" ".join(w if isinstance(w, str) else str(rng.choice(w)) for w in pattern) for _ in range(2 * SENTENCES)]
    return list(dict.fromkeys(made))[:SENTENCES]


def test_a_small_model_learns_to_speak_better_than_counting(tmp_path):
    pytest.importorskip("hibari")
    from stepaudio.speech.teachers import HibariTeacher

    torch.set_num_threads(1)
    lines = [
        Line(text, "en", HEARTS[index % 4], "hibari", "test", "dev" if index < HELD_OUT else "train", index)
        for index, text in enumerate(texts())
    ]
    list(synthesize(lines, tmp_path, {"hibari": HibariTeacher}))
    manifest = tmp_path / "manifest.jsonl"
    with DualTokenizer.load("nano-tokenizer") as tokenizer:
        list(tokenize_manifest(manifest, tokenizer, "nano-tokenizer"))
    chosen = recipe("cpu_smoke")
    seen = list(train_lm(chosen, manifest, tmp_path / "run"))
    assert seen[-1]["loss"] < seen[0]["loss"] - 1

    corpus = nano_corpus(manifest, "nano-tokenizer")
    speech = [document for document in corpus.held_out if document.kind == "tts"]
    counted = Ngram(corpus.documents["tts"], corpus.vocabulary).nats(speech)
    learned = seen[-1]["held_out/loss/tts"]
    assert learned < counted, f"{learned:.2f} nats a token, counting {counted:.2f}"

    # What it says depends on the text: the same codes are a surprise behind the words of another sentence.
    model = checkpoint.load(tmp_path / "run" / "model", dtype=torch.float32)
    vocabulary = load_vocabulary(tmp_path / "run" / "model")
    dev = read_tokenized(manifest, "nano-tokenizer", split="dev")
    made = NanoDocuments(vocabulary, SpeakingRate([u for u, _ in dev]))
    others = [made.tts(replace(u, phonemes=_other(u.phonemes)), codes) for u, codes in dev]
    task = LmTask(Step1Scorer(model), corpus.documents, NANO_SHARES, held_out=others)
    with torch.no_grad():
        wrong = task.evaluate()["held_out/loss/tts"]
    assert wrong > learned + 0.05, f"{learned:.2f} nats a token with the text, {wrong:.2f} with another"


def _other(phonemes):
    """Other sounds in the same places."""
    symbols = sorted(set(phonemes) - {" "})
    return "".join(" " if s == " " else symbols[(symbols.index(s) + 5) % len(symbols)] for s in phonemes)
