"""The one actor of a live conversation: it feeds the `Controller` and carries out its commands on the models.

Everything here happens on the event loop, one event after the other; the models work in threads. A model that fails
or hangs ends one reply, one transcript or one tool call, never the session. An idle session owns no thread and no
timer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.controller import Controller
from stepaudio.agent.reading_ahead import ReadingAhead
from stepaudio.agent.replying import Models, make_reply
from stepaudio.agent.ring import InputRing
from stepaudio.agent.scheduler import Scheduler, Ticket, Urgency
from stepaudio.agent.settings import Settings
from stepaudio.agent.tool_threads import ToolThreads
from stepaudio.agent.tools import ClientTools, ToolProvider
from stepaudio.agent.turn import WINDOW
from stepaudio.agent.watchdog import Watchdog
from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import GatedVadStream
from stepaudio.errors import BusyError, StepAudioError
from stepaudio.speech import aio
from stepaudio.speech.prompts import with_audio
from stepaudio.speech.roles import Message, Responder, Sampling, TextDelta, ToolCall, Transcript
from stepaudio.speech.transcribe import PartialTranscriber

log = logging.getLogger("stepaudio.agent")

RATE = 16_000
"""Sample rate of the input: what the voice activity network and the transcribers listen at."""
_SCORED_SECONDS = 8.0
"""What an acoustic `TurnScorer` gets to hear of a turn, from its end."""
_OVERDUE = 0.05
"""Seconds until the next tick when one is due already and changed nothing."""
_ENOUGH_AHEAD = 2.0
"""Seconds of audio ahead of the listener with which a reply can let others go first."""


_Failed = Callable[[str, str], ev.Event]


class InputFullError(BusyError):
    """More audio is waiting to be transcribed, or to be committed, than a session holds."""

    code = "input_audio_buffer_full"


class Session:
    """One conversation over shared models.

    `emit` is called, on the event loop, with every `Play`, every `StopPlayback` and every notice, in order. Replies
    wait while `room` is not set: the transport clears it when its listener does not keep up. `patience` is how long
    a reply may produce nothing before it counts as failed, `input_seconds` how much audio is held at most.
    """

    def __init__(
        self,
        models: Models,
        scheduler: Scheduler,
        emit: Callable[[note.Output], None],
        *,
        settings: Settings | None = None,
        tools: ToolProvider | None = None,
        clock: Callable[[], float] = time.monotonic,
        new_id: Callable[[str], str] | None = None,
        patience: float = 30.0,
        input_seconds: float = 180.0,
        room: asyncio.Event | None = None,
    ) -> None:
        self.controller = Controller(settings, rate=models.speaker.rate, new_id=new_id)
        self._models = models
        self._scheduler = scheduler
        self._emit = emit
        self._tools = ToolThreads(tools or ClientTools())
        self._clock = clock
        self._patience = patience
        self._room = room or asyncio.Event()
        self._room.set()
        self._most_input = round(input_seconds * RATE)
        self._reading = ReadingAhead(models.responder, scheduler.replying, self.handle)
        self._vad = GatedVadStream(models.vad)
        self._ring = InputRing()
        self._attached: Samples | None = None
        self._language: str | None = None
        self._heard: tuple[str, Samples] | None = None
        self._work: dict[str, asyncio.Task[None]] = {}
        self._tickets: dict[str, Ticket] = {}
        self._going: dict[str, threading.Event] = {}
        self._transcribing: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: float | None = None
        self._pressure = 0.0
        self._closed = False

    # ------------------------------------------------------------ for the transport

    def hear(self, samples: Samples) -> None:
        """Take the next input [T] at `RATE`. Raises InputError for unusable samples, and InputFullError (nothing is
        taken then) when the conversation does not come to an end with what it has."""
        self._ring.forget(int(self.controller.keep_from * RATE))
        if len(self._ring) + len(samples) > self._most_input:
            raise InputFullError(
                f"{len(self._ring) / RATE:.0f} s of audio wait already: commit or clear them, or send less at once.",
                retry_after=5,
            )
        self._take(samples)

    def hear_last(self, samples: Samples) -> None:
        """Take the end of an input [T] that is about to be committed, even where there is no room for more, and
        complete its last window with silence."""
        self._take(samples)
        self._take(np.zeros(-self._ring.end % round(WINDOW * RATE), np.float32))

    def _take(self, samples: Samples) -> None:
        probabilities = self._vad.push(samples)
        self._ring.push(samples)
        for probability in probabilities:
            self.handle(ev.Window(float(probability)))

    def create_item(self, event: ev.CreateItem, samples: Samples | None) -> None:
        """Insert an item; `samples` [T] at `RATE` are the audio of one without a text. Raises RequestError."""
        self._attached = samples
        try:
            self.handle(event)
        finally:
            self._attached = None

    def handle(self, event: ev.Event) -> None:
        """Take an event and do what follows from it. Raises RequestError when a request does not fit."""
        if self._closed:
            return
        for output in self.controller.handle(event, self._clock()):
            self._carry_out(output)
        self._set_timer()

    async def close(self) -> None:
        """Stop all work and wait, for a moment, until it has stopped."""
        self._closed = True
        self._reading.stop()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._work.values():
            task.cancel()
        tasks = [task for task in (*self._work.values(), self._reading.task) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    # ------------------------------------------------------------ carrying out commands

    def _carry_out(self, output: note.Output) -> None:
        match output:
            case cmd.Transcribe():
                self._transcribing[output.job] = output.item_id
                self._start(output.job, self._transcribe(output, self._audio(output.start, output.end)))
            case cmd.Overhear():
                self._start(output.job, self._overhear(output, self._audio(output.start, output.end)))
            case cmd.Warm():
                self._reading.ask(output)
            case cmd.Score():
                start = max(output.start, output.end - _SCORED_SECONDS)
                self._start(output.job, self._score(output.job, self._audio(start, output.end)))
            case cmd.StartReply():
                self._start_reply(output)
            case cmd.RunTool(call):
                self._start(call.id, self._run_tool(call))
            case cmd.Summarise():
                self._start(output.job, self._summarise(output))
            case cmd.PauseReply(reply_id) if reply_id in self._going:
                self._going[reply_id].clear()
            case cmd.ResumeReply(reply_id) if reply_id in self._going:
                self._going[reply_id].set()
            case cmd.CommitReply(reply_id) if reply_id in self._going:
                self._reading.stop()
                self._going[reply_id].set()
                self._tickets[reply_id].hurry()
            case cmd.CancelReply(key) | cmd.CancelTranscribe(key) | cmd.CancelTool(key) if key in self._work:
                self._work[key].cancel()
            case note.InputCommitted(item_id):
                self._hurry_transcript(item_id)
                self._emit(output)
            case cmd.Play() | cmd.StopPlayback():
                self._emit(output)
            case _ if not isinstance(output, cmd.Command):
                self._emit(output)

    def _start(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._work[key] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._ended(key))

    def _ended(self, key: str) -> None:
        self._work.pop(key, None)
        self._tickets.pop(key, None)
        self._going.pop(key, None)
        self._transcribing.pop(key, None)

    def _hurry_transcript(self, item_id: str) -> None:
        """The turn is over: the transcript that was asked for at its last pause is awaited now."""
        for job, item in self._transcribing.items():
            if item == item_id and job in self._tickets:
                self._tickets[job].hurry()

    async def _guard(self, key: str, failed: _Failed, work: Callable[[Watchdog], Coroutine[Any, Any, None]]) -> None:
        """Await the work on a command. `failed(message, code)` is handled when a model fails; when it hangs, at once,
        although the thread behind it may take its time to end."""

        def late() -> None:
            if key in self._going and not self._going[key].is_set():
                watchdog.calm()  # it waits because it was told to
            elif key in self._work:
                self.handle(failed(f"The models did not answer within {self._patience:g} s.", "timeout"))
                self._work[key].cancel()

        watchdog = Watchdog(self._patience, late)
        try:
            await work(watchdog)
        except StepAudioError as error:
            self.handle(failed(str(error), error.code))
        except Exception:
            log.exception("A model failed")
            self.handle(failed("A model failed; the server's log holds the cause.", "internal_error"))
        finally:
            watchdog.stop()

    # ------------------------------------------------------------ hearing

    def _audio(self, start: float | None, end: float | None) -> Samples:
        """A stretch of the input or, with no span, what came with the item that is being created."""
        if start is None or end is None:
            assert self._attached is not None
            return self._attached
        return self._ring.read(int(start * RATE), int(end * RATE))

    async def _transcribe(self, command: cmd.Transcribe, samples: Samples) -> None:
        urgency = Urgency.AWAITED if command.final else Urgency.LIKELY

        async def work(watchdog: Watchdog) -> None:
            async with self._place(command.job, urgency):
                transcript = await aio.run(partial(self._hear, command, samples))
            self._language = transcript.language or self._language
            self._heard = transcript.text.strip(), samples
            self._tell_load()
            self.handle(ev.Transcribed(command.job, transcript.text, transcript.language or None))

        await self._guard(command.job, lambda message, _: ev.TranscribeFailed(command.job, message), work)

    async def _overhear(self, command: cmd.Overhear, samples: Samples) -> None:
        if not self._scheduler.hearing.free or self._scheduler.replying.wanted:
            self.handle(ev.TranscribeFailed(command.job, "Others are waiting to be heard, or for a reply."))
            return

        async def work(watchdog: Watchdog) -> None:
            async with self._place(command.job, Urgency.SPECULATIVE):
                transcript = await aio.run(partial(self._hear, command, samples))
            self._heard = transcript.text.strip(), samples
            self.handle(ev.Transcribed(command.job, transcript.text, transcript.language or None))

        await self._guard(command.job, lambda message, _: ev.TranscribeFailed(command.job, message), work)

    def _hear(self, command: cmd.Transcribe | cmd.Overhear, samples: Samples, cancel: threading.Event) -> Transcript:
        turn = PartialTranscriber(self._models.transcriber, language=command.language, prompt=command.hint)
        turn.push(samples)
        return turn.flush(cancel)

    def _place(self, key: str, urgency: Urgency) -> Ticket:
        ticket = self._tickets[key] = self._scheduler.hearing.ticket(urgency)
        return ticket

    async def _score(self, job: str, samples: Samples) -> None:
        try:
            async with self._place(job, Urgency.LIKELY):
                score = await aio.run(lambda _: self._models.turn_scorer.score(samples, None, self._language))
        except Exception:
            log.exception("The acoustic turn scorer failed; the turn goes by its words")
        else:
            self.handle(ev.Scored(job, score))

    # ------------------------------------------------------------ replying

    def _start_reply(self, start: cmd.StartReply) -> None:
        going = self._going[start.reply_id] = threading.Event()
        going.set()
        aloud = threading.Event()
        aloud.set()
        lane = self._scheduler.replying
        if start.speculative:
            ticket = lane.ticket(Urgency.SPECULATIVE, give_up=partial(self.handle, ev.Load(1.0)))
        else:
            ticket = lane.ticket(Urgency.AWAITED)
        self._tickets[start.reply_id] = ticket
        language, heard = self._language, self._heard
        if not (start.speculative and self._reading.asked):
            self._reading.stop()

        async def stand_aside(until: Coroutine[Any, Any, object], watchdog: Watchdog) -> None:
            aloud.clear()
            with watchdog.asleep():
                await ticket.stand_aside(until)
            aloud.set()

        def make(cancel: threading.Event) -> Iterator[ev.ReplyEvent]:
            messages = _as_heard(start.messages, self._models.responder, heard)
            asked = replace(start, messages=messages)
            return make_reply(self._models, asked, language=language, go=going, aloud=aloud, cancel=cancel)

        async def work(watchdog: Watchdog) -> None:
            await self._reading.ended()
            # A client that does not read keeps nobody else waiting: its replies hold no place while they do.
            with watchdog.asleep():
                await self._room.wait()
            async with ticket, aclosing(aio.stream(make)) as events:
                async for event in events:
                    if not self._room.is_set():
                        await stand_aside(self._room.wait(), watchdog)
                    watchdog.calm()
                    self.handle(event)
                    if not isinstance(event, ev.ReplySpeech):
                        continue
                    ticket.shown = True
                    if lane.wanted and (spare := self._spare()) > 0:
                        await stand_aside(asyncio.sleep(spare), watchdog)

        self._start(start.reply_id, self._guard(start.reply_id, partial(ev.ReplyFailed, start.reply_id), work))

    def _spare(self) -> float:
        """Seconds for which the listener of this session has enough to hear."""
        ends_at = self.controller.playback.ends_at
        return 0.0 if ends_at is None else ends_at - self._clock() - _ENOUGH_AHEAD

    def _tell_load(self) -> None:
        """Before a speculation may start, say how busy the machine is."""
        pressure = self._scheduler.replying.pressure
        if pressure or self._pressure:
            self._pressure = pressure
            self.handle(ev.Load(pressure))

    # ------------------------------------------------------------ tools and summaries

    async def _run_tool(self, call: ToolCall) -> None:
        try:
            output = await self._tools.run(call)
        except Exception as error:
            if not isinstance(error, StepAudioError):
                log.warning("The tool %s failed", call.name, exc_info=error)
            self.handle(ev.ToolFailed(call.id, str(error) or type(error).__name__))
        else:
            self.handle(ev.ToolFinished(call.id, output))

    async def _summarise(self, command: cmd.Summarise) -> None:
        def write(cancel: threading.Event) -> str:
            sampling = Sampling(max_tokens=256)
            events = self._models.responder.respond(command.messages, sampling=sampling, cancel=cancel)
            return "".join(event.text for event in events if isinstance(event, TextDelta))

        async def work(watchdog: Watchdog) -> None:
            async with self._scheduler.replying.ticket(Urgency.BACKGROUND):
                watchdog.calm()
                text = await aio.run(write)
            self.handle(ev.Summarised(command.job, text))

        await self._guard(command.job, lambda *_: ev.SummariseFailed(command.job), work)

    # ------------------------------------------------------------ time

    def _set_timer(self) -> None:
        due = self.controller.wake_at
        if due == self._timer_due and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_due = due
        if due is not None:
            delay = due - self._clock()
            self._timer = asyncio.get_running_loop().call_later(delay if delay > 0 else _OVERDUE, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.handle(ev.Tick())


def _as_heard(
    messages: tuple[Message, ...], responder: Responder, heard: tuple[str, Samples] | None
) -> tuple[Message, ...]:
    """The prompt with the audio of the user's last turn, for a responder that hears, if that is what was `heard` last:
    a turn that was typed, or whose audio is gone, is read."""
    said = next((message.content for message in reversed(messages) if message.role == "user"), "")
    if heard is None or not said or said != heard[0]:
        return messages
    return tuple(with_audio(messages, responder, heard[1]))
