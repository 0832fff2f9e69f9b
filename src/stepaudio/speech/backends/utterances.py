"""Utterances that are heard again while they grow: what is known of their beginning, so that only the rest is new."""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import WINDOW, SileroVad, VadStream

_OPENING = 8_000  # samples by which an utterance is known again


@dataclass(frozen=True, slots=True)
class Utterance:
    """What was found in the beginning of an utterance. Nothing of it changes: several threads may go on from it."""

    opening: bytes
    vad: VadStream | None = None
    """The stream that has heard its whole windows."""
    speech: tuple[float, ...] = ()
    """How likely each of these windows is speech."""
    heard: bytes = b""
    """What they were."""
    tokens: tuple[int, ...] = ()
    """The text that was found in it."""

    def more(self, samples: Samples, vad: SileroVad) -> Utterance:
        """The whole windows of `samples` [T] are known as well: of what was not heard before, the network is asked."""
        known = len(self.speech) * WINDOW
        if self.vad is None or self.heard != _digest(samples[:known]):
            known, stream, speech = 0, vad.stream(), tuple[float, ...]()
        else:
            stream, speech = copy(self.vad), self.speech  # a stream replaces what it remembers, and changes none of it
        whole = len(samples) // WINDOW * WINDOW
        new = stream.push(samples[known:whole])
        return replace(self, vad=stream, speech=(*speech, *new.tolist()), heard=_digest(samples[:whole]))

    def probabilities(self, rest: Samples) -> NDArray[np.float32]:
        """How likely each window is speech; `rest` [T < 512] are the samples behind the whole ones."""
        assert self.vad is not None
        stream = copy(self.vad)
        return np.array([*self.speech, *stream.push(rest), *stream.flush()], np.float32)


class Utterances:
    """The utterances that were heard last, `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[bytes, Utterance] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def recall(self, samples: Samples) -> Utterance:
        """What is known of the utterance that begins like `samples` [T]."""
        opening = _digest(samples[:_OPENING])
        with self._lock:
            return self._known.get(opening) or Utterance(opening)

    def know(self, utterance: Utterance) -> None:
        """Remember this one, and forget those heard longest ago."""
        with self._lock:
            self._known.pop(utterance.opening, None)  # what is known anew is forgotten last
            self._known[utterance.opening] = utterance
            while len(self._known) > self._most:
                self._known.pop(next(iter(self._known)))


def _digest(samples: Samples) -> bytes:
    return hashlib.blake2b(samples.tobytes(), digest_size=16).digest()
