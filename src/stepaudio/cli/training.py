"""What the verbs of `stepaudio train` share: their options, and the bar that follows a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from stepaudio.cli.output import progress
from stepaudio.errors import MissingError

OutOption = Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; a run that is there goes on.")]
StepsOption = Annotated[int, typer.Option(help="Updates.", min=1)]
RateOption = Annotated[float, typer.Option(help="Peak of the schedule.", min=0)]
SaveOption = Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)]
ThreadsOption = Annotated[int, typer.Option(help="Threads of torch.", min=1)]
SeedOption = Annotated[int, typer.Option(help="Seed of weights and order.")]


def use_torch(threads: int | None = None) -> None:
    """Limit torch to so many threads. Raises MissingError where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingError("training needs torch; run: pip install 'stepaudio[train]'")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def follow(lines: Iterator[dict[str, Any]], *, quiet: bool) -> dict[str, Any]:
    """Show a run's lines as a bar with its loss, speed and time left; returns the last one."""
    last: dict[str, Any] = {}
    with progress(quiet=quiet) as bars:
        tasks: dict[str, Any] = {}
        for last in lines:
            stage = str(last.get("stage", "training"))
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=last["steps"])
            speed = f"{last['tokens_per_second']:,.0f}/s" + (f", {last['mfu']:.0%} MFU" if "mfu" in last else "")
            bars.update(tasks[stage], completed=last["step"], description=f"{stage}: loss {last['loss']:.3f}, {speed}")
    return last
