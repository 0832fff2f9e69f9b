"""The codes of a manifest's recordings, kept beside it, so that speech is tokenized once.

`codes/TOKENIZER/NAME.npz` holds those of `GROUP` consecutive lines; the name is the digest of what the lines hold. So
a run that was killed goes on after its last whole group, and a manifest that has grown keeps what is there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stepaudio.data.manifest import Utterance, read_manifest
from stepaudio.errors import InputError, MissingError
from stepaudio.files import replacing
from stepaudio.tokenizer.fbank import RATE
from stepaudio.tokenizer.files import Tokenizer
from stepaudio.tokenizer.streaming import DualCodes

GROUP = 64
"""Lines that are lost at most when a run is killed."""


def tokenize_manifest(manifest: Path, tokenizer: Tokenizer, name: str) -> Iterator[tuple[int, float]]:
    """Tokenize every line of a manifest that has no codes yet, giving (lines, seconds of audio) after each group.

    `name` says which tokenizer it is. Raises what reading a manifest or a recording raises.
    """
    folder = _folder(manifest, name)
    folder.mkdir(parents=True, exist_ok=True)
    for path, group in _groups(manifest, read_manifest(manifest), folder):
        if not path.is_file():
            codes = [tokenizer.encode(utterance.samples(RATE)) for utterance in group]
            with replacing(path) as half:
                np.savez(half, **_flat("linguistic", codes), **_flat("semantic", codes))  # type: ignore[arg-type]
        yield len(group), sum(utterance.duration for utterance in group)


def read_tokenized(manifest: Path, name: str, *, split: str | None = None) -> list[tuple[Utterance, DualCodes]]:
    """The lines of a manifest, of one split if named, with their codes.

    Raises MissingError for a line that was not tokenized and InputError when no line is left.
    """
    folder = _folder(manifest, name)
    known = []
    for path, group in _groups(manifest, read_manifest(manifest), folder):
        if not path.is_file():
            raise MissingError(f"{manifest} is not wholly tokenized; run: stepaudio data tokenize {manifest}")
        with np.load(path, allow_pickle=False) as arrays:
            streams = [
                np.split(arrays[stream].astype(np.int64), arrays[f"{stream}_offsets"][1:-1])
                for stream in ("linguistic", "semantic")
            ]
        known += [(u, DualCodes(*codes)) for u, *codes in zip(group, *streams, strict=True)]
    wanted = [(u, codes) for u, codes in known if split in (None, u.split or "train")]
    if not wanted:
        raise InputError(f"{manifest} has no line of the split {split!r}")
    return wanted


def _folder(manifest: Path, name: str) -> Path:
    return manifest.parent / "codes" / name


def _groups(
    manifest: Path, utterances: Sequence[Utterance], folder: Path
) -> Iterator[tuple[Path, Sequence[Utterance]]]:
    for start in range(0, len(utterances), GROUP):
        group = utterances[start : start + GROUP]
        held = "\n".join(f"{os.path.relpath(u.audio, manifest.parent)} {u.duration}" for u in group)
        yield folder / f"{hashlib.sha256(held.encode()).hexdigest()[:16]}.npz", group


def _flat(name: str, codes: Sequence[DualCodes]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    parts = [getattr(one, name) for one in codes]
    return {name: np.concatenate(parts).astype(np.int16), f"{name}_offsets": np.cumsum([0, *map(len, parts)])}
