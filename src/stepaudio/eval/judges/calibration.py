"""How far a judge agrees with people, on a small labelled set: printed beside every score it gives.

A calibration set is a JSONL file named by its prompt: `values` fill the prompt, `labels` is one object per rater.

    {"values": {"question": "...", "references": "...", "answer": "..."}, "labels": [{"right": true}, {"right": true}]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepaudio.errors import BackendError, InputError
from stepaudio.eval.judges.prompt import Prompt, Verdict
from stepaudio.eval.metrics.agreement import Level, krippendorff_alpha

if TYPE_CHECKING:
    from stepaudio.eval.judges.judge import Judge

_AT_ONCE = 2
"""Verdicts that are asked for at once."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha between the judge and the raters' labels of one field; None where it has no meaning.
    `errors` are items on which the judge gave no verdict: there alpha misses a rating."""

    field: str
    alpha: float | None
    n: int
    errors: int
    raters: str

    @property
    def label(self) -> str:
        alpha = "undefined" if self.alpha is None else f"{self.alpha:.2f}"
        missing = f", {self.errors} without verdict" if self.errors else ""
        return f"alpha {alpha} on {self.n} items labelled by {self.raters}{missing}"


def calibrate(judge: Judge, prompt: Prompt, folder: Path) -> tuple[Agreement, ...]:
    """The agreement on every judged field of a prompt; nothing when there is no set for it."""
    path = folder / f"{prompt.name}.jsonl"
    if not path.is_file():
        return ()
    items = read_calibration(path, prompt)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        verdicts = list(pool.map(lambda item: _verdict(judge, prompt, item), items))
    raters = items[0].get("raters", "people")
    return tuple(_agreement(name, items, verdicts, prompt, raters) for name in prompt.judged)


def read_calibration(path: Path, prompt: Prompt) -> list[dict[str, Any]]:
    """The items of a set. Raises InputError for one that does not fit its prompt."""
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            item = json.loads(line)
            prompt.messages(item["values"])
            if not item["labels"] or any(set(prompt.judged) - set(labels) for labels in item["labels"]):
                raise KeyError(f"labels need {', '.join(prompt.judged)}")
            items.append(item)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number} does not fit the prompt '{prompt.name}': {error}") from None
    if not items:
        raise InputError(f"{path} is empty")
    return items


def _verdict(judge: Judge, prompt: Prompt, item: dict[str, Any]) -> Verdict | None:
    try:
        return judge.ask(prompt, **item["values"])[0]
    except BackendError:
        return None


def _agreement(
    name: str, items: Sequence[dict[str, Any]], verdicts: Sequence[Verdict | None], prompt: Prompt, raters: str
) -> Agreement:
    field = next(each for each in prompt.fields if each["name"] == name)
    options = field.get("options", [])

    def number(value: Any) -> float:
        return float(options.index(value)) if options else float(value)

    most = max(len(item["labels"]) for item in items)
    ratings: list[list[float | None]] = [
        [number(item["labels"][rater][name]) if rater < len(item["labels"]) else None for item in items]
        for rater in range(most)
    ]
    ratings.append([None if verdict is None else number(verdict[name]) for verdict in verdicts])
    level: Level = "ordinal" if field["type"] == "scale" else "nominal"
    errors = sum(verdict is None for verdict in verdicts)
    return Agreement(name, krippendorff_alpha(ratings, level), len(items), errors, raters)
