"""`stepaudio train flow`, `vocoder` and `voice`: the verbs that make codes sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepaudio.cli.output import BundleOption, JsonOption, console, print_json
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepaudio.train.log import Line

ManifestArgument = Annotated[Path, typer.Argument(help="manifest.jsonl of `stepaudio data synthesize`.")]


def flow(
    manifest: ManifestArgument,
    out: OutOption,
    init: Annotated[
        Path | None, typer.Option(help="Folder of flow.safetensors and timbre.safetensors to begin with.")
    ] = None,
    steps: StepsOption = 4000,
    learning_rate: RateOption = 1.5e-3,
    save_every: SaveOption = 200,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a flow on tokenized speech: codes to mel frames, in the voice of another clip of the speaker."""
    use_torch(threads)
    from stepaudio.train.flow import FlowTraining, train_flow
    from stepaudio.train.loop import LoopConfig

    config = LoopConfig(out, steps, ema=0.998, save_every=save_every, seed=seed)
    training = FlowTraining(init=init, learning_rate=learning_rate, seed=seed)
    _show(train_flow(manifest, config, training), out / "flow.safetensors", steps, json)


def vocoder(
    manifest: ManifestArgument,
    out: OutOption,
    adversarial: Annotated[
        bool, typer.Option("--adversarial", help="The second stage, against discriminators; needs --init.")
    ] = False,
    init: Annotated[Path | None, typer.Option(help="vocoder.safetensors to begin with.")] = None,
    steps: StepsOption = 2400,
    learning_rate: RateOption = 1e-3,
    save_every: SaveOption = 200,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Train a vocoder: mel frames to sound, by spectra first, then against discriminators."""
    use_torch(threads)
    from stepaudio.train.loop import LoopConfig
    from stepaudio.train.vocoder import VocoderConfig, train_vocoder

    training = VocoderConfig(
        manifest,
        init=init,
        adversarial=adversarial,
        learning_rate=learning_rate,
        seed=seed,
        batch=8 if adversarial else 16,
    )
    config = LoopConfig(out, steps, ema=0.998, save_every=save_every, seed=seed)
    _show(train_vocoder(training, config), out / "vocoder.safetensors", steps, json)


def voice(
    speaker: Annotated[Path, typer.Option(help="A folder of recordings of one person; its name is the voice's.")],
    out: OutOption,
    steps: StepsOption = 300,
    learning_rate: RateOption = 4e-4,
    kept_apart: Annotated[int, typer.Option(help="One recording in so many is for the report.", min=2)] = 10,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
    bundle: BundleOption = "small",
    json: JsonOption = False,
) -> None:
    """Fine-tune nano-voice on one speaker: transcribes, filters, learns, and compares with before.

    The folder of the run then has a bundle NAME.toml: stepaudio say TEXT --bundle OUT/NAME.toml.
    """
    use_torch(threads)
    from stepaudio import load
    from stepaudio.speech.nano_voice.adapt import Adaptation, adapt

    config = Adaptation(steps, learning_rate, kept_apart=kept_apart, seed=seed)
    with console().status("reading") as status:
        report = adapt(speaker, out, load(bundle), config, log=status.update)
    if json:
        print_json(report)
        return
    for name in ("before", "after"):
        wer, near = report[name]["wer"], report[name]["similarity"]
        console().print(f"{name:<8}{wer['value']:.1%} words wrong, similarity {near['value']:.3f}")
    gain = report["similarity_gain"]
    console().print(f"similarity gained {gain['value']:.3f} ({gain['low']:.3f} to {gain['high']:.3f})")
    console().print(f"{out / f'{speaker.name}.toml'} is the bundle, {out / 'report.md'} has the sentences")


def _show(lines: Iterator[Line], made: Path, steps: int, json: bool) -> None:
    """Follow a run, and say what it made."""
    last = follow(lines, quiet=json)
    if json:
        print_json({"output": str(made), **last})
    else:
        console().print(f"{made} after {steps} steps")
