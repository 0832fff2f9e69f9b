"""Has the responder read, while the user speaks, what it will have to read in any case."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent.scheduler import Lane, Urgency
from stepaudio.errors import StepAudioError
from stepaudio.speech import aio
from stepaudio.speech.roles import Responder

log = logging.getLogger("stepaudio.agent")


class ReadingAhead:
    """One reading after the other, the latest that was asked for next, as long as nobody else needs the place.
    `answer` takes what was asked with a job."""

    def __init__(self, responder: Responder, lane: Lane, answer: Callable[[ev.Event], None]) -> None:
        self.task: asyncio.Task[None] | None = None
        """The reading that goes on, or is being ended."""
        self._responder = responder
        self._lane = lane
        self._answer = answer
        self._now: cmd.Warm | None = None
        self._next: cmd.Warm | None = None

    def ask(self, command: cmd.Warm) -> None:
        self._next = command
        self._start()

    @property
    def asked(self) -> bool:
        """Whether an answer is wanted that is not there yet."""
        return any(command is not None and command.job is not None for command in (self._now, self._next))

    def stop(self) -> None:
        self._now = self._next = None
        if self.task is not None:
            self.task.cancel()

    async def ended(self) -> None:
        """Wait until nothing is being read: it would not be known to one who reads at the same time."""
        while self.task is not None:
            await asyncio.wait([self.task])

    def _start(self) -> None:
        if self._next is not None and self.task is None:
            self._now, self._next = self._next, None
            self.task = asyncio.create_task(self._read(self._now))
            self.task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self.task = self._now = None
        self._start()

    async def _read(self, command: cmd.Warm) -> None:
        urgency = Urgency.BACKGROUND if command.job is None else Urgency.SPECULATIVE
        try:
            async with self._lane.ticket(urgency, give_up=self.stop):
                ends = await aio.run(partial(self._warm, command))
        except StepAudioError as error:
            log.info("Nothing was read ahead: %s", error)
        except Exception:
            log.exception("Reading ahead failed; the turn goes by its words")
        else:
            if command.job is not None:
                self._answer(ev.Scored(command.job, ends))

    def _warm(self, command: cmd.Warm, cancel: threading.Event) -> float | None:
        return self._responder.warm(command.messages, command.tools, words=command.words, cancel=cancel)
