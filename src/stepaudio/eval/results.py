"""What a run found: rows of items, figures with intervals, one result a task. All of it is plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from stepaudio.errors import InputError, NotFoundError
from stepaudio.eval.metrics import intervals
from stepaudio.files import replacing

FORMAT = 1
"""Of run.json."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a figure is made of its items' scores.

    Every item gives a numerator and a denominator: `ratio` is sum over sum; `mean`, `median` and `share` have
    denominators of 1. They differ in their intervals: that of a `ratio` is a bootstrap, which keeps inside the ends
    of a scale. A metric that is `measured` says what came out of a system and has nothing to say of an item that
    failed; every other one has a worst score, which a failure gets. `percent` is how it is written.
    """

    name: str
    form: Literal["ratio", "mean", "share", "median"]
    better: Literal["lower", "higher", "neither"]
    about: str
    percent: bool = False
    unit: str = ""
    measured: bool = False
    protocol: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """One item: its scores as [numerator, denominator], what went wrong, and what a reader wants to see of it."""

    id: str
    group: str
    language: str
    cluster: str
    scores: dict[str, list[float]]
    error: str | None = None
    problems: list[str] = field(default_factory=list)
    shown: dict[str, str] = field(default_factory=dict)
    audio: str | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric over some items. `failed` counts those of them that got the worst score for failing."""

    metric: str
    subset: str
    value: float
    low: float | None
    high: float | None
    n: int
    failed: int
    method: str


@dataclass(slots=True)
class TaskResult:
    """A task's part of a run."""

    task: str
    title: str
    version: int
    protocol: str
    metrics: list[Metric]
    figures: list[Figure]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.error is not None]


@dataclass(slots=True)
class Run:
    """The tasks of one system."""

    system: str
    written: str
    tasks: dict[str, TaskResult]
    setup: dict[str, Any]


def figures(metrics: Sequence[Metric], rows: Sequence[Row]) -> list[Figure]:
    """Every metric over all items that have it, and over each of their groups where there are several."""
    found = []
    for metric in metrics:
        groups = sorted({row.group for row in rows if metric.name in row.scores})
        for subset in ["all", *groups] if len(groups) > 1 else ["all"]:
            some = [row for row in rows if metric.name in row.scores and subset in ("all", row.group)]
            if some and sum(row.scores[metric.name][1] for row in some):
                found.append(_figure(metric, subset, some))
    return found


def _figure(metric: Metric, subset: str, rows: Sequence[Row]) -> Figure:
    top = [row.scores[metric.name][0] for row in rows]
    bottom = [row.scores[metric.name][1] for row in rows]
    clusters = [row.cluster or row.id for row in rows]
    if metric.form == "ratio":
        found = intervals.ratio(top, bottom, clusters)
    elif metric.form == "median":
        found = intervals.median(top, clusters)
    elif metric.form == "mean":
        found = intervals.mean(top, clusters)
    else:
        found = intervals.share([bool(value) for value in top], clusters)
    failed = sum(row.error is not None for row in rows)
    return Figure(metric.name, subset, found.value, found.low, found.high, found.n, failed, found.method)


# ---------------------------------------------------------------- files


def save(run: Run, folder: Path) -> Path:
    """Write run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    body = {
        "format": FORMAT,
        "system": run.system,
        "written": run.written,
        "setup": run.setup,
        "tasks": {name: _plain(task) for name, task in run.tasks.items()},
    }
    with replacing(path) as half:
        half.write_text(json.dumps(body, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> Run:
    """Read a run's folder or its run.json. Raises NotFoundError, InputError."""
    path = path / "run.json" if path.is_dir() else path
    if not path.is_file():
        raise NotFoundError(f"there is no run at {path}; `stepaudio eval TASK` writes one")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise InputError(f"{path} has format {body['format']} and this version reads {FORMAT}: run it again")
        tasks = {name: _task(task) for name, task in body["tasks"].items()}
        return Run(body["system"], body["written"], tasks, body["setup"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a run.json: {error!r}") from None


def _plain(task: TaskResult) -> dict[str, Any]:
    return asdict(task) | {"metrics": [asdict(metric) | {"protocol": dict(metric.protocol)} for metric in task.metrics]}


def _task(body: dict[str, Any]) -> TaskResult:
    return TaskResult(
        **body
        | {
            "metrics": [Metric(**metric) for metric in body["metrics"]],
            "figures": [Figure(**figure) for figure in body["figures"]],
            "rows": [Row(**row) for row in body["rows"]],
        }
    )
