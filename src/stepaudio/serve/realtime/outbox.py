"""Events on their way to a client that may read slowly, or not at all."""

from __future__ import annotations

import asyncio
from collections import deque


class Outbox:
    """A bounded queue of messages. `room` is set while fewer than `high` characters wait; what makes the messages
    should wait for it. From `limit` on the outbox is `overflowed`, takes nothing more, and its client is lost.
    """

    def __init__(self, room: asyncio.Event, *, high: int = 1 << 20, limit: int = 8 << 20) -> None:
        self.overflowed = False
        self.chars = 0
        self._room = room
        self._high = high
        self._limit = limit
        self._messages: deque[tuple[str, bool]] = deque()
        self._filled = asyncio.Event()

    def put(self, message: str, *, droppable: bool = False) -> None:
        """Add a message; `drop` removes it again if it is droppable."""
        if self.overflowed:
            return
        self._messages.append((message, droppable))
        self._count(len(message))
        self.overflowed = self.chars > self._limit
        self._filled.set()

    def drop(self) -> None:
        """Remove the droppable messages that wait."""
        kept = [each for each in self._messages if not each[1]]
        self._messages = deque(kept)
        self.chars = 0
        self._count(sum(len(message) for message, _ in kept))

    async def get(self) -> str:
        """The next message, when there is one."""
        while not self._messages:
            self._filled.clear()
            await self._filled.wait()
        message, _ = self._messages.popleft()
        self._count(-len(message))
        return message

    def _count(self, chars: int) -> None:
        self.chars += chars
        if self.chars < self._high:
            self._room.set()
        else:
            self._room.clear()
