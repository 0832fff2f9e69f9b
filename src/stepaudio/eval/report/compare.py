"""Two runs side by side: the difference on the items that both met, its interval, and whether it may be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stepaudio.errors import InputError
from stepaudio.eval.metrics import intervals
from stepaudio.eval.results import Metric, Row, Run, TaskResult

_FEWEST = 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """Second run minus first. `p` is a permutation test's, `mcnemar` an exact test's where items are right or wrong.
    `verdict` is `better` or `worse` of the second when the interval leaves out zero."""

    task: str
    metric: str
    better: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    mcnemar: float | None
    n: int
    only_first: int
    only_second: int

    @property
    def verdict(self) -> str:
        if self.better == "neither" or self.low <= 0 <= self.high:
            return "no difference shown" if self.better != "neither" else ""
        return "better" if (self.difference > 0) == (self.better == "higher") else "worse"

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def compare(first: Run, second: Run, *, seed: int = 0) -> list[Comparison]:
    """Every metric that both runs have, on the items that both have. Raises InputError when there is none, or when a
    task was scored by different protocols."""
    found = []
    for name in first.tasks:
        if name in second.tasks:
            found += _task(first.tasks[name], second.tasks[name], seed)
    if not found:
        raise InputError(
            f"{first.system} and {second.system} have no task with common items; run the same tasks on both"
        )
    return found


def _task(first: TaskResult, second: TaskResult, seed: int) -> list[Comparison]:
    if (first.protocol, first.version) != (second.protocol, second.version):
        raise InputError(
            f"the runs scored '{first.task}' differently ({first.protocol} v{first.version}, "
            f"{second.protocol} v{second.version}): run one of them again"
        )
    left, right = ({(row.group, row.id): row for row in task.rows} for task in (first, second))
    return [
        result
        for metric in first.metrics
        if any(each.name == metric.name for each in second.metrics)
        for result in _metric(first.task, metric, left, right, seed)
    ]


def _metric(
    task: str, metric: Metric, left: dict[tuple[str, str], Row], right: dict[tuple[str, str], Row], seed: int
) -> list[Comparison]:
    names = [n for n in left if n in right and metric.name in left[n].scores and metric.name in right[n].scores]
    if len(names) < _FEWEST:
        return []
    a, b = ([rows[name].scores[metric.name] for name in names] for rows in (left, right))
    tops = [each[0] for each in a], [each[0] for each in b]
    bottoms = [each[1] for each in a], [each[1] for each in b]
    if not sum(bottoms[0]) or not sum(bottoms[1]):
        return []
    clusters = [left[name].cluster for name in names]
    if len(set(clusters)) < _FEWEST:
        return []
    found = intervals.paired(tops[0], tops[1], bottoms, clusters, seed=seed)
    binary = metric.form == "share"
    return [
        Comparison(
            task,
            f"{metric.name} (mean)" if metric.form == "median" else metric.name,
            metric.better,
            sum(tops[0]) / sum(bottoms[0]),
            sum(tops[1]) / sum(bottoms[1]),
            found.value,
            found.low,
            found.high,
            found.p,
            intervals.mcnemar(_hits(tops[0]), _hits(tops[1])) if binary else None,
            found.n,
            len(left) - len(names),
            len(right) - len(names),
        )
    ]


def _hits(values: Sequence[float]) -> list[bool]:
    return [bool(value) for value in values]
