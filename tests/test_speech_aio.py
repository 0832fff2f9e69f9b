"""The bridge from blocking iterators to asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from stepaudio.errors import Cancelled, TextError
from stepaudio.speech import aio


def test_items_come_in_order() -> None:
    async def main() -> list[int]:
        return [item async for item in aio.stream(lambda cancel: iter(range(100)), buffer=2)]

    assert asyncio.run(main()) == list(range(100))


def test_errors_arrive_after_the_items_before_them() -> None:
    def failing(cancel: threading.Event) -> Iterator[int]:
        yield 1
        raise TextError("bad")

    async def main() -> None:
        items = aio.stream(failing)
        assert await anext(items) == 1
        with pytest.raises(TextError, match="bad"):
            await anext(items)

    asyncio.run(main())


def test_a_slow_reader_holds_the_worker_back() -> None:
    made = 0

    def counting(cancel: threading.Event) -> Iterator[int]:
        nonlocal made
        while made < 1000:
            made += 1
            yield made

    async def main() -> int:
        items = aio.stream(counting, buffer=4)
        await anext(items)
        await asyncio.sleep(0.2)
        ahead = made
        await items.aclose()
        return ahead

    assert asyncio.run(main()) <= 6


def test_leaving_stops_the_worker_before_the_generator_ends() -> None:
    stopped = threading.Event()

    def endless(cancel: threading.Event) -> Iterator[int]:
        try:
            while True:
                if cancel.is_set():
                    raise Cancelled("stop")
                yield 0
                time.sleep(0.01)
        finally:
            stopped.set()

    async def main() -> None:
        items = aio.stream(endless)
        await anext(items)
        await items.aclose()
        assert stopped.is_set()

    asyncio.run(main())


def test_cancelling_a_task_sets_cancel() -> None:
    seen = threading.Event()

    def waiting(cancel: threading.Event) -> str:
        if cancel.wait(10):
            seen.set()
            raise Cancelled("stop")
        return "never"

    async def main() -> None:
        task = asyncio.create_task(aio.run(waiting))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen.is_set()

    asyncio.run(main())


def test_run_returns_and_raises() -> None:
    def failing(cancel: threading.Event) -> int:
        raise TextError("bad")

    assert asyncio.run(aio.run(lambda cancel: 7)) == 7
    with pytest.raises(TextError):
        asyncio.run(aio.run(failing))


def test_no_thread_outlives_its_stream() -> None:
    before = threading.active_count()
    asyncio.run(aio.run(lambda cancel: 1))
    time.sleep(0.05)
    assert threading.active_count() <= before + 1  # asyncio's own helper may linger
