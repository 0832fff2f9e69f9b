"""Attacks on a server while others talk to it: what they wait for an answer, and what memory the server takes.

The same conversations are held with and without each attack, in turn, in one run; `-s` prints the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from realtime_fixtures import pcm, speech, within

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "serve_fixtures" / "talk_server.py"
STEP = 0.04
SESSIONS, TURNS = 4, 5
MIB = 1 << 20
Attack = Callable[[str], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """The address of a server, and its process."""
    process = subprocess.Popen([sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip().replace("http", "ws", 1) + "/v1/realtime", process.pid
    process.communicate("", timeout=60)


def memory(pid: int) -> float:
    """Resident memory in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def event(type: str, **fields: Any) -> str:
    return json.dumps({"type": type, **fields})


async def converse(url: str) -> list[float]:
    """Speak in real time, as often as `TURNS`; returns the seconds from each last word to the first audio."""
    words, silence = ([pcm(part) for part in _pieces(s)] for s in (speech(0.6, 0.0), speech(0.0, 0.2)))
    delays: list[float] = []
    async with connect(url, compression=None, max_size=None) as socket:
        for _ in range(TURNS):
            begun = time.monotonic()
            for count, piece in enumerate(words, 1):
                await socket.send(event("input_audio_buffer.append", audio=piece))
                await asyncio.sleep(begun + count * STEP - time.monotonic())
            spoken = time.monotonic()
            listening = asyncio.create_task(_reply(socket))
            while not listening.done():
                count += 1
                await socket.send(event("input_audio_buffer.append", audio=silence[0]))
                await asyncio.sleep(begun + count * STEP - time.monotonic())
            delays.append(listening.result() - spoken)
            await socket.send(event("output_audio_buffer.clear"))
    return delays


def _pieces(samples: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return [samples[i : i + int(STEP * 24_000)] for i in range(0, len(samples), int(STEP * 24_000))]


async def _reply(socket: Any) -> float:
    """When the first audio came; reads on to the end of the reply."""
    first = 0.0
    while (kind := json.loads(await socket.recv())["type"]) != "response.done":
        if kind == "response.output_audio.delta" and not first:
            first = time.monotonic()
    assert first, "a reply without audio"
    return first


async def p95(url: str) -> float:
    delays = await asyncio.gather(*(converse(url) for _ in range(SESSIONS)))
    return float(np.percentile(np.concatenate(delays), 95))


# ---------------------------------------------------------------- attacks, each until it is cancelled


async def ten_times_real_time(url: str) -> None:
    flood = [event("input_audio_buffer.append", audio=pcm(part)) for part in _pieces(speech(1.0, 1.0))]
    async with connect(url, compression=None) as socket:
        reading = asyncio.create_task(_read(socket))
        while True:
            for message in flood:
                await socket.send(message)
                await asyncio.sleep(STEP / 10)
            assert not reading.done()


async def large_events(url: str) -> None:
    message = event("input_audio_buffer.append", audio="A" * (10 << 20))
    while True:
        with suppress(WebSocketException, OSError):
            async with connect(url, compression=None) as socket:
                await socket.send(message)
                await _read(socket)
        await asyncio.sleep(0.2)


async def nonsense(url: str) -> None:
    messages = [event("no.such.event"), event("input_audio_buffer.append", audio="@@@"), "{", event("session.update")]
    async with connect(url, compression=None) as socket:
        reading = asyncio.create_task(_read(socket))
        while not reading.done():
            for message in messages:
                await socket.send(message)
            await asyncio.sleep(0.004)


async def fifty_connections_a_second(url: str) -> None:
    async def one() -> None:
        with suppress(WebSocketException, OSError):
            async with connect(url, compression=None) as socket:
                await socket.recv()

    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(one())
            await asyncio.sleep(0.02)


async def a_client_that_does_not_read(url: str) -> None:
    async with connect(url, compression=None, max_queue=1) as socket:
        for _ in range(1000):
            with suppress(WebSocketException):
                await socket.send(event("response.create", response={"conversation": "none"}))
            await asyncio.sleep(0.1)


async def _read(socket: Any) -> None:
    async for _ in socket:
        pass


@asynccontextmanager
async def under(attack: Attack, url: str) -> AsyncIterator[None]:
    task = asyncio.create_task(attack(url))
    try:
        await asyncio.sleep(0.5)
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "attack",
    [
        ten_times_real_time,
        large_events,
        nonsense,
        fifty_connections_a_second,
        a_client_that_does_not_read,
    ],
)
def test_others_hardly_notice(server: tuple[str, int], attack: Attack) -> None:
    url, pid = server

    async def measure() -> None:
        await converse(url)
        calm, before = await p95(url), memory(pid)
        async with under(attack, url):
            attacked, most = await p95(url), memory(pid)
        print(
            f"\n{attack.__name__}: p95 {calm:.3f} s, under attack {attacked:.3f} s ({attacked / calm:.2f} times); "
            f"memory {before:.0f} MiB, {most:.0f} MiB"
        )
        assert attacked < 2 * calm
        assert most < before + 64

    asyncio.run(within(300, measure()))
