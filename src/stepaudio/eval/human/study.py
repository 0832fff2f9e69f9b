"""A listening test as a TOML file, and the trials that each rater gets from it.

```toml
kind = "mos"                 # mos: 1 to 5; cmos: -3 to 3 between two; pairwise: which of two
title = "Which voice do you like?"
question = "How natural does this sound?"
trials = 20                  # a rater's, at most
attention_every = 8          # how many trials lie between two attention items; 0 for none
headphones = true            # whether raters have to show that they wear them
seed = 0

[[system]]
name = "small"
audio = "outputs/small"      # files named by their items

[[system]]
name = "peer"
run = "reports/peer"         # or the run of a task that gives audio
task = "tts"
```
"""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, cast, get_args

from stepaudio.errors import InputError, NotFoundError
from stepaudio.eval import results
from stepaudio.eval.systems.folder import AUDIO

Kind = Literal["mos", "cmos", "pairwise"]
SCALES: dict[Kind, tuple[float, ...]] = {
    "mos": tuple(step / 2 for step in range(2, 11)),
    "cmos": (-3, -2, -1, 0, 1, 2, 3),
    "pairwise": (-1, 0, 1),
}
"""What can be answered. Between two: negative for the first, positive for the second."""
_KEYS = {"kind", "title", "question", "trials", "attention_every", "headphones", "seed", "system"}


@dataclass(frozen=True, slots=True)
class Trial:
    """What a rater hears at once: one item by one system, or by two of them in this order. `wanted` is the answer that
    an attention item tells the rater to give."""

    number: int
    item: str
    systems: tuple[str, ...]
    wanted: float | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """A listening test. `audio` is system -> item -> file; only items that every system has are rated."""

    kind: Kind
    title: str
    question: str
    trials: int
    attention_every: int
    headphones: bool
    seed: int
    audio: Mapping[str, Mapping[str, Path]]

    @property
    def items(self) -> list[str]:
        return sorted(set.intersection(*(set(files) for files in self.audio.values())))

    def plan(self, rater: str) -> list[Trial]:
        """A rater's trials, in their order: the same whenever the rater comes back. Every item comes equally often
        before any comes again, and which system is first is drawn."""
        rng = random.Random(f"{self.seed}:{rater}")
        names = sorted(self.audio)
        units = [(name,) for name in names] if self.kind == "mos" else list(combinations(names, 2))
        every = []
        for unit in units:
            items = self.items
            rng.shuffle(items)
            every += [(place, item, unit) for place, item in enumerate(items)]
        rng.shuffle(every)
        every.sort(key=lambda each: each[0])
        planned: list[Trial] = []
        for _, item, unit in every[: self.trials]:
            if self.attention_every and planned and len(planned) % (self.attention_every + 1) == self.attention_every:
                planned.append(Trial(len(planned), item, self._order(unit, rng), rng.choice(SCALES[self.kind])))
            planned.append(Trial(len(planned), item, self._order(unit, rng)))
        return planned

    def token(self, system: str, item: str) -> str:
        """A recording's name on the page, which tells nothing."""
        return hashlib.sha256(f"{self.seed}:{system}:{item}".encode()).hexdigest()[:24]

    @staticmethod
    def _order(unit: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
        return unit if rng.random() < 0.5 else unit[::-1]


def read_study(path: Path) -> Study:
    """Read a study. Raises NotFoundError, and InputError for a file that cannot be used."""
    if not path.is_file():
        raise NotFoundError(f"there is no study at {path}; docs/eval.md has an example")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    if unknown := sorted(set(table) - _KEYS):
        raise InputError(f"{path}: unknown key '{unknown[0]}'; a study has {', '.join(sorted(_KEYS))}")
    kind = table.get("kind")
    if kind not in get_args(Kind):
        raise InputError(f"{path}: kind is one of {', '.join(get_args(Kind))}, not {kind!r}")
    audio = {row["name"]: _files(row, path.parent) for row in table.get("system", ()) if "name" in row}
    if len(audio) < (1 if kind == "mos" else 2):
        raise InputError(f"{path}: a {kind} study needs at least {1 if kind == 'mos' else 2} [[system]] with a name")
    study = Study(
        cast(Kind, kind),
        str(table.get("title", "Listening test")),
        str(table.get("question", "How natural does this sound?")),
        int(table.get("trials", 20)),
        int(table.get("attention_every", 8)),
        bool(table.get("headphones", True)),
        int(table.get("seed", 0)),
        audio,
    )
    if not study.items:
        raise InputError(f"{path}: the systems have no item in common")
    return study


def _files(row: Mapping[str, Any], base: Path) -> dict[str, Path]:
    """Item -> file of one system."""
    if "audio" in row:
        folder = base / row["audio"]
        found = {
            str(file.relative_to(folder).with_suffix("")): file for file in folder.rglob("*") if file.suffix in AUDIO
        }
    elif "run" in row and "task" in row:
        folder = base / row["run"]
        run = results.load(folder)
        if row["task"] not in run.tasks:
            raise NotFoundError(f"the run {folder} has no task '{row['task']}'")
        cache = folder.parent / "cache"
        found = {each.id: cache / each.audio for each in run.tasks[row["task"]].rows if each.audio}
    else:
        raise InputError(f"the system {row['name']} needs audio, or run and task")
    if not found:
        raise NotFoundError(f"there is no audio of {row['name']} in {folder}")
    return found
