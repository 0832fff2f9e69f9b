"""`stepaudio eval`: judge systems, compare runs, ask people."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepaudio.cli.codes import codes
from stepaudio.cli.output import JsonOption, console, print_json, progress
from stepaudio.errors import BackendError, MissingError
from stepaudio.eval.tasks import TASKS
from stepaudio.speech.bundle_spec import DEFAULT

if TYPE_CHECKING:
    from rich.progress import Progress

    from stepaudio.eval.report.compare import Comparison
    from stepaudio.eval.results import Run
    from stepaudio.eval.runner import Doing

app = typer.Typer(no_args_is_help=True, help="Judge systems by stated rules, compare runs, ask people.")

_SYSTEM_HELP = "A bundle, http://HOST/v1#MODEL, ws://HOST/v1, codec:opus-12k, or a folder of outputs."


def _run(
    tasks: tuple[str, ...],
    system: Annotated[str, typer.Option("--system", "-s", help=_SYSTEM_HELP)] = DEFAULT,
    on: Annotated[
        list[str] | None, typer.Option(help="A dataset as ADAPTER:PATH, see `stepaudio eval sets`; by default our own.")
    ] = None,
    sets: Annotated[Path, typer.Option(help="The folder of our own sets.")] = Path("evals"),
    out: Annotated[Path, typer.Option(help="Where runs and what they keep are written.")] = Path("reports"),
    name: Annotated[str | None, typer.Option(help="The run's folder; by default the system's name.")] = None,
    protocol: Annotated[
        str, typer.Option(help="strict, or a published one with its quirks: seed_compat, ...")
    ] = "strict",
    limit: Annotated[int | None, typer.Option(help="Only the first items of every language of a set.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Decides what is drawn.")] = 0,
    asr: Annotated[str, typer.Option(help="The bundle that hears what systems say.")] = DEFAULT,
    speaker_model: Annotated[
        Path | None, typer.Option(help="An ONNX speaker encoder (WavLM, ERes2Net); by default Resemblyzer.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A bundle or http://HOST/v1#MODEL that judges; `none` for rules alone.")
    ] = DEFAULT,
    judge_seeds: Annotated[int, typer.Option(help="Verdicts an item.", min=1)] = 1,
    judge_key: Annotated[str | None, typer.Option(help="The judge's key.", envvar="STEPAUDIO_JUDGE_KEY")] = None,
    api_key: Annotated[str | None, typer.Option(help="The system's key.", envvar="STEPAUDIO_API_KEY")] = None,
    conversations: Annotated[int, typer.Option(help="Of the task live, five turns each; 0 leaves it out.", min=0)] = 2,
    json: JsonOption = False,
) -> None:
    try:
        from stepaudio.eval.instruments import Setup
        from stepaudio.eval.suite import Plan, run_suite
    except ImportError as error:
        raise MissingError(f"{error.name} is not installed; run: pip install 'stepaudio[eval,bench]'") from None
    measure = Setup(asr, speaker_model, None if judge == "none" else judge, judge_key, judge_seeds)
    plan = Plan(tasks, system, tuple(on or ()), sets, out, name, protocol, limit, seed, api_key, conversations, measure)
    with progress(quiet=json) as bar:
        run, folder = run_suite(plan, _doing(bar, quiet=json))
    if json:
        print_json({"run": str(folder / "run.json"), "report": str(folder / "report.html"), "figures": _figures(run)})
    else:
        _show(run)
        console().print(f"{folder / 'report.html'}")
    for task in (run.tasks[name] for name in tasks if name in run.tasks):
        if task.rows and len(task.failed) == len(task.rows):
            raise BackendError(f"{task.task}: {run.system} failed on every item; the first: {task.failed[0].error}")


def _command(task: str, about: str) -> Callable[..., None]:
    """A verb for a task, with the options of all of them."""
    signature = inspect.signature(_run, eval_str=True)

    def command(**options: Any) -> None:
        _run(tuple(TASKS) if task == "all" else (task,), **options)

    parameters = list(signature.parameters.values())[1:]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = about
    return command


for _name, _about in TASKS.items():
    app.command(_name, rich_help_panel="Tasks")(_command(_name, _about))
app.command()(codes)
app.command("all", rich_help_panel="Tasks")(_command("all", "All tasks that the system has the abilities for."))


@app.command()
def sets() -> None:
    """List the layouts that datasets are read in."""
    from rich.console import Console
    from rich.table import Table

    from stepaudio.eval.datasets import ADAPTERS

    table = Table("--on", "kind", "layout")
    for name, adapter in ADAPTERS.items():
        table.add_row(f"{name}:PATH", adapter.kind, adapter.layout)
    Console(highlight=False).print(table)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another run's folder.")],
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    json: JsonOption = False,
) -> None:
    """Compare two runs on the items that both met: second minus first."""
    from stepaudio.eval import results
    from stepaudio.eval.report.compare import compare as compare_runs

    runs = results.load(first), results.load(second)
    found = compare_runs(*runs, seed=seed)
    if json:
        print_json([each.plain() for each in found])
        return
    _show_comparison(found, runs[0].system, runs[1].system)


@app.command()
def arena(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another run's folder.")],
    task: Annotated[str, typer.Option(help="A task whose replies are compared.")] = "dialogues",
    judge: Annotated[str, typer.Option(help="A bundle or http://HOST/v1#MODEL that judges.")] = DEFAULT,
    judge_seeds: Annotated[int, typer.Option(help="Verdicts a pair and order.", min=1)] = 1,
    judge_key: Annotated[str | None, typer.Option(help="The judge's key.", envvar="STEPAUDIO_JUDGE_KEY")] = None,
    sets: Annotated[Path, typer.Option(help="The folder of our own sets, for the judge's calibration.")] = Path(
        "evals"
    ),
    out: Annotated[Path, typer.Option(help="Where verdicts are kept.")] = Path("reports"),
    json: JsonOption = False,
) -> None:
    """Let a judge prefer one run's replies or the other's, in both orders; a win has to survive the swap."""
    from stepaudio.eval import results
    from stepaudio.eval.judges.arena import play
    from stepaudio.eval.judges.judge import open_judge
    from stepaudio.eval.store import Store

    runs = results.load(first), results.load(second)
    opened = open_judge(
        judge, store=Store(out / "cache"), key=judge_key, seeds=judge_seeds, calibration=sets / "calibration"
    )
    try:
        found = play(runs[0], runs[1], task, opened)
    finally:
        opened.close()
    if json:
        print_json(found)
        return
    console().print(
        f"{runs[0].system} is preferred in {found['share']:.1%} ({found['low']:.1%} to {found['high']:.1%}) of "
        f"{found['n']} items; ties count half. Judge: {found['judge']}, {found['prompt']}, {found['agreement']}. "
        f"{found['failed']} items without verdict count as ties."
    )


@app.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="The runs' folders.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The Markdown file.")] = Path("leaderboard.md"),
) -> None:
    """Write the figures of several runs into one Markdown file."""
    from stepaudio.eval import results
    from stepaudio.eval.report.leaderboard import leaderboard as write

    output.write_text(write([results.load(run) for run in runs]), encoding="utf-8")
    console().print(str(output))


@app.command()
def summary(
    runs: Annotated[list[Path], typer.Argument(help="The runs' folders, or their run.json files.")],
    into: Annotated[Path | None, typer.Option(help="A page that holds the markers to put it between.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it too, into this .png, .svg or .pdf file.")] = None,
) -> None:
    """Write the main figures of several runs into one small table, and into a picture."""
    from stepaudio.eval import results
    from stepaudio.eval.report import summary as report

    loaded = [results.load(run) for run in runs]
    text = report.summary(loaded)
    if picture is not None:
        from stepaudio.bench.live.plot import check_plot

        check_plot(picture)
        report.picture(loaded, picture)
    if into is None:
        print(text, end="")
        return
    if picture is not None:
        link = os.path.relpath(picture, into.parent)
        text += f"\n![The figures with their intervals, by task]({link})\n"
    report.write_into(into, text)
    console().print(str(into))


@app.command()
def human(
    study: Annotated[Path, typer.Argument(help="The study's TOML file; docs/eval.md has an example.")],
    database: Annotated[Path, typer.Option(help="Where ratings are kept (SQLite).")] = Path("ratings.sqlite"),
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8010,
    report: Annotated[bool, typer.Option("--report", help="Print what the ratings say, and do not serve.")] = False,
    json: JsonOption = False,
) -> None:
    """Serve a blind listening test: MOS, CMOS or pairwise, or report its ratings."""
    from stepaudio.eval.human.analysis import analyse
    from stepaudio.eval.human.ratings import Ratings
    from stepaudio.eval.human.study import read_study

    plan = read_study(study)
    if report:
        with Ratings(database) as ratings:
            found = analyse(plan, ratings)
        print_json(found) if json else _show_ratings(found)
        return
    try:
        from stepaudio.eval.human.server import serve
    except ImportError as error:
        raise MissingError(f"{error.name} is not installed; run: pip install 'stepaudio[serve]'") from None
    serve(plan, database, host=host, port=port, announce=lambda url: console().print(f"rate at {url}"))


def _figures(run: Run) -> list[dict[str, Any]]:
    return [
        {"task": task.task, "metric": f.metric, "subset": f.subset, "value": f.value, "low": f.low, "high": f.high}
        | {"n": f.n, "failed": f.failed}
        for task in run.tasks.values()
        for f in task.figures
    ]


def _show(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    from stepaudio.eval.report import words

    table = Table("task", "figure", "value", "95 % interval", "items", "failed", title=run.system, title_justify="left")
    for task in run.tasks.values():
        metrics = {metric.name: metric for metric in task.metrics}
        for figure in task.figures:
            if figure.subset == "all":
                metric = metrics[figure.metric]
                value, reach = words.number(figure.value, metric), words.interval(figure, metric)
                table.add_row(task.task, words.name(metric), value, reach, str(figure.n), str(figure.failed))
    Console(highlight=False).print(table)


def _show_comparison(found: list[Comparison], first: str, second: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "figure", first, second, "difference", "95 % interval", "p", "n", f"{second} is")
    for each in found:
        table.add_row(
            each.task,
            each.metric,
            f"{each.first:.3f}",
            f"{each.second:.3f}",
            f"{each.difference:+.3f}",
            f"{each.low:+.3f} to {each.high:+.3f}",
            f"{each.p:.3f}",
            str(each.n),
            each.verdict,
        )
    Console(highlight=False).print(table)


def _show_ratings(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for row in found["systems"] for name in row))
    table = Table(*names, title=f"{found['kind']}: {found['raters']} raters, {found['left_out']} left out")
    for row in found["systems"]:
        table.add_row(
            *("-" if row[n] is None else f"{row[n]:.2f}" if isinstance(row[n], float) else str(row[n]) for n in names)
        )
    Console(highlight=False).print(table)


def _doing(bar: Progress, *, quiet: bool) -> Doing:
    """A bar with the time left for each thing that is done; where nobody watches a bar, a line."""

    def begin(description: str, steps: int) -> Callable[[], None]:
        if bar.disable and not quiet:
            console().print(description)
        task = bar.add_task(description, total=steps)
        return lambda: bar.advance(task)

    return begin
