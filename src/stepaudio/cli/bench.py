"""`stepaudio bench`: measure what this machine, or a server, does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepaudio.cli.output import BundleOption, console, progress
from stepaudio.errors import InputError, MissingError
from stepaudio.speech.bundle_spec import DEFAULT

if TYPE_CHECKING:
    from rich.progress import Progress

    from stepaudio.bench.live.bench import Doing, Options

app = typer.Typer(no_args_is_help=True)

DeviceOption = Annotated[str, typer.Option(help="cpu, or a GPU: cuda, cuda:1.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads of the CPU.", min=1)]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")]


class TurnDetection(StrEnum):
    SERVER_VAD = "server_vad"
    SEMANTIC_VAD = "semantic_vad"


class Eagerness(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    AUTO = "auto"


@app.callback()
def bench() -> None:
    """Measure what this machine, or a server, does."""


@app.command()
def live(
    bundle: BundleOption = DEFAULT,
    url: Annotated[str | None, typer.Option(help="A running server; by default one is started.")] = None,
    api_key: Annotated[str | None, typer.Option(help="The server's key.", envvar="STEPAUDIO_API_KEY")] = None,
    recordings: Annotated[
        Path | None,
        typer.Option(help="A folder of recordings with a manifest.jsonl; by default the bundle's voices speak."),
    ] = None,
    conversations: Annotated[int, typer.Option(help="How many, of five turns each.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="Decides what is said and when.")] = 0,
    no_speculation: Annotated[
        bool, typer.Option("--no-speculation", help="Only without speculation; by default both, in turn.")
    ] = False,
    sessions: Annotated[int, typer.Option(help="Conversations at once.", min=1)] = 1,
    sessions_max: Annotated[
        int | None, typer.Option(help="Find how many at once, up to this, keep p95 within --limit.", min=1)
    ] = None,
    limit: Annotated[float, typer.Option(help="Longest p95 of the latency, in seconds.", min=0.01)] = 1.5,
    idle: Annotated[int, typer.Option(help="Open sessions alongside that send nothing.", min=0)] = 0,
    turn_detection: Annotated[
        TurnDetection, typer.Option(help="How a turn's end is decided.")
    ] = TurnDetection.SEMANTIC_VAD,
    eagerness: Annotated[Eagerness, typer.Option(help="With semantic_vad.")] = Eagerness.AUTO,
    acoustic: Annotated[bool, typer.Option("--acoustic", help="Also ask the bundle's acoustic turn scorer.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds after which a turn counts as missed.", min=1.0)] = 20.0,
    json_file: JsonOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them into this .png, .svg or .pdf file.")] = None,
) -> None:
    """Hold spoken conversations with a live server, in real time, and measure them from what was recorded.

    Exits with 1 when a turn got no reply, or with --sessions-max when one session alone is over the limit.
    """
    try:
        from stepaudio.bench.live.bench import Options
        from stepaudio.bench.live.plot import check_plot
    except ImportError as error:
        raise MissingError(f"{error.name} is not installed; run: pip install 'stepaudio[bench]'") from None
    for file in filter(None, (json_file, plot)):
        if not file.absolute().parent.is_dir():
            raise InputError(f"there is no folder {file.parent} to write {file.name} to")
    if plot is not None:
        check_plot(plot)
    options = Options(
        bundle=bundle,
        url=url,
        api_key=api_key,
        recordings=recordings,
        conversations=conversations,
        seed=seed,
        speculation=not no_speculation,
        sessions=sessions,
        idle=idle,
        turn_detection=turn_detection.value,
        eagerness=eagerness.value,
        acoustic=acoustic,
        patience=patience,
    )
    with progress() as bar:
        if sessions_max is None:
            figures, good = _compare(options, plot, _doing(bar))
        else:
            figures, good = _search(options, sessions_max, limit, _doing(bar))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if not good:
        raise typer.Exit(1)


@app.command()
def decoder(
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 2,
    seconds: Annotated[float, typer.Option(help="Of sound in one piece.", min=0.5)] = 4.0,
    stream_seconds: Annotated[float, typer.Option(help="Of sound in chunks.", min=2.0)] = 12.0,
    rounds: Annotated[int, typer.Option(help="Rounds, of which the fastest counts.", min=1)] = 5,
    json_file: JsonOption = None,
) -> None:
    """Time the flows of the speech decoder, at their released sizes, against a plain eager form of the same networks.

    Exits with 1 when one is not 1.5 times as fast.
    """
    _check(device, json_file, "torch")
    from stepaudio.bench import decoder as bench

    options = bench.Options(device, threads, seconds, stream_seconds, rounds)
    with progress() as bar:
        task = bar.add_task("decoding", total=bench.steps_of(options))
        figures = bench.run(options, lambda: bar.advance(task))
    _report(figures, json_file, passed=bench.passed(figures))


@app.command()
def lm(
    device: DeviceOption = "cpu",
    preset: Annotated[str, typer.Option(help="Its size: nano ... chat_130b.")] = "small",
    threads: ThreadsOption = 2,
    rounds: Annotated[int, typer.Option(help="Rounds, of which the fastest counts.", min=1)] = 10,
    json_file: JsonOption = None,
) -> None:
    """Time the language model's decoding against the machine's memory and a plain transformers Llama of the same shape.

    Exits with 1 when a ratio misses its bar.
    """
    _check(device, json_file, "torch", "transformers")
    from stepaudio.bench import lm as bench

    options = bench.Options(device, preset, threads, rounds)
    with progress() as bar:
        task = bar.add_task("decoding", total=bench.steps_of(options))
        figures = bench.run(options, lambda: bar.advance(task))
    _report(figures, json_file, passed=bench.passed(figures))


def _check(device: str, json_file: Path | None, *modules: str) -> None:
    """Raises MissingError or InputError for what would stop a benchmark of networks, some of it only at the end."""
    for module in modules:
        if find_spec(module) is None:
            raise MissingError(f"{module} is not installed; run: pip install 'stepaudio[train,bench]'")
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"no device is called {device!r}; it is cpu, cuda or cuda:1", param="device")
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("this machine has no CUDA device; leave --device out", param="device")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise InputError(f"there is no folder {json_file.parent} to write {json_file.name} to")


def _report(figures: dict[str, Any], json_file: Path | None, *, passed: bool) -> None:
    text = json.dumps(figures, indent=1)
    if json_file is not None:
        json_file.write_text(text + "\n", encoding="utf-8")
    print(text)
    if not passed:
        raise typer.Exit(1)


def _compare(options: Options, plot: Path | None, doing: Doing) -> tuple[dict[str, Any], bool]:
    """The figures, and whether every turn got a reply."""
    from rich.console import Console

    from stepaudio.bench.live import bench
    from stepaudio.bench.live.plot import plot as draw
    from stepaudio.bench.live.report import render, report

    script = bench.prepare(options, max(options.conversations, options.sessions), doing)
    with bench.server(options) as url:
        recordings = asyncio.run(bench.compare(options, script, url, doing))
    with bench.judge(options) as judge:
        figures = report(recordings, judge, options.setup)
    if plot is not None:
        draw(recordings, plot)
    Console().print(render(figures))
    return figures, not any(arm["missed"] for arm in figures["arms"].values())


def _search(options: Options, most: int, limit: float, doing: Doing) -> tuple[dict[str, Any], bool]:
    """The steps of the search, and whether any was within the limit."""
    from rich.console import Console

    from stepaudio.bench.live import bench
    from stepaudio.bench.live.report import render_steps

    script = bench.prepare(options, most + bench.LEAST_A_STEP, doing)
    with bench.server(options) as url:
        steps = asyncio.run(bench.search(options, script, url, most=most, limit=limit, doing=doing))
    Console().print(render_steps(steps, limit))
    figures = {"setup": options.setup | {"limit": limit}, "steps": [asdict(step) for step in steps]}
    return figures, any(step.within(limit) for step in steps)


def _doing(bar: Progress) -> Doing:
    """A bar for each thing that is done; where nobody watches a bar, a line."""

    def begin(description: str, steps: int) -> Callable[[], None]:
        if bar.disable:
            console().print(description)
        task = bar.add_task(description, total=steps)
        return lambda: bar.advance(task)

    return begin
