"""Speech from teachers: lines of text to a folder of FLAC files and a manifest, in parallel, stop and go.

Lines are worked on in groups. A group's name is the digest of what it holds, its recordings lie in `audio/NAME/`, and
its part of the manifest, `parts/NAME.jsonl`, appears only when all of them are written. So a run that was killed goes
on after its last whole group, a longer list of lines keeps what is there, and the result never depends on how often it
was interrupted or on how many processes worked.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from stepaudio.data.manifest import Utterance, write_lines
from stepaudio.errors import InputError, TextError
from stepaudio.tokenizer.fbank import Floats

RATE = 24_000
"""Samples a second that are stored: decoders are trained on all of them, tokenizers read them at 16 kHz."""
GROUP = 32
"""Lines that are lost at most when a worker is killed."""


@dataclass(frozen=True)
class Line:
    """What is to be said, by whom. The same line always sounds the same."""

    text: str
    language: str
    speaker: str
    teacher: str
    source: str
    split: str
    seed: int


@dataclass(frozen=True)
class Spoken:
    """Samples [T] at `RATE`, the words that were said, and each phoneme with its end in milliseconds."""

    samples: Floats
    words: str
    phonemes: str
    ends: tuple[int, ...]


class Teacher(Protocol):
    """A voice that tells what it said and when."""

    def say(self, line: Line) -> Spoken:
        """Raises TextError for a line it cannot read."""
        ...


Teachers = Mapping[str, Callable[[], Teacher]]
"""How each worker process makes its teachers, by name; picklable."""


def synthesize(
    lines: Sequence[Line], out: Path, teachers: Teachers, *, processes: int = 1
) -> Iterator[tuple[int, float]]:
    """Speak all lines into `out`, giving (lines, seconds of audio) after each group; `manifest.jsonl` comes last.

    Lines that their teacher cannot read are left out and listed in `refused.jsonl` with the reason. Raises InputError
    for a line whose teacher is not among `teachers`.
    """
    if unknown := {line.teacher for line in lines} - set(teachers):
        raise InputError(f"no teacher is called {sorted(unknown)[0]!r}; there are {', '.join(sorted(teachers))}")
    (out / "parts").mkdir(parents=True, exist_ok=True)
    groups = {_name(group): group for group in _groups(lines)}
    parts = {name: out / "parts" / f"{name}.jsonl" for name in groups}
    for name, part in parts.items():
        if part.is_file():
            yield len(groups[name]), _seconds(part)
    missing = [name for name, part in parts.items() if not part.is_file()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(teachers,)) as pool:
        jobs = {pool.submit(_work, groups[name], out, name): name for name in missing}
        try:
            for job in as_completed(jobs):
                job.result()
                yield len(groups[jobs[job]]), _seconds(parts[jobs[job]])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    entries = [entry for part in parts.values() for entry in part.read_text(encoding="utf-8").splitlines()]
    write_lines(out / "refused.jsonl", [entry for entry in entries if "refused" in json.loads(entry)])
    write_lines(out / "manifest.jsonl", [entry for entry in entries if "refused" not in json.loads(entry)])


def _groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Groups of one teacher each, so that a worker need not load them all."""
    for teacher in dict.fromkeys(line.teacher for line in lines):
        own = [line for line in lines if line.teacher == teacher]
        for start in range(0, len(own), GROUP):
            yield own[start : start + GROUP]


def _name(group: list[Line]) -> str:
    text = json.dumps([asdict(line) for line in group], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _seconds(part: Path) -> float:
    return sum(float(json.loads(line).get("duration", 0.0)) for line in part.read_text(encoding="utf-8").splitlines())


# ---------------------------------------------------------------- in a worker process

_makers: Teachers = {}
_teachers: dict[str, Teacher] = {}


def _start(makers: Teachers) -> None:
    global _makers
    _makers = makers
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(group: list[Line], out: Path, name: str) -> None:
    import soundfile

    teacher = group[0].teacher
    if teacher not in _teachers:
        _teachers[teacher] = _makers[teacher]()
    folder = out / "audio" / name
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, line in enumerate(group):
        try:
            said = _teachers[teacher].say(line)
        except TextError as error:
            entries.append(json.dumps(asdict(line) | {"refused": str(error)}, ensure_ascii=False))
            continue
        audio = folder / f"{index:02}.flac"
        soundfile.write(audio, said.samples, RATE, subtype="PCM_16")
        known = Utterance(
            audio=audio.relative_to(out),
            duration=round(len(said.samples) / RATE, 3),
            spoken=said.words,
            phonemes=said.phonemes,
            ends=said.ends,
            **asdict(line),
        )
        entries.append(known.line())
    write_lines(out / "parts" / f"{name}.jsonl", entries)
