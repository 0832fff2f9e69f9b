"""Live tokenizing: both branches side by side, many sessions on one pair of encoders.

A `DualStream` is one session. Its samples pass the running gain, both branches cut them into segments of
fixed duration, and the codes come back merged on absolute time: group g is the sound from 120 g ms on. A push
costs what its own samples cost: buffers and encoder states are bounded, whatever came before.

The encoders run in one thread per branch (`Batcher`). A thread takes whatever segments wait at that moment,
from all sessions, as one call; with one session that is its own segment at once, so batching never adds a
delay.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepaudio.errors import BackendError, BusyError, InputError
from stepaudio.tokenizer.branch import BLOCK, NO_CODES, Branch
from stepaudio.tokenizer.fbank import Floats
from stepaudio.tokenizer.gain import RunningGain
from stepaudio.tokenizer.interleave import RATIO, Codes, Tail, interleave


@dataclass(frozen=True)
class DualCodes:
    """Linguistic codes [L] at 16.67 Hz and semantic codes [S] at 25 Hz of the same sound."""

    linguistic: Codes
    semantic: Codes

    def tokens(self, *, tail: Tail = "keep") -> Codes:
        """Both streams as interleaved audio tokens in 0..5119."""
        return interleave(self.linguistic, self.semantic, ratio=RATIO, tail=tail)

    def __add__(self, later: DualCodes) -> DualCodes:
        return DualCodes(
            np.concatenate([self.linguistic, later.linguistic]),
            np.concatenate([self.semantic, later.semantic]),
        )


NOTHING = DualCodes(NO_CODES, NO_CODES)


class Batcher:
    """One branch's encoder in a thread of its own, shared by all sessions."""

    def __init__(self, branch: Branch[Any], *, waiting: int = 256, timeout: float = 60.0) -> None:
        """`waiting` bounds the requests in line, `timeout` the seconds that one may take."""
        self.branch = branch
        self._timeout = timeout
        self._line: queue.Queue[tuple[Sequence[Any], Future[list[Codes]]] | None] = queue.Queue(waiting)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="stepaudio-tokenizer", daemon=True)
        self._thread.start()

    def submit(self, segments: Sequence[Any]) -> Future[list[Codes]]:
        """Line up a session's next segments. Raises BusyError when the line stays full."""
        future: Future[list[Codes]] = Future()
        if not segments:
            future.set_result([])
            return future
        if self._closed:
            raise BackendError("the tokenizer is closed")
        try:
            self._line.put((segments, future), timeout=self._timeout)
        except queue.Full:
            raise BusyError("the tokenizer has more sessions than it can keep up with") from None
        return future

    def result(self, future: Future[list[Codes]]) -> Codes:
        """Wait for the codes of one `submit`. Raises BackendError when they do not come in time."""
        try:
            return np.concatenate([NO_CODES, *future.result(self._timeout)])
        except TimeoutError:
            raise BackendError(f"the tokenizer gave no codes for {self._timeout:.0f} s") from None

    def close(self) -> None:
        """Finish what is in line and end the thread."""
        if not self._closed:
            self._closed = True
            self._line.put(None, timeout=self._timeout)
            self._thread.join(self._timeout)

    def _run(self) -> None:
        going = True
        while going:
            requests = [self._line.get()]
            while not self._line.empty():
                requests.append(self._line.get())
            going = None not in requests
            self._encode([request for request in requests if request is not None])

    def _encode(self, requests: list[tuple[Sequence[Any], Future[list[Codes]]]]) -> None:
        try:
            codes = iter(self.branch.encode([segment for segments, _ in requests for segment in segments]))
            results = [[next(codes) for _ in segments] for segments, _ in requests]
        except Exception as error:  # the callers get it; the thread goes on for other sessions
            for _, future in requests:
                future.set_exception(error)
        else:
            for (_, future), result in zip(requests, results, strict=True):
                future.set_result(result)


class DualStream:
    """One session of the streaming tokenizer. One thread at a time may use it; sessions are independent."""

    def __init__(self, linguistic: Batcher, semantic: Batcher) -> None:
        self._batchers = (linguistic, semantic)
        self._segmenters = [batcher.branch.segmenter() for batcher in self._batchers]
        self._gain = RunningGain()
        self._waiting = NOTHING

    def push(self, samples: Floats) -> DualCodes:
        """Samples [T] at 16 kHz to the codes of the groups that became complete.

        Raises InputError for anything but finite mono float32 samples, and then keeps nothing of them. When the
        encoders fail or fall behind (BackendError, BusyError) the stream is lost and starts anew.
        """
        check_samples(samples)
        for start in range(0, len(samples), BLOCK):
            block = self._gain.push(samples[start : start + BLOCK])
            self._encode([segmenter.push(block) for segmenter in self._segmenters])
        groups = min(len(self._waiting.linguistic) // RATIO[0], len(self._waiting.semantic) // RATIO[1])
        return self._take(groups * RATIO[0], groups * RATIO[1])

    def flush(self) -> DualCodes:
        """All remaining codes, the last group of which may be partial. The stream is then as new."""
        self._encode([segmenter.flush() for segmenter in self._segmenters])
        codes = self._take(len(self._waiting.linguistic), len(self._waiting.semantic))
        self.reset()
        return codes

    def reset(self) -> None:
        """Forget everything that was pushed."""
        for segmenter in self._segmenters:
            segmenter.reset()
        self._gain.reset()
        self._waiting = NOTHING

    def _encode(self, segments: Sequence[Sequence[Any]]) -> None:
        try:
            futures = [batcher.submit(own) for batcher, own in zip(self._batchers, segments, strict=True)]
            codes = [batcher.result(future) for batcher, future in zip(self._batchers, futures, strict=True)]
        except Exception:
            # One branch may have gone on without the other; only a fresh start is sure to be aligned.
            self.reset()
            raise
        self._waiting += DualCodes(*codes)

    def _take(self, linguistic: int, semantic: int) -> DualCodes:
        taken = DualCodes(self._waiting.linguistic[:linguistic], self._waiting.semantic[:semantic])
        self._waiting = DualCodes(self._waiting.linguistic[linguistic:], self._waiting.semantic[semantic:])
        return taken


def check_samples(samples: Floats) -> None:
    """Raises InputError for anything but finite mono float32 samples [T]."""
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype != np.float32:
        what = f"{samples.dtype} of shape {samples.shape}" if isinstance(samples, np.ndarray) else type(samples)
        raise InputError(f"the tokenizer takes mono float32 samples at 16 kHz as an array [T], not {what}")
    if not np.isfinite(samples).all():
        raise InputError("the samples hold NaN or infinity")
