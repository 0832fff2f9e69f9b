"""`stepaudio train`: the training runs."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from stepaudio.cli import train_voice
from stepaudio.cli.output import JsonOption, console, print_json, progress
from stepaudio.errors import MissingError

app = typer.Typer(no_args_is_help=True, help="Train models.")
for verb in (train_voice.flow, train_voice.vocoder, train_voice.voice):
    app.command()(verb)


class Branch(StrEnum):
    SEMANTIC = "semantic"
    LINGUISTIC = "linguistic"


@app.callback()
def _options() -> None:
    """Train models."""


@app.command()
def tokenizer(
    branch: Annotated[Branch, typer.Argument(help="The codebook to train.")],
    manifest: Annotated[Path, typer.Argument(help="manifest.jsonl; its lines of the split train are used.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; a run that is there goes on.")],
    sentences: Annotated[
        Path | None, typer.Option(help="sentences.tsv: more text for the words of the semantic reader.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Updates.", min=1)] = 5000,
    batch_seconds: Annotated[float, typer.Option(help="Audio of an update, in seconds.", min=1)] = 40.0,
    width: Annotated[int | None, typer.Option(help="Width of the encoder.")] = None,
    vq: Annotated[bool, typer.Option("--vq", help="A learned codebook instead of FSQ, for semantic codes.")] = False,
    codes: Annotated[int, typer.Option(help="Size of the linguistic codebook.", min=2)] = 1024,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 2e-3,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 200,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
    json: JsonOption = False,
) -> None:
    """Train one half of a tokenizer on transcribed speech and export it; stop it at any time, it goes on from there.

    A folder with both halves, semantic.safetensors and linguistic.safetensors, is a tokenizer.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingError("training needs torch; run: pip install 'stepaudio[train]'")
    import torch

    from stepaudio.train.asr import RecognizerConfig
    from stepaudio.train.tokenizer import TrainConfig, fit_linguistic, linguistic_recipe, train

    torch.set_num_threads(threads)
    semantic = branch is Branch.SEMANTIC
    model = RecognizerConfig(quantizer="vq" if vq else "fsq") if semantic else linguistic_recipe()
    config = TrainConfig(
        manifest=manifest,
        out=out,
        sentences=sentences,
        model=replace(model, width=width or model.width),
        steps=steps,
        batch_seconds=batch_seconds,
        learning_rate=learning_rate,
        save_every=save_every,
        log_every=min(50, save_every),
        seed=seed,
    )
    last: dict[str, Any] = {}
    with progress(quiet=json) as bars:
        task = bars.add_task("training", total=steps)

        def report(line: dict[str, Any]) -> None:
            last.update(line)
            speed = f"{line['audio_seconds_per_second']:.0f} s/s, {line['codes_per_second']:.0f} codes/s"
            bars.update(task, completed=line["step"], description=f"loss {line['total']:.3f}, {speed}")

        train(config, report)
        if not semantic:
            clustering = bars.add_task("clustering", total=15)

            def clustered(line: dict[str, Any]) -> None:
                last.update(line)
                bars.update(clustering, completed=line["iteration"], description=f"error {line['error']:.3f}")

            fit_linguistic(config, codes=codes, iterations=15, log=clustered)
    if json:
        print_json({"output": str(out), **last})
    else:
        console().print(f"{out / f'{branch}.safetensors'} after {steps} steps")
