"""What the listener has heard: text, clause, sample and wall time of every reply on one line.

`Track` aligns the text of one item with its audio; `Playback` puts the audio of all items on the wall clock, one
after the other, so that two replies are never audible at once. After a barge-in `Track.heard` gives the whole words
that were played, whichever way the position is known: reported by the client, by a media clock, or from the time.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from stepaudio.speech.roles import Speech

_UNIT = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af][^\w\s]*|(?:(?![\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])\S)+"
)
_PUNCTUATION = re.compile(r"[\W_]+")
_REACH = 24
"""How far ahead, in characters, a spoken word is looked for in its clause: numbers are spoken as other words."""


def _solid(text: str) -> str:
    """Text without white space: the axis on which text and audio are aligned, since chunks join but for white
    space."""
    return "".join(text.split())


class Track:
    """The audio of one item against its text. Positions are seconds from the item's first sample."""

    def __init__(self) -> None:
        self.text = ""
        self.seconds = 0.0
        self._times = [0.0]
        self._counts = [0.0]

    @property
    def spoken(self) -> int:
        """Characters (white space left out) of the text whose audio exists."""
        return int(self._counts[-1])

    def extend(self, speech: Speech, seconds: float) -> None:
        """Append a chunk of audio that lasts `seconds`."""
        begin, base = self.seconds, self._counts[-1]
        solid = _solid(speech.text)
        for time, count in self._anchors(speech, solid.casefold()):
            self._anchor(begin + min(time, seconds), base + count)
        self.seconds = begin + seconds
        self._anchor(self.seconds, base + len(solid))

    def heard(self, seconds: float) -> str:
        """The prefix of the text, in whole words, that lies before `seconds`; half a word heard counts as heard."""
        count, done, end = self._count_at(seconds), 0, 0
        for unit in _UNIT.finditer(self.text):
            length = len(unit.group())
            if done + length / 2 > count:
                break
            done += length
            end = unit.end()
        return self.text[:end]

    def _anchors(self, speech: Speech, solid: str) -> Iterator[tuple[float, int]]:
        cursor = 0
        for word in speech.words:
            written = _PUNCTUATION.sub("", word.text).casefold()
            found = solid.find(written, cursor, cursor + _REACH + len(written)) if written else -1
            if found >= 0:
                cursor = found + len(written)
                yield word.start, found
                yield word.end, cursor

    def _anchor(self, time: float, count: float) -> None:
        self._times.append(max(time, self._times[-1]))
        self._counts.append(max(count, self._counts[-1]))

    def _count_at(self, seconds: float) -> float:
        after = bisect_right(self._times, seconds)
        if after == len(self._times):
            return self._counts[-1]
        if after == 0:
            return 0.0
        t0, t1 = self._times[after - 1], self._times[after]
        c0, c1 = self._counts[after - 1], self._counts[after]
        return c0 + (c1 - c0) * (seconds - t0) / (t1 - t0)


@dataclass(slots=True)
class _Segment:
    item_id: str
    begin: float
    seconds: float
    wall: float

    @property
    def end(self) -> float:
        return self.wall + self.seconds


class Playback:
    """The audio sent to one listener, on the wall clock.

    Every chunk starts when the one before it ends, or when it is sent if that is later (an underrun). `lag` is the
    listener's buffer in seconds where it is known. A transport that knows the position corrects this with `report`.
    """

    def __init__(self, rate: int = 24_000, lag: float = 0.0) -> None:
        self.rate = rate
        self.lag = lag
        self.tracks: dict[str, Track] = {}
        self._queue: deque[_Segment] = deque()

    @property
    def ends_at(self) -> float | None:
        """When all that was sent will have been heard; None when nothing is on its way."""
        return self._queue[-1].end if self._queue else None

    def advance(self, now: float) -> None:
        """Forget the chunks that have been heard."""
        while self._queue and self._queue[0].end <= now:
            self._queue.popleft()

    def audible(self, now: float) -> bool:
        """Whether something is being heard, or is about to be."""
        self.advance(now)
        return bool(self._queue)

    def write(self, item_id: str, text: str) -> None:
        """Note the text of an item that is going to be spoken."""
        self.tracks.setdefault(item_id, Track()).text = text

    def append(self, item_id: str, speech: Speech, now: float) -> None:
        """Note a chunk that is sent now."""
        seconds = len(speech.samples) / self.rate
        track = self.tracks.setdefault(item_id, Track())
        begin = track.seconds
        track.extend(speech, seconds)
        wall = max(now + self.lag, self._queue[-1].end if self._queue else 0.0)
        if seconds:
            self._queue.append(_Segment(item_id, begin, seconds, wall))

    def position(self, item_id: str, now: float) -> float:
        """Seconds of an item that have been heard."""
        self.advance(now)
        unheard = sum(segment.end - max(now, segment.wall) for segment in self._queue if segment.item_id == item_id)
        track = self.tracks.get(item_id)
        return max(0.0, track.seconds - unheard) if track else 0.0

    def report(self, item_id: str, seconds: float, now: float) -> None:
        """The listener's clock says that `seconds` of an item have been heard: move the rest accordingly."""
        if not any(segment.item_id == item_id for segment in self._queue):
            return
        while self._queue:
            first = self._queue[0]
            if first.item_id == item_id and first.begin + first.seconds > seconds:
                break
            if first.item_id != item_id and not any(later.item_id == item_id for later in self._queue):
                return
            self._queue.popleft()
        if self._queue:
            shift = now + self._queue[0].begin - seconds - self._queue[0].wall
            for segment in self._queue:
                segment.wall += shift

    def stop(self, now: float) -> list[tuple[str, float]]:
        """Stop everything; returns the items that were cut short and the seconds heard of each."""
        self.advance(now)
        items = list(dict.fromkeys(segment.item_id for segment in self._queue))
        cut = [(item_id, self.position(item_id, now)) for item_id in items]
        self._queue.clear()
        return cut

    def drop(self, item_id: str, now: float) -> None:
        """The listener has dropped what it had of an item: the rest moves up."""
        self.advance(now)
        kept = [segment for segment in self._queue if segment.item_id != item_id]
        self._queue.clear()
        for segment in kept:
            segment.wall = self._queue[-1].end if self._queue else min(now, segment.wall)
            self._queue.append(segment)
