"""Outputs that were made elsewhere, in a folder.

Either `outputs.jsonl`, one object a line:

    {"id": "en/001", "text": "...", "audio": "en/001.wav"}
    {"id": "en/002", "replies": [{"text": "...", "audio": "a.wav", "calls": [{"name": "f", "arguments": {}}]}]}
    {"id": "en/003", "error": "what went wrong"}

or just files named by the items: `en/001.txt`, `en/001.wav`. The names of our own sets begin with their folder:
`asr/en-00`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stepaudio.errors import BackendError, InputError, NotFoundError
from stepaudio.eval.items import Audio, Call, Clip, Kind, Reply, Request
from stepaudio.eval.store import key
from stepaudio.files import read_text

AUDIO = (".wav", ".flac", ".mp3", ".opus", ".ogg", ".m4a")


class FolderSystem:
    """What lies in a folder."""

    kinds: frozenset[Kind] = frozenset(("transcribe", "say", "resynthesise", "converse"))

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a list that cannot be read."""
        self.folder = folder
        self.name = folder.resolve().name
        listed = folder / "outputs.jsonl"
        self._rows = _rows(listed) if listed.is_file() else {}
        stamps = sorted(
            [str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns]
            for path in folder.rglob("*")
            if path.is_file()
        )
        self.fingerprint = key("folder", stamps)

    def parallel(self, kind: Kind) -> int:
        return 1

    def prepare(self, kind: Kind) -> None:
        """Nothing to load."""

    def run(self, request: Request) -> tuple[Reply, ...]:
        """Raises NotFoundError when there is nothing for this item."""
        row = self._rows.get(request.id)
        if row is None:
            return (self._files(request.id),)
        if row.get("error"):
            raise BackendError(str(row["error"]))
        return tuple(self._reply(each) for each in row.get("replies", [row]))

    def close(self) -> None:
        """Nothing to release."""

    def _files(self, name: str) -> Reply:
        stem = self.folder / name
        if not stem.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{name!r} is outside of {self.folder}")
        text = stem.with_name(stem.name + ".txt")
        audio = next((path for end in AUDIO if (path := stem.with_name(stem.name + end)).is_file()), None)
        if audio is None and not text.is_file():
            raise NotFoundError(f"{self.folder} has no output for {name}")
        written = read_text(text).strip() if text.is_file() else ""
        return Reply(written, None if audio is None else _read(audio))

    def _reply(self, row: dict[str, Any]) -> Reply:
        calls = tuple(Call(str(call["name"]), dict(call.get("arguments") or {})) for call in row.get("calls") or ())
        audio = _read(self.folder / row["audio"]) if row.get("audio") else None
        return Reply(str(row.get("text") or ""), audio, calls, row.get("seconds"), row.get("first"))


def _read(path: Path) -> Audio:
    from stepaudio.audio.io import probe

    if not path.is_file():
        raise NotFoundError(f"there is no audio at {path}")
    rate = probe(path).rate
    return Audio(Clip(path).samples(rate), rate)


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                rows[str(row["id"])] = row
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number}: a line is a JSON object with an id and text, audio or replies"
            ) from None
    return rows
