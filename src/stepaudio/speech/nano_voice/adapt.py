"""A voice of one's own: nano-voice fine-tuned on a folder of one speaker's recordings, in one call.

    report = adapt(Path("recordings"), Path("runs/anna"), load("small"))

Recordings are cut at pauses, transcribed by the bundle, judged (`stepaudio.data.filters`) and tokenized; some of
them are kept apart. The flow and the timbre encoder then learn from the others, and the voice is the mean timbre of
them. Of what is learned a share is kept: weights on the way from the old to the new ones sound nearly as much like the
speaker, and have forgotten less of how all the codes sound. The language model stays: what it says does not depend on
who says it. The report compares sentences of the
recordings that were kept apart, spoken as a clone before and after: how they are understood and how near they are to
the speaker.

`OUT` then has the report as `report.json` and `report.md` with its `samples/`, the weights in `voice/`, a bundle
`NAME.toml`, and all that a run that is stopped goes on from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepaudio.audio.resample import resample
from stepaudio.data import filters
from stepaudio.data.codes import tokenize_manifest
from stepaudio.data.manifest import Utterance, read_audio, read_manifest, write_manifest
from stepaudio.data.synthesis import RATE
from stepaudio.data.text import spoken
from stepaudio.errors import InputError
from stepaudio.speech.bundle import Bundle
from stepaudio.speech.nano_voice.decoder import PACKAGED, VOICES, save_voices
from stepaudio.speech.nano_voice.listener import TOKENIZER
from stepaudio.speech.nano_voice.report import compare, page
from stepaudio.speech.roles import Voice
from stepaudio.speech.transcribe import transcribe
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.train.clips import Recordings
from stepaudio.train.flow import FlowTask, FlowTraining, load_speech, save_speech
from stepaudio.train.loop import Loop, LoopConfig, Schedule

_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus")
_SHORTEST, _LONGEST = 1.0, 15.0
_LEAST = 20
"""Recordings that are needed to learn from some and be tested on others."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class Adaptation:
    """How long and how fast the decoder learns."""

    steps: int = 300
    learning_rate: float = 4e-4
    share: float = 0.7
    """How far the weights go from those before to those that were learned (arXiv 2109.01903)."""
    batch_seconds: float = 24.0
    kept_apart: int = 10
    """One recording in so many is for the report."""
    sentences: int = 20
    """Of the report, at most."""
    seed: int = 0


def adapt(
    recordings: Path,
    out: Path,
    ears: Bundle,
    config: Adaptation | None = None,
    *,
    base: Path = PACKAGED,
    log: Log = print,
) -> dict[str, Any]:
    """Fine-tune, and compare with before; returns the report. Raises InputError for too little speech."""
    config = config or Adaptation()
    manifest = prepare(recordings, out, ears, config.kept_apart, log)
    with DualTokenizer.load(TOKENIZER) as tokenizer:
        for _ in tokenize_manifest(manifest, tokenizer, TOKENIZER):
            pass
    voice = out / "voice"
    learn(manifest, out, voice, config, base, recordings.name, log)
    (out / f"{recordings.name}.toml").write_text(
        f'extends = "nano-voice"\nsummary = "nano-voice, fine-tuned on {recordings.name}"\n\n'
        f'[speaker]\nbackend = "nano_voice"\nfolder = {json.dumps(str(voice.absolute()))}\n',
        encoding="utf-8",
    )
    log("comparing")
    learned_from, kept_apart = (read_manifest(manifest, split=split) for split in ("train", "test"))
    report = compare(learned_from, kept_apart[: config.sentences], ears, (base, voice), out / "samples")
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (out / "report.md").write_text(page(report, recordings.name), encoding="utf-8")
    return report


# ---------------------------------------------------------------- what it learns from


def prepare(recordings: Path, out: Path, ears: Bundle, kept_apart: int, log: Log) -> Path:
    """Recordings as utterances in `out`/manifest.jsonl: cut, transcribed, judged, one in `kept_apart` for the test."""
    manifest = out / "manifest.jsonl"
    if manifest.is_file():
        return manifest
    files = sorted(path for path in recordings.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"there are no recordings in {recordings}", param="speaker")
    for path in files:  # a bad one is told of before the others are transcribed
        read_audio(path, RATE)
    (out / "audio").mkdir(parents=True, exist_ok=True)
    found: list[Utterance] = []
    for number, path in enumerate(files, 1):
        found += _utterances(path, recordings.name, out, ears)
        log(f"transcribed {number} of {len(files)} recordings")
    encoder = ears.speaker_encoder
    voices = filters.Ears(voice=lambda u: encoder.embed(read_audio(out / u.audio, encoder.rate)))
    kept = list(filters.judged(found, voices))
    good = [index for index, utterance in enumerate(kept) if not utterance.rejected]
    if len(good) < _LEAST:
        raise InputError(
            f"{recordings} has {len(good)} usable stretches of speech, {len(kept) - len(good)} were rejected; at least "
            f"{_LEAST} are needed, about two minutes of one person",
            param="speaker",
        )
    for index in good:
        kept[index] = replace(kept[index], split="train")
    for index in good[::kept_apart]:
        kept[index] = replace(kept[index], split="test")
    write_manifest(manifest, kept)
    return manifest


def _utterances(path: Path, speaker: str, out: Path, ears: Bundle) -> Iterator[Utterance]:
    """The stretches of one recording that are long enough and say something."""
    import soundfile

    samples = read_audio(path, RATE)
    heard = resample(samples, RATE, ears.transcriber.rate)
    for number, segment in enumerate(transcribe(ears.transcriber, heard, vad=ears.vad, language="en")):
        text, seconds = segment.transcript.text.strip(), segment.end - segment.start
        if not text or not _SHORTEST <= seconds <= _LONGEST:
            continue
        audio = Path("audio") / f"{path.stem}-{number:03}.flac"
        cut = samples[round(segment.start * RATE) : round(segment.end * RATE)]
        soundfile.write(out / audio, cut, RATE, subtype="PCM_16")
        yield Utterance(audio, text, round(len(cut) / RATE, 3), spoken(text, "en"), "en", speaker, source=path.name)


# ---------------------------------------------------------------- learning


def learn(manifest: Path, out: Path, voice: Path, config: Adaptation, base: Path, name: str, log: Log) -> None:
    """Fine-tune flow and timbre encoder from those in `base`, and write a folder that `NanoSpeaker` reads."""
    speech = load_speech(base)
    training = FlowTraining(
        speech.flow.config,
        speech.timbre.config,
        batch_seconds=config.batch_seconds,
        learning_rate=config.learning_rate,
        drop_speaker=0.0,
        seed=config.seed,
    )
    task = FlowTask(training, Recordings.read(manifest, TOKENIZER, training.spec), speech)
    schedule = Schedule(warmup=20, cooldown=0.5)
    loop = Loop(
        task, LoopConfig(out / "run", config.steps, schedule=schedule, ema=0.99, save_every=50, seed=config.seed)
    )
    for line in loop.run():
        log(f"step {line['step']} of {config.steps}: loss {line['loss']:.3f}")
    voice.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        shutil.copyfile(path, voice / path.name)
    with loop.averaged():
        _hold_back(task.model, load_speech(base), config.share)
        save_speech(task.model, voice)
        task.model.eval()
        vectors = [task.model.timbre.embed(task.recordings[i].mel.float().T) for i in range(len(task.recordings))]
    save_voices(voice / VOICES, {Voice(name, ("en",), "fine-tuned"): torch.stack(vectors).mean(0)})


@torch.no_grad()
def _hold_back(learned: nn.Module, before: nn.Module, share: float) -> None:
    """Let weights be this share of the way from those before to those that were learned."""
    for after, own in zip(learned.parameters(), before.parameters(), strict=True):
        after.lerp_(own, 1 - share)
