"""Notices work that produces nothing for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watchdog:
    """Calls `late` when `calm` was not called for `patience` seconds."""

    def __init__(self, patience: float, late: Callable[[], None]) -> None:
        self._patience = patience
        self._late = late
        self._loop = asyncio.get_running_loop()
        self.calm()
        self._timer = self._loop.call_at(self._due, self._look)

    def calm(self) -> None:
        self._due = self._loop.time() + self._patience

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._loop.time() >= self._due:
            self._late()
        if self._loop.time() < self._due:  # what is late for good is not told of twice
            self._timer = self._loop.call_at(self._due, self._look)
