"""Who may use the models now: one object for all sessions of a process.

There are a few places for hearing and a few for replying. Whoever wants one waits in the order of urgency, then of
arrival. A speculative reply gives its place up as soon as a reply that somebody waits for needs it. Whoever is awaited
and gets no place in time is refused: late speech is worse than none.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from enum import IntEnum

from stepaudio.errors import BusyError


class Urgency(IntEnum):
    """Lower goes first."""

    AWAITED = 0
    """The user's turn is over: somebody waits for this."""
    LIKELY = 1
    """The user has paused: this may be wanted any moment."""
    SPECULATIVE = 2
    BACKGROUND = 3


class Lane:
    """`places` pieces of work at once; awaited work begins within `patience` seconds or is refused. Belongs to one
    event loop."""

    def __init__(self, places: int, *, patience: float | None = None) -> None:
        self.places = places
        self.patience = patience
        self._working: list[Ticket] = []
        self._waiting: list[Ticket] = []

    def ticket(self, urgency: Urgency, give_up: Callable[[], None] | None = None) -> Ticket:
        """Ask for a place: `async with lane.ticket(...)`. Work that has a `give_up` is asked to end by it when
        something awaited needs its place."""
        return Ticket(self, urgency, give_up)

    @property
    def pressure(self) -> float:
        """0 when nothing runs or waits that somebody awaits, 1 when the next awaited work would have to wait."""
        awaited = sum(t.urgency <= Urgency.LIKELY for t in (*self._working, *self._waiting))
        return min(1.0, awaited / self.places)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for work that has no place, or has shown nothing yet: it shares the cores."""
        silent = (ticket for ticket in self._working if not ticket.shown)
        return any(ticket.urgency is Urgency.AWAITED for ticket in (*self._waiting, *silent))

    @property
    def free(self) -> bool:
        """Whether a place can be had at once."""
        return len(self._working) < self.places and not self._waiting

    def enter(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)
        self.assign()

    def leave(self, ticket: Ticket) -> None:
        for tickets in (self._waiting, self._working):
            if ticket in tickets:
                tickets.remove(ticket)
        self.assign()

    def assign(self) -> None:
        """Give free places to whoever is first, and make room for those who cannot wait."""
        self._waiting.sort(key=lambda ticket: (ticket.urgency, ticket.number))
        while self._waiting and len(self._working) < self.places:
            ticket = self._waiting.pop(0)
            self._working.append(ticket)
            ticket.granted.set()
        needed = sum(ticket.urgency is Urgency.AWAITED for ticket in self._waiting)
        needed -= sum(ticket.asked_to_leave for ticket in self._working)
        latest_first = sorted(self._working, key=lambda ticket: -ticket.number)
        for ticket in latest_first:
            if needed > 0 and ticket.give_up and not ticket.asked_to_leave and ticket.urgency > Urgency.LIKELY:
                ticket.asked_to_leave = True
                needed -= 1
                asyncio.get_running_loop().call_soon(ticket.give_up)


class Ticket:
    """One piece of work in a lane, from when it asks for a place until it leaves it."""

    _numbers = itertools.count()

    def __init__(self, lane: Lane, urgency: Urgency, give_up: Callable[[], None] | None) -> None:
        self.urgency = urgency
        self.number = next(self._numbers)
        self.give_up = give_up
        self.granted = asyncio.Event()
        self.asked_to_leave = False
        self.shown = False
        """Whether somebody has got something of it."""
        self._lane = lane
        self._entering = False
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def hurry(self) -> None:
        """Somebody waits for this now."""
        self.urgency = Urgency.AWAITED
        self.asked_to_leave = False
        self._lane.assign()
        if self._entering:
            self._limit()

    async def stand_aside(self, until: Awaitable[object]) -> None:
        """Give the place up until something has come about, then wait for one again."""
        self._lane.leave(self)
        self.granted.clear()
        self.asked_to_leave = False
        await until
        self._lane.enter(self)
        await self.granted.wait()

    async def __aenter__(self) -> Ticket:
        """Raises BusyError when there was no place in time."""
        self._lane.enter(self)
        self._entering = True
        self._limit()
        try:
            await self.granted.wait()
        except BaseException:
            self._lane.leave(self)
            raise
        finally:
            self._entering = False
            if self._timer is not None:
                self._timer.cancel()
        if self._refused:
            raise BusyError("Too many others are being answered: say it again in a moment.", retry_after=5)
        return self

    def _limit(self) -> None:
        """From when it is awaited, the time for it to begin runs."""
        patience = self._lane.patience
        if patience is not None and self.urgency is Urgency.AWAITED and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(patience, self._refuse)

    def _refuse(self) -> None:
        if not self.granted.is_set():
            self._lane.leave(self)
            self._refused = True
            self.granted.set()

    async def __aexit__(self, *_: object) -> None:
        self._lane.leave(self)


class Scheduler:
    """The places for all sessions of a process; by default as many for hearing, and for replying, as the machine
    has cores. A reply that is awaited begins within `patience` seconds or is refused."""

    def __init__(self, *, hearing: int | None = None, replying: int | None = None, patience: float = 5.0) -> None:
        cores = os.cpu_count() or 1
        self.hearing = Lane(hearing or cores)
        self.replying = Lane(replying or max(2, cores), patience=patience)
