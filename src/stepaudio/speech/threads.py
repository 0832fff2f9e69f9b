"""Blocking work in a thread of its own, read as an iterator that can be cancelled at any moment.

The counterpart of `aio` for callers without an event loop: a model that calls back, a socket that blocks, a reply
that must go on while its first clause is spoken.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import TypeVar

from stepaudio.errors import Cancelled
from stepaudio.speech.roles import Speech

T = TypeVar("T")

_POLL_SECONDS = 0.02


def pump(
    work: Callable[[Callable[[T], None], threading.Event], None],
    *,
    cancel: threading.Event | None = None,
    buffer: int = 0,
    stop_work: Callable[[], None] = lambda: None,
    wait: float | None = None,
) -> Generator[T, None, None]:
    """Yield what `work(put, stop)` puts, in order; an exception it raises is raised here.

    `put` blocks while `buffer` items are unread (0: never) and raises Cancelled once nobody reads. When `cancel` is
    set (which raises Cancelled here), or the reader goes away, `stop` is set, `stop_work` is called to wake work
    that blocks, and the thread is waited for: at most `wait` seconds, or until it ends.
    """
    items: queue.Queue[T | _End] = queue.Queue(buffer)
    stop = threading.Event()

    def put(item: T | _End) -> None:
        while True:
            try:
                return items.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                if stop.is_set():
                    raise Cancelled("nobody reads this any more") from None

    def run() -> None:
        error: BaseException | None = None
        try:
            work(put, stop)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(Cancelled):
            put(_End(error))

    worker = threading.Thread(target=run, name="stepaudio-pump", daemon=True)
    worker.start()
    try:
        while True:
            if cancel is not None and cancel.is_set():
                raise Cancelled("cancelled by the caller")
            try:
                item = items.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        stop_work()
        worker.join(wait)


def speak_while_writing(
    write: Callable[[Callable[[str], None], threading.Event], None],
    speak: Callable[[Iterator[str]], Iterator[Speech]],
    cancel: threading.Event,
    *,
    buffer: int = 256,
) -> Generator[Speech, None, None]:
    """What `speak` makes of the pieces of text that `write(hand_over, stop)` hands over in a thread of its own: the
    model writes on while a clause is spoken. `speak` is not called for a text of white space: a reply that only calls
    tools has nothing to say."""
    with contextlib.closing(pump(write, cancel=cancel, buffer=buffer)) as pieces:
        first = next((piece for piece in pieces if piece.strip()), None)
        if first is not None:
            yield from speak(chain([first], pieces))


@contextlib.contextmanager
def sleeping_openmp() -> Iterator[None]:
    """Import a library inside this, and its OpenMP threads spin at a barrier for some microseconds, then sleep.

    Spinning on loses nine tenths of the speed when anything else wants the cores, such as a speaker at work on the
    first clause; sleeping at once loses a third of a language model's. OpenMP reads this when its library is loaded,
    and never again.
    """
    choice = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}
    if not choice.keys().isdisjoint(os.environ):  # the user's own
        yield
        return
    os.environ.update(choice)
    try:
        yield
    finally:
        for name in choice:
            os.environ.pop(name, None)


class _End:
    """Marks the end of the work in its queue."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
