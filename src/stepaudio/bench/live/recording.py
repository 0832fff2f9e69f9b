"""Both directions of one conversation on one clock: seconds since the microphone was opened.

What the user says lies where it was captured; a frame is sent when it is complete. What the agent says lies where a
loudspeaker that plays at once would have played it: a chunk starts when it arrives, or when the one before it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepaudio.audio.pcm import Samples
from stepaudio.bench.live.clips import RATE
from stepaudio.bench.live.scenarios import Conversation


@dataclass(slots=True)
class Said:
    """A line of the user's, where it begins."""

    turn: int
    line: int
    start: float
    samples: Samples

    @property
    def end(self) -> float:
        return self.start + len(self.samples) / RATE


@dataclass(slots=True)
class Chunk:
    """Audio of the agent's, where it began to play; `played` samples of it were."""

    response_id: str
    item_id: str
    start: float
    samples: Samples
    played: int

    @property
    def end(self) -> float:
        return self.start + self.played / RATE


@dataclass(slots=True)
class Cut:
    """An item that the user stopped after `played` seconds of it, and what the server's history says of it then."""

    item_id: str
    at: float
    played: float
    heard: str | None = None


@dataclass(slots=True)
class Recording:
    """What happened in one conversation. `events` are the server's, audio left out; `late` is by how much the player
    itself missed its own pace at worst, which a busy machine makes it do."""

    conversation: Conversation
    speculation: bool
    said: list[Said] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    late: float = 0.0

    def of_type(self, name: str) -> list[dict[str, Any]]:
        return [event for _, event in self.events if event["type"] == name]

    def item_audio(self, item_id: str) -> Samples:
        """All that came of an item, played or not."""
        return np.concatenate([chunk.samples for chunk in self.chunks if chunk.item_id == item_id])

    def tracks(self) -> tuple[Samples, Samples]:
        """The user and the agent, as two signals of the same length."""
        user = [(line.start, line.samples) for line in self.said]
        agent = [(chunk.start, chunk.samples[: chunk.played]) for chunk in self.chunks]
        length = max((round(start * RATE) + len(samples) for start, samples in user + agent), default=0)
        return _mixed(user, length), _mixed(agent, length)


class Loudspeaker:
    """Plays what arrives, one chunk after the other, until it is stopped."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._free = 0.0
        self._stopped: set[str] = set()

    def play(self, response_id: str, item_id: str, samples: Samples, now: float) -> None:
        """Queue a chunk, unless its response was stopped."""
        if response_id not in self._stopped:
            start = max(now, self._free)
            self._recording.chunks.append(Chunk(response_id, item_id, start, samples, len(samples)))
            self._free = start + len(samples) / RATE

    def busy(self, now: float) -> bool:
        return self._free > now

    def stop(self, responses: set[str], now: float) -> list[Cut]:
        """Silence now: these responses are not heard again. Returns the items that were not played to their end."""
        unfinished: dict[str, None] = {}
        for chunk in self._recording.chunks:
            if chunk.end > now:
                chunk.played = max(0, round((now - chunk.start) * RATE))
                unfinished[chunk.item_id] = None
                self._stopped.add(chunk.response_id)
        self._stopped |= responses
        self._free = min(self._free, now)
        cuts = [Cut(item_id, now, self._played(item_id)) for item_id in unfinished]
        self._recording.cuts += cuts
        return cuts

    def _played(self, item_id: str) -> float:
        return sum(chunk.played for chunk in self._recording.chunks if chunk.item_id == item_id) / RATE


def _mixed(pieces: list[tuple[float, Samples]], length: int) -> Samples:
    track = np.zeros(length, np.float32)
    for start, samples in pieces:
        first = round(start * RATE)
        track[first : first + len(samples)] += samples[: length - first]
    return track
