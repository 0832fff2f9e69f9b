"""The input audio that may still be asked for."""

from __future__ import annotations

from collections import deque

import numpy as np

from stepaudio.audio.pcm import Samples


class InputRing:
    """A stretch of a stream of audio, from `start` on; positions are samples since the stream began."""

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self._blocks: deque[Samples] = deque()

    def __len__(self) -> int:
        """Samples held."""
        return self.end - self.start

    def push(self, samples: Samples) -> None:
        """Append samples [T]."""
        if len(samples):
            self._blocks.append(samples)
            self.end += len(samples)

    def forget(self, before: int) -> None:
        """Drop the blocks that lie before a position as a whole."""
        while self._blocks and self.start + len(self._blocks[0]) <= before:
            self.start += len(self._blocks.popleft())

    def read(self, start: int, end: int) -> Samples:
        """A copy of what is held between two positions."""
        parts, position = [np.zeros(0, np.float32)], self.start
        for block in self._blocks:
            parts.append(block[max(0, start - position) : max(0, end - position)])
            position += len(block)
        return np.concatenate(parts)
