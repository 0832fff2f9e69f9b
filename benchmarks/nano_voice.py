"""How good is nano-voice? Every figure of docs/nano-voice.md.

    python benchmarks/nano_voice.py MANIFEST --out runs/out/nano-voice.json
    python benchmarks/nano_voice.py MANIFEST --only speaking --limit 60
    python benchmarks/nano_voice.py MANIFEST --only own --own runs/out/anna --limit 180

MANIFEST is one of `stepaudio data synthesize` that is tokenized; its test sentences were never trained on. Whisper-base
hears, DNSMOS rates, Resemblyzer tells voices apart. All intervals are 95 %.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

import stepaudio
from stepaudio.audio import io
from stepaudio.audio.pcm import Samples
from stepaudio.audio.resample import resample
from stepaudio.data.codes import read_tokenized
from stepaudio.data.filters import tokens
from stepaudio.data.manifest import Utterance, read_manifest
from stepaudio.decoder.checkpoint import load_flow
from stepaudio.decoder.flow import AlignedFlow, Sampling
from stepaudio.decoder.timbre import TIMBRE, load_timbre
from stepaudio.decoder.tokens import PAD, realign
from stepaudio.decoder.vocos import VOCODER, load_vocos
from stepaudio.eval.codes import error_rate
from stepaudio.eval.metrics.intervals import mean
from stepaudio.eval.metrics.mos import DnsMos
from stepaudio.eval.metrics.speaker import similarity
from stepaudio.speech.nano_voice.adapt import Adaptation
from stepaudio.speech.nano_voice.decoder import PACKAGED, SAMPLING
from stepaudio.speech.nano_voice.listener import NanoTranscriber
from stepaudio.speech.nano_voice.report import compare
from stepaudio.speech.nano_voice.speaker import SPEEDS, NanoSpeaker
from stepaudio.speech.roles import Reference, Speaker
from stepaudio.speech.say import say
from stepaudio.speech.weights import Store, catalogue
from stepaudio.tokenizer.interleave import interleave
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.clips import mel_of

RATE = 24_000
Tokenized = tuple[Utterance, DualCodes]
Figures = dict[str, Any]


class Ears:
    """What judges."""

    def __init__(self) -> None:
        bundle = stepaudio.load("small")
        self.transcriber, self.encoder = bundle.transcriber, bundle.speaker_encoder
        self.mos = DnsMos(Store().verified(catalogue()["dnsmos"]) / "sig_bak_ovr.onnx", threads=2)

    def words(self, samples: Samples) -> list[str]:
        heard = self.transcriber.transcribe(resample(samples, RATE, self.transcriber.rate), language="en")
        return tokens(heard.text, "en")

    def quality(self, samples: Samples) -> float:
        return self.mos.score(resample(samples, RATE, 16_000)).overall

    def voice(self, samples: Samples) -> NDArray[np.float32]:
        return self.encoder.embed(resample(samples, RATE, self.encoder.rate))


@dataclass
class Tally:
    """What was made of some sentences: words wanted and heard, quality, similarity."""

    words: list[tuple[list[str], list[str]]]
    quality: list[float]
    nearness: list[float]

    @classmethod
    def new(cls) -> Tally:
        return cls([], [], [])

    def figures(self) -> Figures:
        found: Figures = {"wer": asdict(error_rate(self.words))}
        if self.quality:
            found["dnsmos"] = asdict(mean(self.quality))
        if self.nearness:
            found["similarity"] = asdict(mean(self.nearness))
        return found


def words_of(utterance: Utterance) -> list[str]:
    return tokens(utterance.text, "en")


def recording(utterance: Utterance) -> Samples:
    return io.read(utterance.audio, rate=RATE)


# ---------------------------------------------------------------- codes to sound


class Plain:
    """The decoder without streaming, for what is left out of its conditions."""

    def __init__(self, folder: Path) -> None:
        flow = load_flow(folder)
        assert isinstance(flow, AlignedFlow)
        self.flow, self.timbre, self.vocoder = flow, load_timbre(folder / TIMBRE), load_vocos(folder / VOCODER)
        self.spec = self.vocoder.config.mel

    @torch.inference_mode()
    def say(self, rows: NDArray[np.int64], speaker_S: Tensor, prompt_TM: Tensor | None, sampling: Sampling) -> Samples:
        """Rows, of which those of `prompt_TM` come first and are not given back, as samples."""
        flow = self.flow
        rows_1R2 = torch.from_numpy(rows)[None]
        hidden_1FC = flow.encoder(flow.input_embedding(rows_1R2), torch.tensor([len(rows)]))
        prompt_TM = torch.zeros(0, flow.config.mels) if prompt_TM is None else prompt_TM
        known_TM = (prompt_TM - flow.config.mel_mean) / flow.config.mel_std
        fixed_1TK = flow.conditions(flow.encoder_proj(hidden_1FC), speaker_S[None], [known_TM])
        times, noise_TM = flow.times(sampling), flow.noise(sampling).frames(0, fixed_1TK.shape[1])
        x_1TM = flow.follow(lambda x_BTI, k: flow.estimator(x_BTI, times[k]), noise_TM, fixed_1TK, sampling)
        mel_MT = flow.denormalise(x_1TM[0, len(prompt_TM) :]).T
        samples: Samples = self.vocoder(mel_MT[None])[0][0].numpy()
        return samples


def resynthesis(test: list[Tokenized], known: list[Tokenized], ears: Ears, folder: Path, sampling: Sampling) -> Figures:
    """Held-out recordings from their own codes: both codebooks, one of them, without speaker, with a prompt."""
    plain = Plain(folder)
    others = by_speaker(known)
    tallies: dict[str, Tally] = defaultdict(Tally.new)
    for utterance, codes in track(test, "resynthesis"):
        samples = recording(utterance)
        near = ears.voice(samples)
        clip, clip_codes = next(pair for pair in others[utterance.speaker] if pair[0] != utterance)
        mel_TM = mel_of(recording(clip), plain.spec)
        speaker_S = plain.timbre.embed(mel_TM.T)
        rows = realign(interleave(codes.linguistic, codes.semantic))
        semantic, linguistic = rows.copy(), rows.copy()
        semantic[:, 0], linguistic[:, 1] = PAD, PAD
        head = realign(interleave(clip_codes.linguistic, clip_codes.semantic))[: len(mel_TM) // 2]
        prompt_TM = mel_TM[: 2 * len(head)]
        none_S = torch.zeros_like(speaker_S)
        made = {
            "teacher": samples,
            "vocoder": plain.vocoder(mel_of(samples, plain.spec).T[None])[0][0].detach().numpy(),
            "dual": plain.say(rows, speaker_S, None, sampling),
            "semantic": plain.say(semantic, speaker_S, None, sampling),
            "linguistic": plain.say(linguistic, speaker_S, None, sampling),
            "no speaker": plain.say(rows, none_S, None, sampling),
            "speaker and prompt": plain.say(np.concatenate([head, rows]), speaker_S, prompt_TM, sampling),
        }
        for name, sound in made.items():
            tallies[name].words.append((words_of(utterance), ears.words(sound)))
            tallies[name].quality.append(ears.quality(sound))
            if name != "teacher":
                tallies[name].nearness.append(similarity(ears.voice(sound), near))
    return {name: tally.figures() for name, tally in tallies.items()}


def by_speaker(pairs: Sequence[Tokenized]) -> dict[str, list[Tokenized]]:
    found: dict[str, list[Tokenized]] = defaultdict(list)
    for pair in pairs:
        found[pair[0].speaker].append(pair)
    return found


# ---------------------------------------------------------------- text to sound


def speaking(test: list[Tokenized], ears: Ears, nano: NanoSpeaker) -> Figures:
    """Held-out sentences said by nano-voice's first voice and by the teacher, and how fast."""
    teacher = stepaudio.load("small").speaker
    tallies: dict[str, Tally] = defaultdict(Tally.new)
    first, factor = [], []
    for utterance, _ in track(test, "speaking"):
        started = time.perf_counter()
        pieces = []
        for speech in say(nano, utterance.text, language="en"):
            pieces.append(speech.samples)
            if len(pieces) == 1:
                first.append(time.perf_counter() - started)
        own = np.concatenate(pieces)
        factor.append((time.perf_counter() - started) / (len(own) / RATE))
        their = np.concatenate([s.samples for s in say(teacher, utterance.text, voice="heart")])
        for name, sound in (("nano-voice", own), ("teacher", their)):
            tallies[name].words.append((words_of(utterance), ears.words(sound)))
            tallies[name].quality.append(ears.quality(sound))
    speed = {"first_audio_seconds": float(np.median(first)), "first_audio_p95": float(np.quantile(first, 0.95))}
    speed["real_time_factor"] = float(np.median(factor))
    return {name: tally.figures() for name, tally in tallies.items()} | speed


def speeds(test: list[Tokenized], nano: NanoSpeaker) -> Figures:
    """Seconds that the same sentences take at each of the five tags."""
    found = {}
    for label in track(SPEEDS, "speeds"):
        seconds = [sum(len(s.samples) for s in say(nano.styled(label), u.text, language="en")) / RATE for u, _ in test]
        found[label] = asdict(mean(seconds))
    return found


def cloning(clips: list[Utterance], test: list[Tokenized], ears: Ears, nano: NanoSpeaker, each: int = 10) -> Figures:
    """Clones of speakers that nothing was trained on, against other recordings of the same and of other speakers."""
    own: dict[str, list[Samples]] = defaultdict(list)
    for clip in clips:
        own[clip.speaker].append(recording(clip))
    vectors = {name: [ears.voice(s) for s in sounds[: 3 * each]] for name, sounds in own.items()}
    centres = {name: np.mean(found[each:], axis=0) for name, found in vectors.items()}
    strangers = [ears.voice(recording(u)) for u, _ in test[:each]]
    found = {}
    for name, sounds in own.items():
        reference = Reference(np.concatenate(sounds[:2]), RATE, "")
        clone: Speaker = nano.cloned(reference)
        made = [np.concatenate([s.samples for s in say(clone, u.text, language="en")]) for u, _ in test[:each]]
        others = strangers + [vector for other, theirs in vectors.items() if other != name for vector in theirs[:each]]
        found[name] = {
            "clone": asdict(mean([similarity(ears.voice(sound), centres[name]) for sound in made])),
            "same voice": asdict(mean([similarity(vector, centres[name]) for vector in vectors[name][:each]])),
            "other voices": asdict(mean([similarity(vector, centres[name]) for vector in others])),
            "default voice": asdict(mean([similarity(v, centres[name]) for v in _default(test[:each], ears, nano)])),
        }
    return found


def _default(test: list[Tokenized], ears: Ears, nano: NanoSpeaker) -> Iterator[NDArray[np.float32]]:
    for utterance, _ in test:
        yield ears.voice(np.concatenate([s.samples for s in say(nano, utterance.text, language="en")]))


def own(run: Path, test: list[Tokenized], folder: Path) -> Figures:
    """What `stepaudio train voice -o RUN` changed, on the sentences that it kept apart and these."""
    learned_from, kept_apart = (read_manifest(run / "manifest.jsonl", split=split) for split in ("train", "test"))
    kept_apart = kept_apart[: Adaptation.sentences]
    more = [utterance for utterance, _ in test]
    with TemporaryDirectory() as samples:
        report = compare(
            learned_from, kept_apart, stepaudio.load("small"), (folder, run / "voice"), Path(samples), more
        )
    return {name: figures for name, figures in report.items() if name != "said"}


def hearing(test: list[Tokenized], folder: Path) -> Figures:
    """Transcribing held-out recordings of the teacher from their codes."""
    listener = NanoTranscriber(folder)
    pairs = []
    for utterance, _ in track(test, "hearing"):
        heard = listener.transcribe(io.read(utterance.audio, rate=listener.rate))
        pairs.append((utterance.words.split(), heard.text.split()))  # both as they are spoken
    listener.close()
    return {"wer": asdict(error_rate(pairs))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--folder", type=Path, default=PACKAGED, help="weights of nano-voice")
    parser.add_argument("--clips", type=Path, help="manifest of speakers that nothing was trained on, for cloning")
    parser.add_argument("--own", type=Path, help="folder of a run of stepaudio train voice")
    parser.add_argument("--only", nargs="*", default=["resynthesis", "speaking", "speeds", "cloning", "own", "hearing"])
    parser.add_argument("--limit", type=int, default=40, help="sentences")
    parser.add_argument("--steps", type=int, default=SAMPLING.steps)
    parser.add_argument("--guidance", type=float, default=SAMPLING.guidance)
    parser.add_argument("--temperature", type=float, default=SAMPLING.temperature)
    parser.add_argument("--split", default="test", help="dev, to choose the three above")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = read_tokenized(options.manifest, "nano-tokenizer", split=options.split)
    test = [pair for pair in known if pair[0].teacher == "hibari" and len(words_of(pair[0])) >= 4][: options.limit]
    ears = Ears()
    sampling = Sampling(options.steps, options.guidance, options.temperature)
    nano = NanoSpeaker(
        options.folder, steps=sampling.steps, guidance=sampling.guidance, temperature=sampling.temperature
    )
    parts: dict[str, Callable[[], Figures]] = {
        "resynthesis": lambda: resynthesis(test, known, ears, options.folder, sampling),
        "speaking": lambda: speaking(test, ears, nano),
        "speeds": lambda: speeds(test[:20], nano),
        "hearing": lambda: hearing(test, options.folder),
    }
    if options.clips is not None:
        clips = read_manifest(options.clips)
        parts["cloning"] = lambda: cloning(clips, test, ears, nano)
    if options.own is not None:
        parts["own"] = lambda: own(options.own, test, options.folder)
    figures: Figures = {}
    for name in options.only:
        if name in parts:
            figures[name] = parts[name]()
            print(json.dumps({name: figures[name]}, indent=1), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    nano.close()


if __name__ == "__main__":
    main()
