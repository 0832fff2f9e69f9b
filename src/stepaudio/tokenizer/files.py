"""`stepaudio tokenize`: recordings to dual-codebook tokens, as a numpy archive or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from stepaudio.audio import io
from stepaudio.errors import InputError
from stepaudio.files import replacing
from stepaudio.tokenizer.fbank import RATE, Floats
from stepaudio.tokenizer.interleave import Tail
from stepaudio.tokenizer.streaming import DualCodes

MAX_SECONDS = 4 * 3600.0
"""A recording is held in memory as a whole, since its loudness is taken from all of it."""


class Tokenizer(Protocol):
    """What is needed of a `DualTokenizer`."""

    def encode(self, samples: Floats) -> DualCodes: ...


@dataclass(frozen=True)
class Tokenized:
    """One recording: its path as given, its length in seconds, its codes."""

    file: str
    seconds: float
    codes: DualCodes


def tokenize(files: Sequence[Path], out: Path, tokenizer: Tokenizer, *, tail: Tail = "keep") -> Iterator[Tokenized]:
    """Tokenize recordings in order and write them all to `out` once the last one is done, giving each as it is.

    `.jsonl`: a line per recording with `file`, `seconds`, `linguistic`, `semantic` and the interleaved `tokens`
    (0 to 5119; add 65536 for language-model ids). `.npz`: the same as flat int16 arrays with `*_offsets` of where each
    recording starts and ends, and `files`, `seconds`. `tail` is the rule for the last group of `tokens`.

    Raises InputError for another ending of `out`, and what reading a recording raises; `out` is then not touched.
    """
    if out.suffix not in (".npz", ".jsonl"):
        raise InputError(f"cannot write {out.name}: the output must end in .npz or .jsonl", param="out")
    if not files:
        raise InputError("no recordings were named", param="files")
    done = []
    for file in files:
        samples = io.read(file, rate=RATE, max_seconds=MAX_SECONDS)
        done.append(Tokenized(str(file), len(samples) / RATE, tokenizer.encode(samples)))
        yield done[-1]
    write = _write_npz if out.suffix == ".npz" else _write_jsonl
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as half:
        write(half, done, tail)


def _write_jsonl(path: Path, recordings: Sequence[Tokenized], tail: Tail) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for recording in recordings:
            line = {"file": recording.file, "seconds": round(recording.seconds, 4)}
            line |= {name: codes.tolist() for name, codes in _streams(recording, tail).items()}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_npz(path: Path, recordings: Sequence[Tokenized], tail: Tail) -> None:
    arrays = {
        "files": np.array([recording.file for recording in recordings]),
        "seconds": np.array([recording.seconds for recording in recordings]),
    }
    streams = [_streams(recording, tail) for recording in recordings]
    for name in streams[0]:
        parts = [stream[name] for stream in streams]
        arrays[name] = np.concatenate(parts).astype(np.int16)
        arrays[f"{name}_offsets"] = np.cumsum([0, *map(len, parts)])
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # not the flag allow_pickle


def _streams(recording: Tokenized, tail: Tail) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    codes = recording.codes
    return {"linguistic": codes.linguistic, "semantic": codes.semantic, "tokens": codes.tokens(tail=tail)}
