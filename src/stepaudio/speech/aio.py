"""Blocking iterators for asyncio: one worker thread, a bounded queue, prompt cancellation.

Models work in threads; servers and the live runtime live in asyncio. `stream` runs a blocking iterator in its own
thread and hands its items over through a queue of `buffer` items, so that a slow reader slows the model down rather
than filling memory. When the reader stops (break, cancellation, a lost client), the `cancel` event given to the
iterator is set and the thread ends at its next look at it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from stepaudio.errors import Cancelled

T = TypeVar("T")


async def stream(make: Callable[[threading.Event], Iterator[T]], *, buffer: int = 16) -> AsyncGenerator[T, None]:
    """Iterate over `make(cancel)` in a thread; exceptions it raises are raised here.

    The generator ends only when the thread has ended, so whoever closes it knows that the work has stopped.
    """
    loop = asyncio.get_running_loop()
    cancel = threading.Event()
    room = threading.Semaphore(buffer)
    queue: asyncio.Queue[T | _End] = asyncio.Queue()

    def work() -> None:
        error: BaseException | None = None
        try:
            # Closed here and not by the garbage collector: a lock that a generator holds belongs to this thread.
            with _closing(make(cancel)) as items:
                for item in items:
                    while not room.acquire(timeout=0.05):
                        if cancel.is_set():
                            raise Cancelled("the reader went away")
                    if cancel.is_set():
                        raise Cancelled("the reader went away")
                    loop.call_soon_threadsafe(queue.put_nowait, item)
        except BaseException as caught:
            error = caught
        finally:
            with suppress(RuntimeError):  # the loop was closed under a stream that nobody reads any more
                loop.call_soon_threadsafe(queue.put_nowait, _End(error))

    thread = threading.Thread(target=work, name="stepaudio-work", daemon=True)
    thread.start()
    ended = False
    try:
        while True:
            item = await queue.get()
            if isinstance(item, _End):
                ended = True
                if item.error is not None:
                    raise item.error
                return
            room.release()
            yield item
    finally:
        cancel.set()
        while not ended:
            ended = isinstance(await queue.get(), _End)


async def run(call: Callable[[threading.Event], T]) -> T:
    """Run one blocking call in a thread; cancelling the task sets the call's `cancel` event and waits for it."""

    def once(cancel: threading.Event) -> Iterator[T]:
        yield call(cancel)

    results = stream(once)
    try:
        return await anext(results)
    finally:
        await results.aclose()


@contextmanager
def _closing(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Close a generator at the end; other iterators have nothing to close."""
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()


class _End:
    """Marks the end of the stream in its queue."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
