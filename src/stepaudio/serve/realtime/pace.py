"""How fast a client may send."""

from __future__ import annotations

import asyncio
import time


class Pace:
    """Lets a client send `burst` characters at once and `rate` a second: a minute of PCM, then four times real time.
    Whoever sends more is read more slowly."""

    burst = 4 << 20
    rate = 256 << 10
    longest_wait = 5.0

    def __init__(self) -> None:
        self._debt = 0.0
        self._last = time.monotonic()

    async def keep(self, chars: int) -> None:
        now = time.monotonic()
        self._debt = max(0.0, self._debt - (now - self._last) * self.rate) + chars
        self._last = now
        if self._debt > self.burst:
            await asyncio.sleep(min(self.longest_wait, (self._debt - self.burst) / self.rate))
