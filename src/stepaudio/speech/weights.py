"""Weights by name: where they come from, what their SHA-256 is, and where they lie on this machine.

`weights.toml` beside this file is the catalogue. An artefact is a folder of files; every file names its size, its
SHA-256 and the parts it is put together from, each a source (`sources.py`).

An artefact may instead be a `snapshot` of a hub repository, `ORG/REPO@REVISION`: all that is in it but code. The hub
checks what it sends; here the files that the artefact names must be there, and must not change after they have come.
`derive` names files that are made of others once these are there.

A file appears under its final name only when it is whole and its digest is right. What was downloaded stays until
then, so an interrupted pull goes on where it stopped. Nothing here is unpickled or executed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from stepaudio.errors import InputError, IntegrityError, MissingError, NotFoundError
from stepaudio.files import replacing
from stepaudio.speech.sources import Sources, fetch_snapshot

Progress = Callable[[str, int, int], None]
"""Called with (artefact, bytes done, bytes in all) while a pull goes on."""

_BLOCK = 1 << 20
MAKERS = {"step_audio_prompts": "stepaudio.speech.step_audio.upstream:make_prompts"}
"""What derives files from others: a name in the catalogue -> a function from their folder to the contents."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of an artefact: the parts in `sources`, joined in order; `mirror` is tried when those fail.

    A size of 0 and an empty digest are not known beforehand: the first that is seen counts.
    """

    path: str
    size: int
    sha256: str
    sources: tuple[str, ...]
    mirror: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Artefact:
    """A named folder of weight files under one licence."""

    name: str
    licence: str
    origin: str
    files: tuple[WeightFile, ...]
    snapshot: str = ""
    snapshot_size: int = 0
    derive: Mapping[str, str] = field(default_factory=dict)
    """File -> its maker, one of `MAKERS`."""

    @property
    def size(self) -> int:
        return self.snapshot_size + sum(file.size for file in self.files)


def parse(name: str, table: Mapping[str, Any]) -> Artefact:
    """An artefact from its TOML table. Raises InputError naming the missing or wrong field."""

    def listed(value: str | Sequence[str]) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(value)

    # What cannot be known beforehand may be left out of these only.
    unpinned = {"size": 0, "sha256": "", "from": ()} if "snapshot" in table or table.get("unpinned") else {}
    try:
        files = tuple(
            WeightFile(
                path=entry["path"],
                size=int(entry["size"]),
                sha256=entry["sha256"],
                sources=listed(entry["from"]),
                mirror=listed(entry.get("mirror", ())),
            )
            for entry in (unpinned | each for each in table["files"])
        )
        artefact = Artefact(
            name,
            table["licence"],
            table.get("origin", ""),
            files,
            snapshot=table.get("snapshot", ""),
            snapshot_size=int(table.get("size", 0)),
            derive=table.get("derive", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"weights '{name}': missing or wrong field {error}") from None
    for file in files:
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            raise InputError(f"weights '{name}': the path '{file.path}' leaves its folder")
    return artefact


@cache
def catalogue() -> Mapping[str, Artefact]:
    """The artefacts that stepaudio knows by itself."""
    text = (Path(__file__).parent / "weights.toml").read_text(encoding="utf-8")
    return {name: parse(name, table) for name, table in tomllib.loads(text).items()}


def home() -> Path:
    """Where weights are kept: $STEPAUDIO_HOME, else the user's cache folder."""
    if configured := os.environ.get("STEPAUDIO_HOME"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stepaudio"


class Store:
    """The weights on this machine."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()
        self._sources = Sources(self.root / "downloads")

    def folder(self, artefact: Artefact) -> Path:
        return self.root / "weights" / artefact.name

    def missing(self, artefact: Artefact) -> list[WeightFile]:
        """Files that are absent or not of the right size."""
        folder = self.folder(artefact)
        return [f for f in artefact.files if not _has_size(folder / f.path, f.size)]

    def verified(self, artefact: Artefact) -> Path:
        """The artefact's folder, every file present and its digest checked.

        A digest is computed once and remembered with the file's size and modification time. Raises MissingError
        or IntegrityError.
        """
        if absent := self.missing(artefact):
            raise MissingError(
                f"the weights '{artefact.name}' are not on this machine ({absent[0].path} is missing or "
                "incomplete); fetch them with: stepaudio pull " + artefact.name
            )
        folder = self.folder(artefact)
        stamps = folder / ".verified.json"
        known = _read_stamps(stamps)
        checked = {}
        for file in artefact.files:
            stat = (folder / file.path).stat()
            before = known.get(file.path)
            promised = file.sha256 or (before[2] if before else "")
            if before != [stat.st_size, stat.st_mtime_ns, promised] or not promised:
                promised = _check(folder / file.path, promised)
            checked[file.path] = [stat.st_size, stat.st_mtime_ns, promised]
        if checked != known:
            # Where it may not be written down, it is checked every time.
            with suppress(OSError), replacing(stamps) as out:
                out.write_text(json.dumps(checked, indent=1), encoding="utf-8")
        for path, maker in artefact.derive.items():
            if not (folder / path).is_file():
                made = _maker(maker)(folder)
                with replacing(folder / path) as out:
                    out.write_bytes(made)
        return folder

    def pull(self, artefact: Artefact, progress: Progress = lambda *_: None) -> Path:
        """Fetch, join and verify whatever of the artefact is missing; return its folder.

        Raises MissingError when a source cannot be reached (with the command that failed), IntegrityError when
        what came is not what was promised.
        """
        wanted = self.missing(artefact)
        if wanted and artefact.snapshot:
            self._need_room(artefact.snapshot_size)
            progress(artefact.name, 0, artefact.size)
            fetch_snapshot(artefact.snapshot, self.folder(artefact))
        elif wanted:
            self._need_room(2 * sum(file.size for file in wanted))
            present = artefact.size - sum(file.size for file in wanted)
            self._sources.fetch(
                [source for file in wanted for source in file.sources],
                lambda fetched: progress(artefact.name, min(present + fetched, artefact.size), artefact.size),
            )
            for file in wanted:
                self._join(artefact, file)
        folder = self.verified(artefact)
        progress(artefact.name, artefact.size, artefact.size)
        self._sources.forget(source for file in artefact.files for source in file.sources)
        return folder

    # ------------------------------------------------------------ fetching

    def _need_room(self, size: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(self.root).free) < size:
            raise MissingError(
                f"{self.root} has {free / 1e9:.1f} GB free and {size / 1e9:.1f} GB are needed; "
                "make room or point STEPAUDIO_HOME at another disk"
            )

    def _join(self, artefact: Artefact, file: WeightFile) -> None:
        """Put one file together from its parts and move it to its place if its digest is right."""
        target = self.folder(artefact) / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as half, half.open("wb") as out:
            digest = hashlib.sha256()
            for part in self._parts(file):
                with part as stream:
                    while block := stream.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
            if file.sha256 and digest.hexdigest() != file.sha256:
                self._sources.forget(file.sources)
                raise _mismatch(f"{artefact.name}/{file.path}", file.sha256, digest.hexdigest())

    def _parts(self, file: WeightFile) -> list[IO[bytes]]:
        try:
            return [self._sources.open(source) for source in file.sources]
        except MissingError:
            if not file.mirror:
                raise
            return [self._sources.open(source) for source in file.mirror]


def resolve(reference: str, artefacts: Mapping[str, Artefact]) -> tuple[Artefact, str]:
    """Split `ARTEFACT` or `ARTEFACT/FILE` into the artefact and the file ('' for the folder)."""
    name, _, path = reference.partition("/")
    if name not in artefacts:
        raise NotFoundError(f"no weights are called '{name}'; known: {', '.join(sorted(artefacts))}")
    artefact = artefacts[name]
    known = {file.path for file in artefact.files} | artefact.derive.keys()
    if path and not any(file == path or file.startswith(f"{path}/") for file in known):
        raise NotFoundError(f"the weights '{name}' hold no file '{path}'")
    return artefact, path


# ---------------------------------------------------------------- small parts


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size or (size == 0 and path.is_file())
    except OSError:
        return False


def _read_stamps(path: Path) -> dict[str, Any]:
    try:
        stamps = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _check(path: Path, promised: str) -> str:
    """The digest of a file. Raises IntegrityError when another one was promised."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if promised and found != promised:
        raise _mismatch(str(path), promised, found)
    return found


def _maker(name: str) -> Callable[[Path], bytes]:
    if name not in MAKERS:
        raise InputError(f"nothing called '{name}' makes files; known: {', '.join(MAKERS)}")
    module, _, function = MAKERS[name].partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _mismatch(what: str, promised: str, found: str) -> IntegrityError:
    return IntegrityError(
        f"{what} is not the file that was promised: SHA-256 expected {promised}, found {found}; "
        "delete it and run `stepaudio pull` again"
    )
