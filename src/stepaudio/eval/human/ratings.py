"""Ratings, kept as they come in."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from stepaudio.errors import InputError
from stepaudio.eval.human.study import SCALES, Study, Trial

_SCHEMA = """
CREATE TABLE IF NOT EXISTS raters (id TEXT PRIMARY KEY, created REAL NOT NULL, headphones INTEGER);
CREATE TABLE IF NOT EXISTS ratings (
    rater TEXT NOT NULL REFERENCES raters, trial INTEGER NOT NULL, item TEXT NOT NULL, first TEXT NOT NULL, second TEXT,
    wanted REAL, value REAL NOT NULL, seconds REAL NOT NULL, created REAL NOT NULL, PRIMARY KEY (rater, trial)
);
"""


@dataclass(frozen=True, slots=True)
class Rating:
    """One answer. `second` is None where one recording was rated; `wanted` is not None for an attention item."""

    rater: str
    item: str
    first: str
    second: str | None
    wanted: float | None
    value: float


class Ratings:
    """A database of ratings, for several threads of one process."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that is no such database."""
        self._lock = threading.Lock()
        try:
            self._base = sqlite3.connect(path, check_same_thread=False)
            self._base.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path} cannot be used for ratings: {error}", param="database") from None

    def add_rater(self, rater: str) -> None:
        with self._lock, self._base:
            self._base.execute("INSERT OR IGNORE INTO raters VALUES (?, ?, NULL)", (rater, time.time()))

    def knows(self, rater: str) -> bool:
        with self._lock:
            return self._base.execute("SELECT 1 FROM raters WHERE id = ?", (rater,)).fetchone() is not None

    def set_headphones(self, rater: str, passed: bool) -> None:
        """Whether the rater wears them, as the check says; the first check that is passed stays."""
        with self._lock, self._base:
            self._base.execute(
                "UPDATE raters SET headphones = max(ifnull(headphones, 0), ?) WHERE id = ?", (passed, rater)
            )

    def headphones(self, rater: str) -> bool | None:
        with self._lock:
            row = self._base.execute("SELECT headphones FROM raters WHERE id = ?", (rater,)).fetchone()
        return None if row is None or row[0] is None else bool(row[0])

    def rate(self, study: Study, rater: str, trial: Trial, value: float, seconds: float) -> None:
        """Keep an answer; an answer that was given before stays. Raises InputError for one off the scale."""
        if value not in SCALES[study.kind]:
            raise InputError(f"{value} is not on the scale of a {study.kind} study", param="value")
        second = trial.systems[1] if len(trial.systems) > 1 else None
        row = (rater, trial.number, trial.item, trial.systems[0], second, trial.wanted, value, seconds, time.time())
        with self._lock, self._base:
            self._base.execute("INSERT OR IGNORE INTO ratings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def answered(self, rater: str) -> set[int]:
        """The numbers of the trials that a rater has answered."""
        with self._lock:
            return {row[0] for row in self._base.execute("SELECT trial FROM ratings WHERE rater = ?", (rater,))}

    def all(self) -> list[Rating]:
        """Every answer."""
        with self._lock:
            rows = self._base.execute(
                "SELECT rater, item, first, second, wanted, value FROM ratings ORDER BY rater, trial"
            ).fetchall()
        return [Rating(*row) for row in rows]

    def close(self) -> None:
        self._base.close()

    def __enter__(self) -> Ratings:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
