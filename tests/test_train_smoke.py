"""All stages from text to sound, small: a teacher speaks, the tokenizer hears, and the recipe `cpu_smoke`, the flow and
the vocoder learn enough to beat what knows nothing of the sentence."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stepaudio.audio import io
from stepaudio.data.codes import read_tokenized, tokenize_manifest
from stepaudio.data.plan import HEARTS
from stepaudio.data.synthesis import Line, synthesize
from stepaudio.decoder.flow import Reference, Sampling
from stepaudio.decoder.mel import MEL_24K
from stepaudio.decoder.vocos import VOCODER, load_vocos
from stepaudio.lm import checkpoint
from stepaudio.lm.nano import load_vocabulary
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.tokenizer.interleave import interleave
from stepaudio.train.clips import Recordings
from stepaudio.train.corpus import nano_corpus
from stepaudio.train.documents import NanoDocuments, SpeakingRate
from stepaudio.train.flow import FlowTraining, load_speech, train_flow
from stepaudio.train.lm import LmTask, Step1Scorer
from stepaudio.train.loop import LoopConfig, Schedule
from stepaudio.train.ngram import Ngram
from stepaudio.train.recipes import NANO_SHARES, recipe
from stepaudio.train.stages import train_lm
from stepaudio.train.vocoder import VocoderConfig, train_vocoder

NOUNS = ["dog", "house", "river", "window", "garden", "teacher", "letter", "bottle", "train", "song"]
VERBS = ["finds", "opens", "follows", "likes", "paints"]
ADJECTIVES = ["small", "yellow", "quiet", "broken", "heavy"]
SENTENCES, HELD_OUT = 150, 15


def texts():
    rng = np.random.default_rng(0)
    pattern = ("the", ADJECTIVES, NOUNS, VERBS, "a", ADJECTIVES, NOUNS)
    made = [" ".join(w if isinstance(w, str) else str(rng.choice(w)) for w in pattern) for _ in range(2 * SENTENCES)]
    return list(dict.fromkeys(made))[:SENTENCES]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Six minutes of tokenized speech by four speakers."""
    pytest.importorskip("hibari")
    from stepaudio.speech.teachers import HibariTeacher

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("speech")
    lines = [
        Line(text, "en", HEARTS[index % 4], "hibari", "test", "dev" if index < HELD_OUT else "train", index)
        for index, text in enumerate(texts())
    ]
    list(synthesize(lines, folder, {"hibari": HibariTeacher}))
    with DualTokenizer.load("nano-tokenizer") as tokenizer:
        list(tokenize_manifest(folder / "manifest.jsonl", tokenizer, "nano-tokenizer"))
    return folder / "manifest.jsonl"


def test_the_language_model_learns_to_speak_better_than_counting(manifest, tmp_path):
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


def test_the_flow_learns_what_codes_sound_like(manifest, tmp_path):
    training = FlowTraining(batch_seconds=10.0, learning_rate=2e-3)
    log = list(train_flow(manifest, LoopConfig(tmp_path, 60, ema=0.98, schedule=Schedule(warmup=10)), training))
    assert log[-1]["loss"] < log[0]["loss"] - 0.3

    speech = load_speech(tmp_path)
    dev = read_tokenized(manifest, "nano-tokenizer", split="dev")
    clips = Recordings.read(manifest, "nano-tokenizer", MEL_24K, split="dev")
    known = Recordings.read(manifest, "nano-tokenizer", MEL_24K)
    mean_M = torch.cat([known[index].mel.float() for index in range(len(known))]).mean(0)
    own, other, average = [], [], []
    for index, (utterance, codes) in enumerate(dev):
        real_TM = clips[index].mel.float()
        voice = Reference(speech.timbre.embed(known[known.speakers.index(utterance.speaker)].mel.float().T))
        for distances, said in ((own, codes), (other, dev[index - 1][1])):
            tokens = interleave(said.linguistic, said.semantic)
            [made_MT] = speech.flow.generate([tokens], [voice], Sampling(4, 0.0, 0.3))
            distances.append(_distance(made_MT.T, real_TM))
        average.append(_distance(mean_M.expand_as(real_TM), real_TM))
    own, other, average = map(np.mean, (own, other, average))
    assert own < average, f"{own:.2f} from the real mel, the mean of all mels {average:.2f}"
    assert own < other, f"{own:.2f} from the real mel, with the codes of another sentence {other:.2f}"


def test_the_vocoder_learns_what_mels_sound_like(manifest, tmp_path):
    spectra, game = tmp_path / "spectra", tmp_path / "game"
    config = LoopConfig(spectra, 40, ema=0.95, log_every=10, schedule=Schedule(warmup=5))
    log = list(train_vocoder(VocoderConfig(manifest, batch=8), config))
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    training = VocoderConfig(manifest, init=spectra / VOCODER, adversarial=True, batch=4)
    list(train_vocoder(training, LoopConfig(game, 5, schedule=Schedule(warmup=5))))

    known = Recordings.read(manifest, "nano-tokenizer", MEL_24K)
    mean_M = torch.cat([known[index].mel.float() for index in range(len(known))]).mean(0)
    for folder in (spectra, game):
        vocoder = load_vocos(folder / VOCODER)
        own, average = [], []
        for utterance, _ in read_tokenized(manifest, "nano-tokenizer", split="dev"):
            real_TM = MEL_24K(torch.from_numpy(io.read(utterance.audio, rate=24_000))[None])[0].T
            with torch.inference_mode():
                heard_TM = MEL_24K(vocoder(real_TM.T[None])[0])[0].T
            own.append(_distance(heard_TM, real_TM))
            average.append(_distance(mean_M.expand_as(real_TM), real_TM))
        own, average = map(np.mean, (own, average))
        assert own < average, f"{folder.name}: {own:.2f} from the real mel, the mean of all mels {average:.2f}"


def _distance(made_TM, real_TM):
    """The mean distance of log-mel values, over the frames that both have."""
    frames = min(len(made_TM), len(real_TM))
    return float((made_TM[:frames] - real_TM[:frames]).abs().mean())
