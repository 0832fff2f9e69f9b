"""Admission: so many pieces of work at once, so many waiting, and everybody else is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stepaudio.errors import BusyError


class Slots:
    """`size` pieces of work at once and `queue` more waiting in turn, each for at most `timeout` seconds.

    Whoever leaves the queue (cancellation) frees the place. Belongs to one event loop.
    """

    def __init__(self, size: int, *, queue: int, timeout: float) -> None:
        self.size = size
        self.queue = queue
        self.timeout = timeout
        self.busy = 0
        self.waiting = 0
        self._free = asyncio.Semaphore(size)
        self._mean_seconds = 1.0

    def check(self) -> None:
        """Raises BusyError when there is neither a slot nor a place in the queue."""
        if self._free.locked() and self.waiting >= self.queue:
            raise self._refusal(f"All {self.size} slots are busy and {self.waiting} requests wait")

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold a slot. Raises BusyError at once when the queue is full, or after `timeout` seconds in it."""
        self.check()
        self.waiting += 1
        try:
            async with asyncio.timeout(self.timeout):
                await self._free.acquire()
        except TimeoutError:
            raise self._refusal(f"No slot became free within {self.timeout:g} s") from None
        finally:
            self.waiting -= 1
        self.busy += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_seconds += 0.2 * (time.monotonic() - started - self._mean_seconds)
            self.busy -= 1
            self._free.release()

    def _refusal(self, cause: str) -> BusyError:
        wait = self._mean_seconds * (self.waiting + 1) / self.size
        wait = min(60.0, max(1.0, wait))
        return BusyError(f"{cause}; try again in {wait:.0f} s.", retry_after=wait)
