"""`stepaudio data`: the speech that models are trained on."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stepaudio.cli.output import BundleOption, JsonOption, console, print_json, progress

app = typer.Typer(no_args_is_help=True, help="Make the speech that models are trained on.")


@app.callback()
def _options() -> None:
    """Make the speech that models are trained on."""


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder of the recordings and manifest.jsonl; what is there is kept.")],
    size: Annotated[int, typer.Option(help="English sentences by hibari's voice in 24 shapes.", min=0)] = 12_000,
    kokoro: Annotated[
        int, typer.Option(help="English sentences by Kokoro's voices; half as many Chinese ones.", min=0)
    ] = 120,
    processes: Annotated[int, typer.Option(help="Workers, a core each.", min=1)] = os.cpu_count() or 1,
    seed: Annotated[int, typer.Option(help="Draws the sentences that are made from templates.")] = 0,
    json: JsonOption = False,
) -> None:
    """Let the packaged voices say WordNet's sentences and our own; stop it at any time, it goes on from there."""
    from stepaudio.data import plan, text
    from stepaudio.data.manifest import write_lines
    from stepaudio.data.synthesis import synthesize as speak
    from stepaudio.speech.teachers import HibariTeacher, KokoroTeacher, pronounce
    from stepaudio.speech.weights import Store, catalogue

    store = Store()
    needed = ("wordnet", *(("kokoro-82m", "kokoro-voices") if kokoro else ()))
    wordnet, *speaker = (store.verified(catalogue()[name]) for name in needed)
    voices = [path.stem for path in sorted(speaker[1].glob("*.bin"))] if kokoro else []
    english, chinese = text.english(wordnet, seed), text.chinese(2 * kokoro, seed) if kokoro else []
    said = plan.nano(english, chinese, voices, size, kokoro)
    out.mkdir(parents=True, exist_ok=True)
    teachers = {"hibari": HibariTeacher} | ({"kokoro": partial(KokoroTeacher, *speaker)} if kokoro else {})
    known = [sentence.text for sentence in english if plan.split_of(sentence.text) == "train"]
    write_lines(out / "sentences.tsv", ["\t".join(pronounced) for pronounced in pronounce(known)])
    seconds = 0.0
    with progress(quiet=json) as bars:
        task = bars.add_task("speaking", total=len(said))
        for lines, audio in speak(said, out, teachers, processes=processes):
            seconds += audio
            bars.update(task, advance=lines, description=f"{seconds / 3600:.1f} h")
    if json:
        print_json({"manifest": str(out / "manifest.jsonl"), "lines": len(said), "hours": seconds / 3600})
    else:
        console().print(f"{out / 'manifest.jsonl'}: {len(said)} lines, {seconds / 3600:.1f} h")


@app.command()
def filter(
    manifest: Annotated[Path, typer.Argument(help="manifest.jsonl; it stays as it is.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="The new manifest; filtered.jsonl beside the old if none.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="Judge only so many by ear, evenly spread; all by their pace.", min=0)
    ] = None,
    bundle: BundleOption = "small",
    json: JsonOption = False,
) -> None:
    """Mark recordings that do not say their text, are too slow or fast, sound bad, or are not the speaker's."""
    from collections import Counter

    from stepaudio import load
    from stepaudio.data import filters
    from stepaudio.data.manifest import Utterance, read_manifest, write_manifest
    from stepaudio.eval.metrics.mos import RATE, DnsMos
    from stepaudio.speech.weights import Store, catalogue

    models = load(bundle)
    mos = DnsMos(Store().verified(catalogue()["dnsmos"]) / "sig_bak_ovr.onnx")

    def words(utterance: Utterance) -> str:
        samples = utterance.samples(models.transcriber.rate)
        return models.transcriber.transcribe(samples, language=utterance.language or None).text

    ears = filters.Ears(
        words,
        lambda utterance: mos.score(utterance.samples(RATE)).overall,
        lambda utterance: models.speaker_encoder.embed(utterance.samples(models.speaker_encoder.rate)),
    )
    utterances = read_manifest(manifest)
    kept = []
    with progress(quiet=json) as bars:
        task = bars.add_task("listening", total=len(utterances))
        for utterance in filters.judged(utterances, ears, sample=sample):
            audio = Path(os.path.relpath(utterance.audio, (out or manifest).parent))
            kept.append(replace(utterance, audio=audio))
            bars.update(task, advance=1)
    out = out or manifest.with_name("filtered.jsonl")
    write_manifest(out, kept)
    reasons = Counter(utterance.rejected.split(" ")[0] for utterance in kept if utterance.rejected)
    if json:
        print_json({"manifest": str(out), "lines": len(kept), "rejected": dict(reasons)})
    else:
        found = ", ".join(f"{count} by {reason}" for reason, count in reasons.most_common()) or "none"
        console().print(f"{out}: {len(kept)} lines; rejected: {found}")


@app.command()
def tokenize(
    manifest: Annotated[Path, typer.Argument(help="manifest.jsonl; its codes are kept in codes/ beside it.")],
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's folder, or one that is packaged.")] = "nano-tokenizer",
    json: JsonOption = False,
) -> None:
    """Tokenize a manifest's recordings for training; stop it at any time, it goes on from there."""
    from stepaudio.data.codes import tokenize_manifest
    from stepaudio.data.manifest import read_manifest
    from stepaudio.tokenizer.dual import DualTokenizer

    done, seconds, name = 0, 0.0, Path(tokenizer).name
    with progress(quiet=json) as bars, DualTokenizer.load(tokenizer) as encoders:
        task = bars.add_task("tokenizing", total=len(read_manifest(manifest)))
        for lines, audio in tokenize_manifest(manifest, encoders, name):
            done, seconds = done + lines, seconds + audio
            bars.update(task, completed=done, description=f"{seconds / 3600:.1f} h")
    if json:
        print_json({"codes": str(manifest.parent / "codes" / name), "lines": done, "hours": seconds / 3600})
    else:
        console().print(f"{manifest.parent / 'codes' / name}: {done} lines, {seconds / 3600:.1f} h")
