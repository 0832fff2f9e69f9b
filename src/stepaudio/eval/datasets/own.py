"""Our own sets: a folder with items.jsonl (and tools.json, where items name tools). evals/README.md has the fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from stepaudio.eval.datasets.files import json_lines, present
from stepaudio.eval.items import Clip, Item, Kind, Request, Turn
from stepaudio.speech.roles import Tool


def own(path: Path) -> list[Item]:
    """The names of items begin with their folder's, so that outputs for several sets can lie in one place."""
    listed = path / "tools.json"
    tools = {tool.name: tool for tool in _tools(listed)} if listed.is_file() else {}
    return [_item(row, path, tools) for row in json_lines(path / "items.jsonl")]


def _item(row: Mapping[str, Any], folder: Path, tools: Mapping[str, Tool]) -> Item:
    if row["kind"] not in get_args(Kind):
        raise ValueError(f"{row['id']}: no kind {row['kind']!r}")
    request = Request(
        f"{folder.resolve().name}/{row['id']}",
        row["kind"],
        row["language"],
        row.get("text", ""),
        _clip(row.get("audio"), folder),
        tuple(Turn(turn["text"], _clip(turn.get("audio"), folder)) for turn in row.get("turns", ())),
        tuple(tools[name] for name in row.get("tools", ())),
        row.get("instructions"),
    )
    return Item(request, row.get("reference", {}), row.get("group", ""), row.get("cluster", ""))


def _clip(name: str | None, folder: Path) -> Clip | None:
    return None if name is None else Clip(present(folder / name))


def _tools(path: Path) -> list[Tool]:
    return [
        Tool(row["name"], row["description"], row["parameters"]) for row in json.loads(path.read_text(encoding="utf-8"))
    ]
