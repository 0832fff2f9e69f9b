"""Runs of several systems in one Markdown table, with what others published below it."""

from __future__ import annotations

from collections.abc import Sequence

from stepaudio.eval.report import published, words
from stepaudio.eval.results import Metric, Run


def leaderboard(runs: Sequence[Run]) -> str:
    """Markdown: one table a task, one row a system, one column a metric that can be better or worse."""
    parts = [
        "# Leaderboard",
        "",
        "Made by `stepaudio eval leaderboard`. Values with their 95 % intervals; what failed, is empty or is missing "
        "counts as wrong. Arrows point to the better side.",
    ]
    for task in dict.fromkeys(name for run in runs for name in run.tasks):
        having = [run for run in runs if task in run.tasks]
        metrics = _metrics(having, task)
        parts += [
            "",
            f"## {having[0].tasks[task].title}",
            "",
            words.row("System", *(words.name(each) for each in metrics), "n", "failed"),
        ]
        parts.append(words.row(*["---"] * (len(metrics) + 3)))
        for run in having:
            result = run.tasks[task]
            figures = {figure.metric: figure for figure in result.figures if figure.subset == "all"}
            cells = [words.cell(figures.get(each.name), each) for each in metrics]
            name = run.system if result.protocol == "strict" else f"{run.system} ({result.protocol})"
            parts.append(words.row(name, *cells, str(len(result.rows)), str(len(result.failed))))
        for table in published.beside(task):
            parts += ["", f"{table.title}. Source: {table.source}; **{published.MARK}**.", ""]
            parts += [words.row("Model", *table.columns), words.row(*["---"] * (len(table.columns) + 1))]
            parts += [
                words.row(name, *("–" if value is None else f"{value:g}" for value in values))
                for name, values in table.rows.items()
            ]
    return "\n".join(parts) + "\n"


def _metrics(runs: Sequence[Run], task: str) -> list[Metric]:
    found: dict[str, Metric] = {}
    for run in runs:
        for metric in run.tasks[task].metrics:
            if metric.better != "neither":
                found.setdefault(metric.name, metric)
    return list(found.values())
