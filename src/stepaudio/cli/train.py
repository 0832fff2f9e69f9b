"""`stepaudio train`: the training runs."""

from __future__ import annotations

import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from stepaudio.cli import train_voice
from stepaudio.cli.output import JsonOption, console, print_json, progress
from stepaudio.cli.training import (
    OutOption,
    RateOption,
    SaveOption,
    SeedOption,
    StepsOption,
    ThreadsOption,
    follow,
    use_torch,
)

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
    out: OutOption,
    sentences: Annotated[
        Path | None, typer.Option(help="sentences.tsv: more text for the words of the semantic reader.")
    ] = None,
    steps: StepsOption = 5000,
    batch_seconds: Annotated[float, typer.Option(help="Audio of an update, in seconds.", min=1)] = 40.0,
    width: Annotated[int | None, typer.Option(help="Width of the encoder.")] = None,
    vq: Annotated[bool, typer.Option("--vq", help="A learned codebook instead of FSQ, for semantic codes.")] = False,
    codes: Annotated[int, typer.Option(help="Size of the linguistic codebook.", min=2)] = 1024,
    learning_rate: RateOption = 2e-3,
    save_every: SaveOption = 200,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train one half of a tokenizer on transcribed speech and export it; stop it at any time, it goes on from there.

    A folder with both halves, semantic.safetensors and linguistic.safetensors, is a tokenizer.
    """
    use_torch(threads)
    from stepaudio.train.asr import RecognizerConfig
    from stepaudio.train.tokenizer import TrainConfig, fit_linguistic, linguistic_recipe, train

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
            speed = f"{line['tokens_per_second']:.0f} codes/s"
            bars.update(task, completed=line["step"], description=f"loss {line['loss']:.3f}, {speed}")

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


@app.command()
def lm(
    recipe: Annotated[str, typer.Argument(help="cpu_smoke, cpu_nano, h100_30min, paper_3b or paper_130b.")],
    manifest: Annotated[Path, typer.Argument(help="A manifest that `stepaudio data tokenize` has tokenized.")],
    out: OutOption,
    start: Annotated[
        Path | None, typer.Option("--from", help="Begin with a checkpoint: ours, or a Hugging Face causal LM's folder.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="More text for the paper's layout: a document per line.")] = None,
    tokenizer: Annotated[str, typer.Option(help="The tokenizer whose codes are read.")] = "nano-tokenizer",
    tokens: Annotated[
        float | None, typer.Option(help="Of all stages together, instead of the recipe's.", min=1)
    ] = None,
    save_every: SaveOption = 200,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch; as many as it likes if not given.", min=1)
    ] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a language model by a recipe; stop it at any time, it goes on from there.

    Under torchrun, all processes share one run: torchrun --nproc-per-node=8 $(command -v stepaudio) train lm ...
    """
    use_torch(threads)
    from stepaudio.train.recipes import recipe as named
    from stepaudio.train.stages import MODEL, train_lm

    chosen = named(recipe) if tokens is None else named(recipe).scaled(tokens)
    lines = train_lm(
        chosen, manifest, out, tokenizer=tokenizer, start=start, text=text, save_every=save_every, seed=seed
    )
    first = os.environ.get("RANK", "0") == "0"
    last = follow(lines, quiet=json or not first)
    if not first:
        return
    if json:
        print_json({"output": str(out / MODEL), **last})
    elif not last:
        console().print(f"{out / MODEL} was there: this run had ended")
    else:
        console().print(f"{out / MODEL} after {last['step']} steps; the log is log.jsonl in each stage's folder")


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="cpu_smoke, cpu_nano, h100_30min, paper_3b or paper_130b.")],
    json: JsonOption = False,
) -> None:
    """What a recipe costs: parameters, tokens, operations, memory, and hours on named hardware."""
    use_torch()
    from dataclasses import asdict

    from stepaudio.train.plan import plan as reckon
    from stepaudio.train.plan import table
    from stepaudio.train.recipes import recipe as named

    planned = reckon(named(recipe))
    if json:
        print_json(asdict(planned))
    else:
        print(table(planned))
