"""Results by what they were made from: a run that was cut off goes on where it stopped, and nothing is made twice.

The key is a digest of everything that decides the result (the system, the request with its audio's content, the
version of the scorer). Failures are not kept: the next run tries them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from stepaudio.eval.items import Audio, Call, Output, Reply
from stepaudio.files import replacing

_PLAIN = ("text", "seconds", "first", "heard")


def key(*parts: Any) -> str:
    """A digest of JSON values."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """A folder of results. A file gets its name only when it is whole, so a crash leaves no half of one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def output(self, name: str) -> Output | None:
        """The output kept under a key, with its audio; None if there is none or it cannot be read."""
        try:
            found = json.loads(self._path(name).read_text(encoding="utf-8"))
            return Output(tuple(self._reply(name, number, row) for number, row in enumerate(found["replies"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, name: str, output: Output) -> None:
        """Keep an output that did not fail."""
        from stepaudio.audio.encode import write

        rows = []
        for number, reply in enumerate(output.replies):
            row: dict[str, Any] = {name: getattr(reply, name) for name in _PLAIN}
            row |= {"audio": None, "calls": [[call.name, dict(call.arguments)] for call in reply.calls]}
            if reply.audio is not None and len(reply.audio.samples):
                path = self.audio(name, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, reply.audio.samples, reply.audio.rate)
                row["audio"] = reply.audio.rate
            rows.append(row)
        self._write(name, {"replies": rows})

    def audio(self, name: str, number: int) -> Path:
        """Where the audio of a reply lies."""
        return self._path(name).with_name(f"{name}-{number}.flac")

    def value(self, name: str, make: Callable[[], Any]) -> Any:
        """A JSON value: the one that is kept, or a new one that then is."""
        try:
            return json.loads(self._path(name).read_text(encoding="utf-8"))["value"]
        except (OSError, ValueError, KeyError, TypeError):
            value = make()
            self._write(name, {"value": value})
            return value

    def _reply(self, name: str, number: int, row: dict[str, Any]) -> Reply:
        from stepaudio.audio.io import read

        calls = tuple(Call(each, arguments) for each, arguments in row.pop("calls"))
        rate = cast("int | None", row.pop("audio"))
        audio = None if rate is None else Audio(read(self.audio(name, number), rate=rate), rate)
        return Reply(**row, audio=audio, calls=calls)

    def _path(self, name: str) -> Path:
        return self.root / name[:2] / f"{name}.json"

    def _write(self, name: str, content: Any) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as half:
            half.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
