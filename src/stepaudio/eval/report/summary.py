"""Runs at a glance: the main figures of every task as one Markdown table and one picture, for a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepaudio.errors import InputError
from stepaudio.eval.report import words
from stepaudio.eval.results import Figure, Metric, Run
from stepaudio.eval.tasks import TASKS
from stepaudio.files import read_text, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN, END = "<!-- stepaudio eval summary: begin -->", "<!-- stepaudio eval summary: end -->"
MAIN = {
    "asr": ("WER", "CER"),
    "tts": ("WER", "CER", "DNSMOS"),
    "codec": ("WER", "CER", "STOI", "PESQ"),
    "qa": ("contains (text)", "contains (speech)", "judged right"),
    "listening": ("accuracy",),
    "instructions": ("by rule", "DRFR"),
    "dialogues": ("factuality", "relevance", "chat score"),
    "following": ("measured", "following"),
    "tools": ("success", "trigger precision", "trigger recall"),
    "live": ("latency", "cut in", "stopped"),
}
"""The figures of a task that stand for it."""


def summary(runs: Sequence[Run]) -> str:
    """Markdown: a row for each main figure, a column for each system, and below it what each figure was made by."""
    lines = [
        words.row("task", "figure", *(run.system for run in runs), "items"),
        words.row("---", "---", *("---" for _ in runs), "---"),
    ]
    made_by: dict[str, None] = {}
    for task, metric in _metrics(runs):
        figures = [_figure(run, task, metric) for run in runs]
        items = max(figure.n for figure in figures if figure is not None)
        cells = [
            "–" if f is None else f"{words.number(f.value, metric)} ({words.interval(f, metric)})" for f in figures
        ]
        lines.append(words.row(task, words.name(metric), *cells, str(items)))
        if "judge" in metric.protocol or "asr" in metric.protocol:
            made_by[f"{task}, {metric.name}: {words.protocol(metric)}"] = None
    lines += [
        "",
        "Values with their 95 % intervals; what failed, is empty or is missing counts as wrong. Arrows point to the "
        "better side.",
    ]
    if made_by:
        lines += ["", *(f"- {each}" for each in made_by)]
    return "\n".join(lines) + "\n"


def write_into(page: Path, text: str) -> None:
    """Put the text between the markers of a page. Raises NotFoundError, InputError."""
    before, begin, rest = read_text(page).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{page} has no place for the table: put {BEGIN} and {END} on lines of their own")
    with replacing(page) as half:
        half.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def picture(runs: Sequence[Run], path: Path) -> None:
    """Draw what is counted in percent, and what is an opinion from 1 to 5, into a PNG, SVG or PDF file."""
    from matplotlib.figure import Figure as Drawing

    found = _metrics(runs)
    panels = [
        ("%", [pair for pair in found if pair[1].percent], (0.0, 100.0), 100),
        ("1 to 5", [pair for pair in found if "1 to 5" in pair[1].about], (1.0, 5.0), 1),
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise InputError("these runs have no figure to draw")
    heights = [len(panel[1]) + 1 for panel in panels]
    drawing = Drawing(figsize=(9, 0.9 + 0.3 * sum(heights)), layout="constrained")
    for axes, (unit, metrics, limits, scale) in zip(
        drawing.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0], panels, strict=True
    ):
        _draw(axes, runs, metrics, scale)
        axes.set(xlabel=unit, xlim=limits)
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(runs))
    drawing.savefig(path, dpi=130)


def _draw(axes: Axes, runs: Sequence[Run], metrics: Sequence[tuple[str, Metric]], scale: int) -> None:
    for number, run in enumerate(runs):
        shift = 0.3 * (number - (len(runs) - 1) / 2) / max(1, len(runs) - 1)
        colour = f"C{number}"
        axes.plot([], [], "o", color=colour, label=run.system)
        for place, (task, metric) in enumerate(metrics):
            figure = _figure(run, task, metric)
            if figure is None:
                continue
            if figure.low is not None and figure.high is not None:
                axes.plot([scale * figure.low, scale * figure.high], [place + shift] * 2, color=colour, alpha=0.5)
            axes.plot(scale * figure.value, place + shift, "o", color=colour, markersize=5, clip_on=False)
    axes.set_yticks(range(len(metrics)), [f"{task}: {words.name(metric)}" for task, metric in metrics])
    axes.set_ylim(len(metrics) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def _metrics(runs: Sequence[Run]) -> list[tuple[str, Metric]]:
    """The main figures that any of the runs has, in the order of the tasks."""
    return [
        (task, metric)
        for task in TASKS
        for name in MAIN[task]
        for metric in [_metric(runs, task, name)]
        if metric is not None
    ]


def _metric(runs: Sequence[Run], task: str, name: str) -> Metric | None:
    for run in runs:
        if task in run.tasks:
            for metric in run.tasks[task].metrics:
                if metric.name == name and _figure(run, task, metric) is not None:
                    return metric
    return None


def _figure(run: Run, task: str, metric: Metric) -> Figure | None:
    figures = run.tasks[task].figures if task in run.tasks else []
    return next((f for f in figures if f.metric == metric.name and f.subset == "all"), None)
