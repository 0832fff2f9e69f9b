"""Files that are there whole or not at all, and text that is text."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stepaudio.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write what is to become the file `path`: a name beside it, of the same extension, that is renamed when
    the block has succeeded.

    Whatever goes wrong before, a full disk or Ctrl-C, an older file of that name stays as it was and nothing is left
    beside it. A link is followed. A pipe or a device is written as it is: to replace it would be to remove it.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    half = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.half{path.suffix}")
    try:
        yield half
        os.replace(half, path)
    except OSError as error:
        if error.filename in (None, str(half)):  # what the reader of the message knows is the file that was wanted
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file and, if need be, its folder. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as half:
        try:
            save_file(dict(tensors), half, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error


def read_text(path: Path) -> str:
    """What a UTF-8 file says. Raises NotFoundError and InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
