"""Clients that leave, at any time: their work stops and their slot comes back."""

import asyncio
import random
import socket
import struct
import time

import httpx
import pytest

from serve_fixtures.fakes import FakeBundle, recording
from serve_fixtures.live import head, live, until

LONG = "word " * 4000
SPEECH = ("/v1/audio/speech", {"input": LONG, "response_format": "pcm"})
EVENTS = ("/v1/audio/speech", {"input": LONG, "response_format": "pcm", "stream_format": "sse"})
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 4000})
CHAT_STREAM = ("/v1/chat/completions", {**CHAT[1], "stream": True})
SPOKEN_CHAT = ("/v1/chat/completions", {**CHAT[1], "modalities": ["text", "audio"], "audio": {"format": "wav"}})
REQUESTS = {"speech": SPEECH, "events": EVENTS, "chat": CHAT, "stream": CHAT_STREAM, "spoken": SPOKEN_CHAT}


def settings() -> dict[str, int]:
    return {"max_input_chars": 100_000}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_work_stops_when_the_client_leaves(request_: tuple[str, dict[str, object]]) -> None:
    with live(FakeBundle(pace=0.01), **settings()) as server:
        with server.post(*request_):
            until(lambda: server.bundle.work.running > 0)
            time.sleep(0.05)
            assert server.state.slots.busy == 1
        until(server.idle)
        assert server.bundle.work.cancelled >= 1
        metric = f'stepaudio_cancelled_total{{route="{request_[0]}"}} 1.0'
        until(lambda: metric in httpx.get(f"{server.url}/metrics").text)


def test_a_transcription_stops_when_the_client_leaves() -> None:
    bundle = FakeBundle(pace=5)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        + recording(1)
        + b"\r\n--b--\r\n"
    )
    with live(bundle) as server:
        with server.connect() as connection:
            connection.sendall(head("/v1/audio/transcriptions", len(body), "multipart/form-data; boundary=b") + body)
            until(lambda: bundle.work.running == 1)
        until(server.idle, seconds=3)
        assert bundle.work.cancelled == 1


def test_a_reset_connection_is_a_client_that_left() -> None:
    with live(FakeBundle(pace=0.01), **settings()) as server:
        connection = server.post(*CHAT)
        until(lambda: server.bundle.work.running > 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        until(server.idle)


def test_whoever_leaves_the_queue_frees_the_place() -> None:
    with live(FakeBundle(pace=0.01), max_concurrent=1, max_queue=1, **settings()) as server:
        first = server.post(*SPEECH)
        until(lambda: server.state.slots.busy == 1)
        second = server.post(*CHAT)
        until(lambda: server.state.slots.waiting == 1)
        refused = httpx.post(server.url + SPEECH[0], json=SPEECH[1])
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        second.close()
        until(lambda: server.state.slots.waiting == 0)
        with server.post(*CHAT):
            until(lambda: server.state.slots.waiting == 1)
        first.close()
        until(server.idle)


def test_a_client_that_takes_nothing_is_given_up() -> None:
    body = {"input": "word " * 4000, "response_format": "wav"}
    with live(FakeBundle(), send_timeout=0.2, **settings()) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        with connection:
            data = httpx.Request("POST", server.url + SPEECH[0], json=body).read()
            connection.sendall(head(SPEECH[0], len(data), "application/json") + data)
            until(lambda: server.state.slots.busy == 1)
            until(server.idle)


def test_slots_come_back_whenever_the_clients_leave() -> None:
    """Eighty clients leave at random moments: while sending, waiting, being answered, or not at all."""
    order = random.Random(1)
    body = {"input": "some words to be spoken", "response_format": "pcm"}
    with live(FakeBundle(pace=0.002), max_concurrent=3, max_queue=100) as server:

        async def visit() -> None:
            path, request = order.choice([("/v1/audio/speech", body), CHAT_STREAM])
            data = httpx.Request("POST", server.url, json=request).read()
            message = head(path, len(data), "application/json") + data
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(message[: order.choice([20, len(message) - 1, len(message)])])
            await asyncio.sleep(order.random() * 0.15)
            if order.random() < 0.5:
                writer.transport.abort()
            writer.close()

        async def visits() -> None:
            await asyncio.gather(*(visit() for _ in range(80)))

        asyncio.run(visits())
        until(server.idle)
        assert server.state.slots.waiting == 0
        assert httpx.post(server.url + "/v1/audio/speech", json={"input": "x"}).status_code == 200


def test_a_hundred_at_once_are_answered_or_refused_and_none_is_lost() -> None:
    with live(FakeBundle(pace=0.002), max_concurrent=2, max_queue=30) as server:

        async def everybody() -> list[int]:
            limits = httpx.Limits(max_connections=100)
            async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
                posts = (client.post("/v1/audio/speech", json={"input": f"number {i}"}) for i in range(100))
                return [answer.status_code for answer in await asyncio.gather(*posts)]

        statuses = asyncio.run(everybody())
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) >= 32
        until(server.idle)
        counted = httpx.get(f"{server.url}/metrics").text
        assert f'status="200"}} {statuses.count(200)}.0' in counted


def test_work_is_paced_by_the_reader() -> None:
    """A model does not run ahead of a client that reads slowly: memory stays bounded."""
    with live(FakeBundle(), **settings()) as server, server.post(*SPEECH) as connection:
        connection.recv(1000)
        time.sleep(0.3)
        spoken = server.state.metrics.audio_seconds.labels("out")._value.get()
        assert spoken < 400 * 0.5
