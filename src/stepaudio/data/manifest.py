"""Manifests: JSON lines that say what is spoken in each recording, by whom, and where it came from.

| field | |
|---|---|
| `audio` | path, relative to the manifest |
| `text` | as it is written |
| `duration` | seconds |
| `spoken` | the words as they were said: letters, apostrophes and spaces; Chinese as pinyin with tone digits |
| `language`, `speaker`, `teacher`, `source`, `seed`, `split` | who said it, what made it, where the text is from |
| `phonemes`, `ends` | one symbol per phoneme, and when each ends in milliseconds |
| `rejected` | why nothing should learn from it (`stepaudio.data.filters`); its split is then `rejected` |

Only the first three are needed; what is unknown is left out. `path`, `lang` and `seconds` are read as `audio`,
`language` and `duration`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stepaudio.audio import io
from stepaudio.audio.pcm import Samples
from stepaudio.errors import AudioError, InputError, MissingError
from stepaudio.files import replacing


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest. `audio` is relative to the manifest in the file, absolute or usable as it is here."""

    audio: Path
    text: str
    duration: float
    spoken: str = ""
    language: str = ""
    speaker: str = ""
    teacher: str = ""
    source: str = ""
    seed: int = 0
    split: str = ""
    phonemes: str = ""
    ends: tuple[int, ...] = ()
    rejected: str = ""

    @property
    def words(self) -> str:
        """What is said, as far as it is known."""
        return self.spoken or self.text

    def samples(self, rate: int) -> Samples:
        """The recording [T] at `rate`. Raises AudioError, which names the file."""
        return read_audio(self.audio, rate)

    def line(self) -> str:
        """The manifest's line, without what is unknown."""
        known = {name: value for name, value in asdict(self).items() if value not in ("", ())}
        return json.dumps(known | {"audio": str(self.audio)}, ensure_ascii=False)


def read_manifest(path: Path, *, split: str | None = None) -> list[Utterance]:
    """The lines of a manifest, of one split if named; audio paths are resolved against its folder.

    A line without a split belongs to "train". Raises MissingError without the file and InputError with the number of
    the first bad line, or when no line is left.
    """
    if not path.is_file():
        raise MissingError(f"there is no manifest at {path}")
    utterances = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                utterance = parse(json.loads(line.decode("utf-8")), path.parent)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"line {number} of {path} is no manifest entry: {error!r}") from error
            if split in (None, utterance.split or "train"):
                utterances.append(utterance)
    if not utterances:
        raise InputError(f"{path} is empty" if split is None else f"{path} has no line of the split {split!r}")
    return utterances


def read_audio(path: Path, rate: int) -> Samples:
    """One recording of many [T] at `rate`. Raises AudioError, which names the file."""
    try:
        return io.read(path, rate=rate)
    except AudioError as error:
        raise error if str(path) in str(error) else AudioError(f"{path}: {error}") from error


def parse(entry: Any, folder: Path) -> Utterance:
    """An entry as decoded from JSON; fields that are not known are passed over. Raises ValueError, KeyError or
    TypeError for an entry that cannot be used."""
    if not isinstance(entry, dict):
        raise TypeError("no object")
    entry = {_ALIASES.get(name, name): value for name, value in entry.items()}
    known = {name: entry[name] for name in _FIELDS if name in entry}
    known["audio"] = folder / str(entry["audio"])
    known["text"], known["duration"] = str(entry["text"]), float(entry["duration"])
    known["ends"] = tuple(int(end) for end in known.get("ends", ()))
    utterance = Utterance(**known)
    if not utterance.text.strip() or not utterance.duration > 0:
        raise ValueError("no text or no duration")
    if len(utterance.phonemes) != len(utterance.ends):
        raise ValueError("phonemes and ends differ in number")
    return utterance


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest; it takes its name only when it is whole. Audio paths are written as they are."""
    write_lines(path, [utterance.line() for utterance in utterances])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    with replacing(path) as half:
        half.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


_FIELDS = tuple(field.name for field in fields(Utterance))
_ALIASES = {"path": "audio", "lang": "language", "seconds": "duration"}
