"""Two runs' replies against each other, item by item."""

from __future__ import annotations

from typing import Any

from stepaudio.errors import BackendError, InputError
from stepaudio.eval.judges.judge import Judge
from stepaudio.eval.metrics import intervals
from stepaudio.eval.results import Row, Run

_REQUEST = ("question", "instruction", "request", "conversation")
_REPLY = ("reply", "conversation")


def play(first: Run, second: Run, task: str, judge: Judge) -> dict[str, Any]:
    """How often the first run's replies are preferred, with its interval. An item without a reply loses; two without
    tie; one on which the judge fails counts as a tie and is counted. Raises InputError."""
    rows = [{(row.group, row.id): row for row in run.tasks[task].rows} for run in (first, second) if task in run.tasks]
    if len(rows) < 2 or not (names := [name for name in rows[0] if name in rows[1]]):
        raise InputError(f"the two runs have no common items of '{task}'", param="task")
    outcomes, failed = [], 0
    for name in names:
        left, right = rows[0][name], rows[1][name]
        if left.error or right.error:
            outcomes.append(0.5 if left.error and right.error else float(right.error is not None))
            continue
        try:
            outcomes.append(judge.compare(_text(left, _REQUEST), _text(left, _REPLY), _text(right, _REPLY)))
        except BackendError:
            failed += 1
            outcomes.append(0.5)
    found = intervals.mean(outcomes)
    return {
        "first": first.system,
        "second": second.system,
        "share": found.value,
        "low": found.low if found.low is not None else 0.0,
        "high": found.high if found.high is not None else 1.0,
        "n": len(names),
        "failed": failed,
        **judge.protocol("pair", "better"),
    }


def _text(row: Row, names: tuple[str, ...]) -> str:
    return next((row.shown[name] for name in names if row.shown.get(name)), "")
