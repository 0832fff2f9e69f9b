"""The OpenAI-compatible backend against llama.cpp's own server, and against one that misbehaves."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from stepaudio.errors import BackendError, BusyError, Cancelled, InputError
from stepaudio.speech.backends.openai import OpenAIResponder
from stepaudio.speech.roles import Finish, Message, Responder, Sampling, TextDelta, Tool, ToolCall
from stepaudio.speech.weights import Store, catalogue

ASK = [Message("user", "What is the capital of France?")]
WEATHER = Tool(
    "get_weather", "Weather", {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
)


class Faulty(ThreadingHTTPServer):
    """Plays one `play(handler, attempt)` per request and keeps what it was sent."""

    daemon_threads = True

    def __init__(self, play: Callable[[Any, int], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.play = play
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.gone = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Faulty)
        server.headers.append(self.headers)
        server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        server.play(self, len(server.bodies))

    def start(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def event(self, **fields: Any) -> None:
        self.raw(f"data: {json.dumps(fields)}\n\n")

    def raw(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def text(self, text: str, reason: str | None = None) -> None:
        self.event(choices=[{"delta": {"content": text}, "finish_reason": reason}])

    def fail(self, status: int, message: str, **headers: str) -> None:
        body = json.dumps({"error": {"message": message}}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hold(self) -> None:
        """Say nothing until the client has gone."""
        server = self.server
        assert isinstance(server, Faulty)
        self.connection.settimeout(20)
        if self.connection.recv(1) == b"":
            server.gone.set()

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def faulty(play: Callable[[_Handler, int], None]) -> Iterator[tuple[Faulty, str]]:
    server = Faulty(play)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_what_is_sent_and_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def play(handler: _Handler, _: int) -> None:
        handler.start()
        handler.raw(": a comment\n\nevent: message\n")
        handler.text("Pa")
        handler.text("ris", "stop")
        handler.event(
            choices=[],
            usage={"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
        )
        handler.raw("data: [DONE]\n\n")

    monkeypatch.setenv("MY_KEY", "s3cret")
    call = ToolCall("c1", "get_weather", {"days": 1})
    messages = [*ASK, Message("assistant", "", (call,)), Message("tool", "rain", tool_call_id="c1")]
    with faulty(play) as (server, url):
        responder = OpenAIResponder(url, "m", api_key_env="MY_KEY")
        assert isinstance(responder, Responder)
        sampling = Sampling(max_tokens=5, temperature=0.5, seed=3, stop=("x",))
        events = list(responder.respond(messages, tools=[WEATHER], tool_choice="get_weather", sampling=sampling))
    assert events == [TextDelta("Pa"), TextDelta("ris"), Finish("stop", 9, 4, 2)]
    body = server.bodies[0]
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert (body["model"], body["stream"], body["max_tokens"], body["seed"], body["stop"]) == ("m", True, 5, 3, ["x"])
    assert body["tools"][0]["function"]["name"] == "get_weather"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert json.loads(body["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"days": 1}
    assert body["messages"][2] == {"role": "tool", "content": "rain", "tool_call_id": "c1"}


@pytest.mark.parametrize(("arguments", "ok"), [('{"days": "2"}', True), ('{"days": "soon"}', False), ('{"da', False)])
def test_tool_calls_in_pieces_are_put_together_and_checked(arguments: str, ok: bool) -> None:
    def play(handler: _Handler, _: int) -> None:
        handler.start()
        pieces = [{"index": 0, "id": "c7", "function": {"name": "get_weather", "arguments": ""}}]
        pieces += [{"index": 0, "function": {"arguments": char}} for char in arguments]
        for piece in pieces:
            handler.event(choices=[{"delta": {"tool_calls": [piece]}}])
        handler.event(choices=[{"delta": {}, "finish_reason": "tool_calls"}])
        handler.raw("data: [DONE]\n\n")

    with faulty(play) as (_, url):
        reply = OpenAIResponder(url, "m").respond(ASK, tools=[WEATHER])
        if ok:
            assert list(reply) == [ToolCall("c7", "get_weather", {"days": 2}), Finish("tool_calls")]
        else:
            with pytest.raises(BackendError, match="tool call"):
                list(reply)


def test_overload_is_tried_again_and_then_reported() -> None:
    def recovers(handler: _Handler, attempt: int) -> None:
        if attempt == 1:
            return handler.fail(429, "slow down", Retry_After="0.05")
        if attempt == 2:
            return handler.fail(503, "starting", Retry_After="0.05")
        handler.start()
        handler.text("Paris", "stop")
        return handler.raw("data: [DONE]\n\n")

    with faulty(recovers) as (server, url):
        assert text_of(list(OpenAIResponder(url, "m").respond(ASK))) == "Paris"
        assert len(server.bodies) == 3
    with faulty(lambda handler, _: handler.fail(429, "quota", Retry_After="0.01")) as (server, url):
        with pytest.raises(BusyError, match=r"127.0.0.1.*429.*quota") as caught:
            list(OpenAIResponder(url, "m", retries=1).respond(ASK))
        assert caught.value.retry_after == 0.01
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [(500, BackendError, 2), (400, InputError, 1), (401, BackendError, 1), (404, BackendError, 1)],
)
def test_refusals_name_the_endpoint_and_the_reason(status: int, error: type, requests: int) -> None:
    with faulty(lambda handler, _: handler.fail(status, "because", Retry_After="0.01")) as (server, url):
        with pytest.raises(error, match=rf"{url}/chat/completions answered {status}.*because"):
            list(OpenAIResponder(url, "m", retries=1).respond(ASK))
        assert len(server.bodies) == requests


def _drop(handler: _Handler, _: int) -> None:
    handler.start()
    handler.text("Half a")
    handler.connection.shutdown(socket.SHUT_RDWR)


def _garbage(handler: _Handler, _: int) -> None:
    handler.start()
    handler.raw("data: {not json\n\n")


def _page(handler: _Handler, _: int) -> None:
    handler.start()
    handler.raw("<html>a proxy's page</html>\n")


def _error_event(handler: _Handler, _: int) -> None:
    handler.start()
    handler.text("Half")
    handler.event(error={"message": "out of memory"})


def _stall(handler: _Handler, _: int) -> None:
    handler.start()
    handler.text("Half")
    handler.hold()


@pytest.mark.parametrize(
    ("play", "says"),
    [
        (_drop, "finish_reason"),
        (_garbage, "not an event stream"),
        (_page, "finish_reason"),
        (_error_event, "out of memory"),
        (_stall, "silent"),
    ],
)
def test_a_stream_that_breaks_is_an_error_and_not_tried_again(play: Callable[[_Handler, int], None], says: str) -> None:
    with faulty(play) as (server, url):
        with pytest.raises(BackendError, match=rf"{url}.*{says}"):
            list(OpenAIResponder(url, "m", timeout=0.3).respond(ASK))
        assert len(server.bodies) == 1


def test_silence_before_the_first_byte_times_out() -> None:
    with faulty(lambda handler, _: handler.hold()) as (_, url), pytest.raises(BackendError, match=r"within 0\.2 s"):
        list(OpenAIResponder(url, "m", timeout=0.2).respond(ASK))


def test_nobody_listening() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(BackendError, match=f"{url}.*cannot be reached"):
            list(OpenAIResponder(url, "m", retries=1).respond(ASK))


@pytest.mark.parametrize("begun", [True, False])
def test_cancelling_closes_the_connection(begun: bool) -> None:
    def play(handler: _Handler, _: int) -> None:
        if begun:
            handler.start()
            handler.text("Half")
        handler.hold()

    with faulty(play) as (server, url):
        cancel = threading.Event()
        reply = OpenAIResponder(url, "m").respond(ASK, cancel=cancel)
        if begun:
            assert next(reply) == TextDelta("Half")
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(Cancelled):
            list(reply)
        assert server.gone.wait(5)


def test_leaving_closes_the_connection() -> None:
    with faulty(_stall) as (server, url):
        reply = OpenAIResponder(url, "m").respond(ASK)
        next(reply)
        reply.close()  # type: ignore[attr-defined]
        assert server.gone.wait(5)


def test_bad_settings_and_use_after_close() -> None:
    with pytest.raises(InputError, match="base_url"):
        OpenAIResponder("localhost:8000", "m")
    responder = OpenAIResponder("http://localhost:8000/v1", "m")
    responder.close()
    with pytest.raises(BackendError, match="closed"):
        list(responder.respond(ASK))


def test_tokens_are_estimated_on_the_high_side() -> None:
    responder = OpenAIResponder("http://localhost:8000/v1", "m")
    assert responder.count_tokens([Message("user", "one two three four")]) > 5
    assert responder.count_tokens([Message("user", "你好世界")]) > 4


@pytest.mark.weights
def test_a_real_server() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(Store().verified(catalogue()["qwen2.5-coder-0.5b"]) / "model.gguf")
    params.n_ctx, params.verbosity = 512, -1
    server = xllamacpp.Server(params)
    try:
        responder = OpenAIResponder(f"{server.listening_address}/v1", "tiny", context=512)
        events = list(responder.respond(ASK, sampling=Sampling(max_tokens=16)))
        assert "Paris" in text_of(events)
        finish = events[-1]
        assert isinstance(finish, Finish)
        assert finish.completion_tokens > 3
        assert responder.count_tokens(ASK) > 8
        cancel = threading.Event()
        reply = responder.respond([Message("user", "Count to one thousand.")], cancel=cancel)
        next(reply)
        cancel.set()
        with pytest.raises(Cancelled):
            list(reply)
        with pytest.raises(InputError, match="context"):
            list(responder.respond([Message("user", "word " * 900)]))
        assert "Paris" in text_of(list(responder.respond(ASK, sampling=Sampling(max_tokens=16))))
    finally:
        del server
