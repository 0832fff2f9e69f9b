"""`stepaudio eval codes`: what a tokenizer's codes are worth."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from stepaudio.cli.output import JsonOption, print_json, progress
from stepaudio.errors import MissingError


def codes(
    manifest: Annotated[Path, typer.Argument(help="manifest.jsonl, or a folder that has one.")],
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's name or folder.")] = "nano-tokenizer",
    split: Annotated[str | None, typer.Option(help="Only this split of the manifest.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many recordings, evenly spread.", min=1)] = None,
    json: JsonOption = False,
) -> None:
    """How a tokenizer uses its codes, and how much of the text can still be read from them."""
    if importlib.util.find_spec("torch") is None:
        raise MissingError("tokenizing needs torch; run: pip install 'stepaudio[train]'")
    from stepaudio.data.manifest import read_manifest
    from stepaudio.eval.codes import hear, report

    path = manifest / "manifest.jsonl" if manifest.is_dir() else manifest
    utterances = read_manifest(path, split=split)
    if limit:
        utterances = utterances[:: -(-len(utterances) // limit)]
    heard = []
    with progress(quiet=json) as bars:
        task = bars.add_task("tokenizing", total=len(utterances))
        for one in hear(tokenizer, utterances):
            heard.append(one)
            bars.update(task, advance=1)
    figures = report(heard)
    if json:
        rates = {
            language: {
                measure: {source: asdict(rate) for source, rate in by_source.items()}
                for measure, by_source in measures.items()
            }
            for language, measures in figures["errors"].items()
        }
        print_json(figures | {"errors": rates})
    else:
        _show(figures)


def _show(figures: dict[str, Any]) -> None:
    from rich.console import Console

    out = Console(highlight=False)
    out.print(f"{figures['recordings']} recordings, {figures['seconds'] / 60:.1f} minutes")
    for name in ("linguistic", "semantic"):
        use = figures[name]
        out.print(f"{name:<12}{use['usage']:.1%} of {use['codes']} codes used, perplexity {use['perplexity']:.0f}")
    for language, measures in figures["errors"].items():
        for measure, by_source in measures.items():
            for source, rate in by_source.items():
                interval = "" if rate.low is None else f" ({rate.low:.1%} to {rate.high:.1%})"
                out.print(f"{language} {measure:<10}{source:<22}{rate.value:.1%}{interval}, {rate.n} recordings")
