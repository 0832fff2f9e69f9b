"""Clients that err, race, flood, stall or leave, and models that fail: the right answer, and nobody else suffers."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from realtime_fixtures import TalkBundle, client, speech
from serve_fixtures.live import Live, live, until
from stepaudio.errors import BackendError
from stepaudio.serve.realtime.schema import ClientEvent
from stepaudio.speech.backends.openai import OpenAIResponder
from stepaudio.speech.weights import Store, catalogue

PATIENCE = 120
HELLO = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(TalkBundle()) as running:
        yield running


@pytest.fixture
def bundle(server: Live) -> Any:
    fresh = TalkBundle()
    server.bundle.transcriber.lines = fresh.transcriber.lines
    server.bundle.responder.answer = fresh.responder.answer
    return server.bundle


def item(**changes: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": {**HELLO, **changes}}


def update(**fields: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime", **fields}}


def error_of(talk: Any, message: str | bytes) -> dict[str, Any]:
    talk.socket.send(message)
    error: dict[str, Any] = talk.until("error")["error"]
    return error


# ---------------------------------------------------------------- messages that do not fit


def test_each_mistake_is_named_and_the_session_goes_on(server: Live, bundle: Any) -> None:
    detection = {"type": "server_vad", "x": 1}
    mistakes: list[tuple[Any, str, str | None]] = [
        ({"type": "no.such.event"}, "invalid_value", "type"),
        ({"no": "type"}, "missing_required_parameter", "type"),
        ([], "invalid_value", None),
        ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "@@@"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "é"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
        ({"type": "response.create", "response": {"tone": "x"}}, "unknown_parameter", "response.tone"),
        (
            {"type": "response.create", "response": {"conversation": "both"}},
            "invalid_value",
            "response.conversation",
        ),
        (item(role="user", content=None), "invalid_value", "item.content"),
        (item(content=[{"type": "input_image", "image_url": "x"}]), "invalid_value", "item.content.0.type"),
        ({**item(), "previous_item_id": "gone"}, "item_not_found", "item_id"),
        ({"type": "conversation.item.delete", "item_id": "gone"}, "item_not_found", "item_id"),
        (update(voice="x"), "unknown_parameter", "session.voice"),
        (update(audio={"output": {"voice": "nobody"}}), "invalid_value", "session.audio.output.voice"),
        (
            update(audio={"input": {"format": {"type": "audio/pcm", "rate": 16000}}}),
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            update(audio={"input": {"turn_detection": detection}}),
            "unknown_parameter",
            "session.audio.input.turn_detection.x",
        ),
        (
            update(audio={"input": {"transcription": {"language": "xx"}}}),
            "invalid_value",
            "session.audio.input.transcription.language",
        ),
        (update(max_output_tokens=0), "invalid_value", "session.max_output_tokens"),
        (update(tools=[{"type": "web_search"}]), "invalid_value", "session.tools.0.type"),
        (update(tools=[{"type": "function"}]), "missing_required_parameter", "session.tools.0.name"),
        (
            update(tools=[{"type": "mcp", "server_label": "x", "require_approval": "never"}]),
            "missing_required_parameter",
            "session.tools.0.server_url",
        ),
    ]
    with client(server.url) as talk:
        before = talk.update()["session"]
        for message, code, param in mistakes:
            error = error_of(talk, json.dumps(message))
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param), message
            assert error["message"]
        for broken in ("{", "", "null", b"\xff\x00"):
            assert error_of(talk, broken)["code"] in ("invalid_event", "invalid_value")
        assert talk.update()["session"] == before
        talk.send("response.create", event_id="mine")
        talk.send("nothing", event_id="named")
        assert talk.until("error")["error"]["event_id"] == "named"
        talk.until("response.done")


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KINDS = [get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(ClientEvent)[0])]
FIELDS = ["session", "audio", "item", "item_id", "response", "audio_end_ms", "content_index", "event_id"]


def test_no_message_ends_a_session(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
        def send(kind: str, fields: dict[str, Any]) -> None:
            talk.socket.send(json.dumps({**fields, "type": kind}))

        send()
        talk.send("response.cancel")
        talk.send("conversation.item.create", item={**HELLO, "id": "the_last"})
        while True:
            event = talk.until("conversation.item.done")
            if event["item"]["id"] == "the_last":
                break
    until(server.idle)


def test_an_event_that_is_too_large_ends_only_its_own_connection(server: Live, bundle: Any) -> None:
    with client(server.url) as other:
        with client(server.url) as talk:

            def send() -> None:
                talk.send("input_audio_buffer.append", audio="A" * (10 << 20))
                talk.until("nothing")

            with pytest.raises(ConnectionClosed) as closed:
                send()
        # The reason is lost when the connection is reset before the client, busy sending, has read it.
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        other.say(speech())
        other.until("response.done")
    until(lambda: server.app.state.realtime.sessions == 0)


# ---------------------------------------------------------------- too much, too fast


def test_events_that_are_too_large_one_after_the_other_leave_nothing_behind(server: Live, bundle: Any) -> None:
    """Twenty times 10 MB, and then as many connections as before."""
    for _ in range(20):
        with client(server.url) as talk, suppress(ConnectionClosed):
            talk.send("input_audio_buffer.append", audio="A" * (10 << 20))
    until(lambda: server.app.state.realtime.sessions == 0)


def test_fifty_connections_a_second_that_do_nothing_or_leave_at_once(server: Live, bundle: Any) -> None:
    with client(server.url) as other:
        for i in range(50):
            with client(server.url) as talk:
                talk.socket.send(("{", json.dumps({"type": "no.such.event"}), b"\xff")[i % 3])
        for _ in range(50):
            socket.create_connection(("127.0.0.1", server.port)).close()
        other.say(speech())
        other.until("response.done")
    until(lambda: server.app.state.realtime.sessions == 0)


def test_a_minute_of_audio_at_once(server: Live, bundle: Any) -> None:
    """A flood is heard in full: it is read more slowly than it is sent, and memory stays bounded."""
    with client(server.url) as talk, client(server.url) as other:
        talk.update(audio={"input": {"transcription": {}}})
        flood = np.concatenate([speech(1.0, 1.0)] * 30)
        sender = threading.Thread(target=talk.say, args=(flood, 2.0))
        sender.start()
        other.say(speech())
        other.until("response.done")
        for _ in range(30):
            talk.until("conversation.item.input_audio_transcription.completed", timeout=30)
        sender.join()
        session_audio = 180 * 16_000
        assert all(heard < session_audio for heard in bundle.transcriber.heard)


def test_audio_that_nobody_commits_is_refused_at_a_limit(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.update(audio={"input": {"turn_detection": None, "format": {"type": "audio/pcmu"}}})
        minute = np.zeros(60 * 8000, np.uint8).tobytes()
        for _ in range(4):
            talk.send("input_audio_buffer.append", audio=base64.b64encode(minute).decode())
        error = talk.until("error", timeout=30)["error"]
        assert error["code"] == "input_audio_buffer_full"
        talk.send("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared", timeout=30)
        talk.send("input_audio_buffer.append", audio=base64.b64encode(minute[:8000]).decode())
        talk.send("input_audio_buffer.commit")
        talk.until("input_audio_buffer.committed")


def test_a_client_that_stops_reading_is_let_go() -> None:
    bundle = TalkBundle()
    bundle.responder.answer = lambda messages, tools: ["many words " * 400]
    with live(bundle, send_timeout=0.5) as server, client(server.url) as other:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.sendall(
                b"GET /v1/realtime?model=x HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                b"Sec-WebSocket-Version: 13\r\n\r\n"
            )
            assert b"101" in raw.recv(64)
            until(lambda: server.app.state.realtime.sessions == 2)
            for _ in range(8):
                try:
                    raw.sendall(_frame(json.dumps({"type": "response.create"})))
                except OSError:
                    break
                time.sleep(0.2)
            until(lambda: server.app.state.realtime.sessions == 1, seconds=20)
        bundle.responder.answer = lambda messages, tools: ["Fine."]
        other.say(speech())
        other.until("response.done")
        until(lambda: bundle.work.running == 0)


def deaf_client(url: str) -> ClientConnection:
    """One that reads almost nothing."""
    return connect(url.replace("http", "ws") + "/v1/realtime", compression=None, max_queue=1)


def test_a_reply_that_nobody_reads_keeps_no_other_waiting() -> None:
    """More replies than may be made at once, to a client that reads none of them."""
    bundle = TalkBundle()
    bundle.responder.answer = lambda messages, tools: ["many words " * 400]
    with live(bundle) as server, client(server.url) as talk, deaf_client(server.url) as deaf:
        for _ in range(2 * server.app.state.realtime.scheduler.replying.places):
            deaf.send(json.dumps({"type": "response.create", "response": {"conversation": "none"}}))
        time.sleep(1.0)
        bundle.responder.answer = lambda messages, tools: ["Fine."]
        talk.say(speech())
        assert talk.until("response.done")["response"]["status"] == "completed"
        deaf.socket.shutdown(socket.SHUT_RDWR)
    until(lambda: bundle.work.running == 0)


def _frame(text: str) -> bytes:
    """A masked text frame; the mask is zero."""
    data = text.encode()
    assert len(data) < 126
    return bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data


def test_two_hundred_connections_at_once(server: Live, bundle: Any) -> None:
    sockets = []
    try:
        for _ in range(200):
            sockets.append(connect(server.url.replace("http", "ws") + "/v1/realtime", compression=None))
        with client(server.url) as talk:
            talk.say(speech())
            talk.until("response.done")
        until(lambda: server.app.state.realtime.sessions == 200)
    finally:
        for each in sockets:
            each.socket.shutdown(socket.SHUT_RDWR)
    until(lambda: server.app.state.realtime.sessions == 0)


# ---------------------------------------------------------------- admission


def test_a_full_server_says_so_before_the_connection_stands() -> None:
    with live(TalkBundle(), max_sessions=1) as server, client(server.url) as talk:
        with pytest.raises(InvalidStatus) as refused, client(server.url):
            pass
        response = refused.value.response
        assert response.status_code == 429
        assert json.loads(response.body or b"")["error"]["code"] == "server_busy"
        assert int(response.headers["Retry-After"]) > 0
        talk.say(speech())
        talk.until("response.done")


def test_sessions_end_at_their_longest() -> None:
    with live(TalkBundle(), max_session_seconds=0.3) as server, client(server.url) as talk:
        assert talk.until("error")["error"]["code"] == "session_expired"
        with pytest.raises(ConnectionClosed) as closed:
            talk.read()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_keys_and_ephemeral_keys() -> None:
    with live(TalkBundle(), api_keys=("k1",)) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus) as refused, client(server.url, additional_headers=headers):
                pass
            assert refused.value.response.status_code == 401
        with client(server.url, additional_headers={"Authorization": "Bearer k1"}):
            pass
        secrets = f"{server.url}/v1/realtime/client_secrets"
        assert httpx.post(secrets, json={}).status_code == 401
        body = {
            "expires_after": {"anchor": "created_at", "seconds": 10},
            "session": {"type": "realtime", "instructions": "Hi."},
        }
        answer = httpx.post(secrets, json=body, headers={"Authorization": "Bearer k1"})
        assert answer.status_code == 200
        secret = answer.json()
        assert secret["session"]["instructions"] == "Hi."
        protocols = ["realtime", f"openai-insecure-api-key.{secret['value']}"]
        with client(server.url, subprotocols=protocols, origin="https://elsewhere.example") as talk:
            assert talk.socket.subprotocol == "realtime"
            assert talk.events[0]["session"]["instructions"] == "Hi."
        hub = server.app.state.realtime
        hub.secrets._clock = lambda: time.time() + 11
        with pytest.raises(InvalidStatus) as refused, client(server.url, subprotocols=protocols):
            pass
        assert refused.value.response.status_code == 401
        wrong = httpx.post(secrets, json={"session": {"nonsense": 1}}, headers={"Authorization": "Bearer k1"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "session.nonsense")


def test_foreign_pages_need_a_key(server: Live, bundle: Any) -> None:
    with pytest.raises(InvalidStatus) as refused, client(server.url, origin="https://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    with client(server.url, origin=server.url):
        pass


# ---------------------------------------------------------------- models that fail


def test_a_failing_model_ends_one_reply(server: Live, bundle: Any) -> None:
    bundle.responder.answer = lambda messages, tools: ["One two three. Four", BackendError("The model died.")]
    with client(server.url) as talk:
        talk.update(audio={"input": {"transcription": {}}})
        talk.say(speech())
        done = talk.until("response.done")["response"]
        assert done["status"] == "failed"
        assert done["status_details"]["error"]["message"] == "The model died."
        bundle.responder.answer = lambda messages, tools: [RuntimeError("secret")]
        talk.send("response.create")
        done = talk.until("response.done")["response"]
        assert "secret" not in str(done)
        bundle.transcriber.lines = [BackendError("Deaf."), BackendError("Deaf."), "hello world"]
        talk.say(speech(1.3))
        talk.until("conversation.item.input_audio_transcription.failed", timeout=5)
        bundle.responder.answer = lambda messages, tools: ["Fine."]
        bundle.transcriber.lines = ["hello again you"]
        talk.say(speech(1.3))
        assert talk.until("response.done")["response"]["status"] == "completed"
    until(server.idle)


_LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.verbosity, params.port = sys.argv[1], 512, -1, int(sys.argv[2])
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(600)
"""


@contextmanager
def llama_server(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """llama.cpp's own server in a process of its own, and its address."""
    model = str(Store().verified(catalogue()["qwen2.5-coder-0.5b"]) / "model.gguf")
    command = [sys.executable, "-c", _LLAMA, model, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.weights
def test_a_model_server_that_is_killed_in_the_middle_of_a_reply() -> None:
    bundle = TalkBundle()
    bundle.transcriber.lines = ["count from one to one thousand"]
    with live(bundle) as server, client(server.url) as talk:
        talk.update(output_modalities=["text"])
        with llama_server() as (process, address):
            bundle.responder = OpenAIResponder(f"{address}/v1", "tiny", context=512)  # type: ignore[assignment]
            talk.say(speech())
            talk.until("response.output_text.delta", timeout=PATIENCE)
            process.kill()
            done = talk.until("response.done", timeout=PATIENCE)["response"]
            assert (done["status"], done["status_details"]["error"]["code"]) == ("failed", "backend_error")
        talk.send("response.create")
        assert talk.until("response.done", timeout=PATIENCE)["response"]["status"] == "failed"
        with llama_server(int(address.rpartition(":")[2])):
            talk.send("response.create", response={"max_output_tokens": 8})
            assert talk.until("response.done", timeout=PATIENCE)["response"]["status"] == "incomplete"


def test_a_client_that_leaves_stops_its_work(server: Live, bundle: Any) -> None:
    bundle.responder.answer = lambda messages, tools: ["One two three. Four", Event()]
    with client(server.url) as talk:
        talk.say(speech())
        talk.until("response.output_audio.delta")
    until(lambda: bundle.work.running == 0)
    until(lambda: server.app.state.realtime.sessions == 0)


def test_a_tool_result_for_nobody(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.send("conversation.item.create", item={"type": "function_call_output", "call_id": "gone", "output": "x"})
        assert talk.until("error")["error"]["code"] == "call_not_found"
