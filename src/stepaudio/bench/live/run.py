"""Who plays when: both arms of the comparison side by side, several sessions at once, and how many are too many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from stepaudio.bench.live.clips import Clip
from stepaudio.bench.live.measure import quantiles, turns
from stepaudio.bench.live.player import Target, connected, play
from stepaudio.bench.live.recording import Recording
from stepaudio.bench.live.scenarios import Conversation

Progress = Callable[[], None]
"""Called after every turn."""
_CONNECTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the search for the most sessions: how many, and how they fared. `p95` is None without replies."""

    sessions: int
    p95: float | None
    missed: int

    def within(self, limit: float) -> bool:
        return not self.missed and self.p95 is not None and self.p95 <= limit


async def play_all(
    conversations: Sequence[Conversation],
    clips: Mapping[str, Clip],
    target: Target,
    *,
    arms: Sequence[bool],
    sessions: int = 1,
    idle: int = 0,
    progress: Progress = lambda: None,
) -> list[Recording]:
    """Play every conversation in every arm (with speculation, without), `sessions` of them at a time.

    The arms take turns group by group, and who is first alternates, so that a machine that slows down slows both.
    """
    recordings: list[Recording] = []
    async with _idling(target, idle):
        for number, first in enumerate(range(0, len(conversations), sessions)):
            group = conversations[first : first + sessions]
            for speculation in arms if number % 2 == 0 else tuple(reversed(arms)):
                players = (play(c, clips, target, speculation=speculation, progress=progress) for c in group)
                recordings += await asyncio.gather(*players)
    return recordings


async def find_most(measure: Callable[[int], Awaitable[Step]], *, limit: float, most: int) -> list[Step]:
    """Double the sessions until one step is not within the limit, then halve the interval; the steps, in order."""
    steps = [await measure(1)]
    while steps[-1].within(limit) and steps[-1].sessions < most:
        steps.append(await measure(min(most, 2 * steps[-1].sessions)))
    if steps[-1].within(limit):
        return steps
    good = max((step.sessions for step in steps if step.within(limit)), default=0)
    bad = steps[-1].sessions
    while bad - good > 1:
        step = await measure((good + bad) // 2)
        steps.append(step)
        good, bad = (step.sessions, bad) if step.within(limit) else (good, step.sessions)
    return steps


async def fare(
    conversations: Sequence[Conversation],
    clips: Mapping[str, Clip],
    target: Target,
    *,
    sessions: int,
    speculation: bool,
    idle: int,
    progress: Progress,
) -> Step:
    """How these conversations fare when so many of them are held at once."""
    recordings = await play_all(
        conversations, clips, target, arms=(speculation,), sessions=sessions, idle=idle, progress=progress
    )
    measured = [turn for recording in recordings for turn in turns(recording)]
    latencies = quantiles(turn.latency for turn in measured if turn.latency is not None)
    return Step(sessions, latencies["p95"], sum(turn.missed for turn in measured))


@asynccontextmanager
async def _idling(target: Target, count: int) -> AsyncIterator[None]:
    """So many sessions that are open, and whose users say and send nothing."""
    async with AsyncExitStack() as stack:
        drains = []
        for first in range(0, count, _CONNECTS_AT_ONCE):
            some = range(first, min(count, first + _CONNECTS_AT_ONCE))
            for connection in await asyncio.gather(*(stack.enter_async_context(connected(target)) for _ in some)):
                drains.append(asyncio.create_task(_drain(connection)))
        try:
            yield
        finally:
            for task in drains:
                task.cancel()


async def _drain(connection: ClientConnection) -> None:
    with suppress(WebSocketException):
        async for _ in connection:
            pass
