"""The agent's voice as a WebRTC track: audio is queued as fast as it is made, and leaves in real time.

The track is the media clock of its conversation: what it has sent is what the listener hears. Importing this needs
`aiortc`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

from stepaudio.agent import commands as cmd
from stepaudio.audio.pcm import to_int16
from stepaudio.audio.resample import Resampler

RATE = 48_000
_FRAME = RATE // 50
"""Samples of an Opus packet, 20 ms."""
_TELL_EVERY = 5
"""Frames between two reports of the position."""
_LATE = 0.5
"""Seconds that the clock makes up for when the machine was busy; beyond that it starts anew."""
_FULL, _ROOM = 30.0, 20.0
"""Seconds of queued audio from which on replies wait, and to which it has to fall for them to go on."""


@dataclass(slots=True)
class _Piece:
    """Samples of one item that were not sent yet; `start` is where they are in it, in samples."""

    reply_id: str
    item_id: str
    start: int
    samples: NDArray[np.int16]


class Voice(MediaStreamTrack):
    """`tell(name, reply_id)` is called with "started" when the first audio of a reply leaves, and "stopped" or
    "cleared" when its last one did; `played(item_id, seconds)` with the position. Replies should wait for `room`."""

    kind = "audio"

    def __init__(
        self,
        rate: int,
        room: asyncio.Event,
        *,
        tell: Callable[[str, str], None],
        played: Callable[[str, float], None],
    ) -> None:
        super().__init__()
        self._rate = rate
        self._room = room
        self._room.set()
        self._tell = tell
        self._played = played
        self._queue: deque[_Piece] = deque()
        self._queued = 0
        self._filled = asyncio.Event()
        self._resampler = Resampler(rate, RATE)
        self._item: tuple[str, str] | None = None
        self._made = 0
        self._audible: str | None = None
        """The reply that is being heard."""
        self._complete: set[str] = set()
        self._frames = 0
        self._pts = 0
        self._due: float | None = None

    @property
    def speaking(self) -> bool:
        """Whether there is audio that has not left yet."""
        return bool(self._queue)

    # ------------------------------------------------------------ from the conversation

    def play(self, play: cmd.Play) -> None:
        """Behind what is there already."""
        if self._item != (play.reply_id, play.item_id):
            self._end_item()
            self._item, self._made = (play.reply_id, play.item_id), 0
        self._append(self._resampler.push(play.speech.samples))

    def finish(self, reply_id: str) -> None:
        """There will be no more audio of this reply."""
        if self._item is not None and self._item[0] == reply_id:
            self._end_item()
        if reply_id == self._audible or any(piece.reply_id == reply_id for piece in self._queue):
            self._complete.add(reply_id)
        self._settle()

    def clear(self) -> None:
        """Be silent at once."""
        self._queue.clear()
        self._queued = 0
        self._room.set()
        self._item = None
        self._resampler.reset()
        self._complete.clear()
        if self._audible is not None:
            reply_id, self._audible = self._audible, None
            self._tell("cleared", reply_id)

    def _end_item(self) -> None:
        if self._item is not None:
            self._append(self._resampler.flush())
        self._item = None

    def _append(self, samples: NDArray[np.float32]) -> None:
        if self._item is None or not len(samples):
            return
        self._queue.append(_Piece(*self._item, self._made, to_int16(samples)))
        self._made += len(samples)
        self._queued += len(samples)
        if self._queued > _FULL * RATE:
            self._room.clear()
        self._filled.set()

    # ------------------------------------------------------------ to the listener

    async def recv(self) -> av.AudioFrame:
        """The next 20 ms, when they are due. While there is nothing to say nothing is sent."""
        if self.readyState != "live":
            raise MediaStreamError
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        await self._wait_for_turn()
        frame = av.AudioFrame.from_ndarray(self._take()[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._pts, Fraction(1, RATE)
        return frame

    async def _wait_for_turn(self) -> None:
        now = time.monotonic()
        self._pts += _FRAME
        if self._due is None or now - self._due > _LATE:
            if self._due is not None:  # time went on while nothing was sent
                self._pts += int((now - self._due) * 50) * _FRAME
            self._due = now
        elif self._due > now:
            await asyncio.sleep(self._due - now)
        self._due += _FRAME / RATE

    def _take(self) -> NDArray[np.int16]:
        """The next frame, filled up with silence where the queue ends."""
        frame = np.zeros(_FRAME, np.int16)
        count = 0
        while self._queue and count < _FRAME:
            piece = self._queue[0]
            self._start(piece.reply_id)
            part = piece.samples[: _FRAME - count]
            frame[count : count + len(part)] = part
            count += len(part)
            piece.samples = piece.samples[len(part) :]
            piece.start += len(part)
            if self._frames % _TELL_EVERY == 0 or not len(piece.samples):
                self._played(piece.item_id, piece.start / RATE)
            if not len(piece.samples):
                self._queue.popleft()
        self._frames += 1
        self._queued -= count
        if self._queued < _ROOM * RATE:
            self._room.set()
        self._settle()
        return frame

    def _start(self, reply_id: str) -> None:
        if reply_id != self._audible:
            self._stop()
            self._audible = reply_id
            self._tell("started", reply_id)

    def _settle(self) -> None:
        """Say that a reply has been heard to its end."""
        if self._audible in self._complete and all(piece.reply_id != self._audible for piece in self._queue):
            self._stop()

    def _stop(self) -> None:
        if self._audible is not None:
            reply_id, self._audible = self._audible, None
            self._complete.discard(reply_id)
            self._tell("stopped", reply_id)
