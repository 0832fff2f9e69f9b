"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
