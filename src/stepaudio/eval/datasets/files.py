"""Reading what datasets are published as."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepaudio.errors import MissingError


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            yield row


def parquet(folder: Path, pattern: str = "*.parquet") -> Iterator[dict[str, Any]]:
    """The rows of all parquet files under a path, in order of name."""
    try:
        import pyarrow.parquet as files
    except ImportError:
        raise MissingError("parquet needs pyarrow; run: pip install 'stepaudio[eval]'") from None
    paths = [folder] if folder.is_file() else sorted(folder.rglob(pattern))
    if not paths:
        raise FileNotFoundError(f"no {pattern}")
    for path in paths:
        for batch in files.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


def tar_members(path: Path) -> dict[str, bytes]:
    """Name -> content of the regular files of a tar."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                found[member.name.removeprefix("./")] = file.read()
    return found


def the_file(path: Path, name: str) -> Path:
    """A file, or the only one of that name under a folder."""
    if path.is_file():
        return path
    found = sorted(path.rglob(name))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files called {name}")
    return found[0]


def present(path: Path) -> Path:
    """The path, if there is a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return path
