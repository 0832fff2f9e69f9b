import asyncio

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio.errors import BusyError, InputError
from stepaudio.serve.limits import Slots
from stepaudio.serve.settings import Settings


def test_refuses_at_once_when_slots_and_queue_are_taken() -> None:
    async def scenario() -> None:
        slots = Slots(1, queue=1, timeout=10)
        release = asyncio.Event()

        async def work() -> None:
            async with slots.hold():
                await release.wait()

        first, second = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        assert (slots.busy, slots.waiting) == (1, 1)
        with pytest.raises(BusyError, match="1 slots are busy and 1 requests wait") as refusal:
            await work()
        assert refusal.value.retry_after >= 1
        release.set()
        await asyncio.gather(first, second)
        assert (slots.busy, slots.waiting) == (0, 0)

    asyncio.run(scenario())


def test_waits_no_longer_than_the_timeout() -> None:
    async def scenario() -> None:
        slots = Slots(1, queue=5, timeout=0.01)
        async with slots.hold():
            with pytest.raises(BusyError, match="No slot became free"):
                async with slots.hold():
                    pytest.fail("there is only one slot")
        async with slots.hold():
            assert slots.busy == 1

    asyncio.run(scenario())


@hypothesis.settings(deadline=None)
@given(
    size=st.integers(1, 3),
    queue=st.integers(0, 4),
    steps=st.lists(st.tuples(st.sampled_from(["enter", "leave", "cancel"]), st.integers(0, 20)), max_size=40),
)
def test_any_order_of_arrivals_departures_and_cancellations_keeps_the_counts(
    size: int, queue: int, steps: list[tuple[str, int]]
) -> None:
    async def scenario() -> None:
        slots = Slots(size, queue=queue, timeout=60)
        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []

        async def work(done: asyncio.Event) -> None:
            async with slots.hold():
                assert slots.busy <= size
                await done.wait()

        for kind, index in steps:
            if kind == "enter":
                done = asyncio.Event()
                full = slots.busy == size and slots.waiting == queue
                task = asyncio.create_task(work(done))
                await _settle()
                if full:
                    assert isinstance(task.exception(), BusyError)
                else:
                    tasks.append((task, done))
            elif tasks:
                task, done = tasks.pop(index % len(tasks))
                done.set() if kind == "leave" else task.cancel()
                if kind == "leave" and not task.done():
                    tasks.append((task, done))
            await _settle()
            tasks = [(task, done) for task, done in tasks if not task.done()]
            assert slots.busy == min(size, len(tasks))
            assert slots.waiting == max(0, len(tasks) - size)
        for task, _ in tasks:
            task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert (slots.busy, slots.waiting) == (0, 0)

    asyncio.run(scenario())


async def _settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", ["max_body_bytes", "max_concurrent", "queue_timeout", "max_audio_seconds"])
def test_a_limit_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=name):
        Settings(**{name: 0})


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        Settings(api_keys=("a", ""))
    assert Settings(max_queue=0).max_queue == 0
