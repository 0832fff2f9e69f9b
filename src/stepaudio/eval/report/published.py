"""Figures that others published, as data with their sources. They stand beside ours, and are never ours."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

MARK = "published, not measured here"


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it was published: one row a model, None where it gave no figure."""

    title: str
    source: str
    unit: str
    better: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    tasks: tuple[str, ...]
    """Tasks whose results it stands beside."""


@cache
def tables() -> tuple[Table, ...]:
    """All of them."""
    text = (resources.files("stepaudio.eval.report") / "published.toml").read_text(encoding="utf-8")
    found = []
    for table in tomllib.loads(text)["table"]:
        rows = {name: tuple(None if v == "-" else float(v) for v in values) for name, *values in table["rows"]}
        found.append(
            Table(
                table["title"],
                table["source"],
                table["unit"],
                table["better"],
                tuple(table["columns"]),
                rows,
                tuple(table["tasks"]),
            )
        )
    return tuple(found)


def beside(task: str) -> list[Table]:
    """Those that stand beside a task."""
    return [table for table in tables() if task in table.tasks]
