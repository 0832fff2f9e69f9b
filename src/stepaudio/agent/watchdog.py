"""Notices work that produces nothing for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """Calls `late` when `calm` was not called for `patience` seconds."""

    def __init__(self, patience: float, late: Callable[[], None]) -> None:
        self._patience = patience
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._asleep = False
        self.calm()
        self._timer = self._loop.call_at(self._due, self._look)

    def calm(self) -> None:
        self._due = self._loop.time() + self._patience

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """The work waits for somebody else in here: that is no fault of its own."""
        self._asleep = True
        try:
            yield
        finally:
            self._asleep = False
            self.calm()

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._asleep:
            self.calm()
        elif self._loop.time() >= self._due:
            self._late()
        if self._loop.time() < self._due:  # what is late for good is not told of twice
            self._timer = self._loop.call_at(self._due, self._look)
