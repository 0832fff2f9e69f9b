"""Messages that no client should send: what cannot be read or told back is refused, and the session goes on."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from realtime_fixtures import TalkBundle, client
from serve_fixtures.live import Live, live
from stepaudio.agent.controller import Controller
from stepaudio.agent.errors import RequestError
from stepaudio.serve.realtime.wire import parse_json


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(TalkBundle()) as running:
        yield running


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def update(**fields: Any) -> str:
    return json.dumps({"type": "session.update", "session": {"type": "realtime", **fields}})


def function_call(arguments: str) -> str:
    item = {"type": "function_call", "name": "f", "arguments": arguments}
    return json.dumps({"type": "conversation.item.create", "item": item})


DEEP = "[" * 100_000
MISTAKES = {
    "an array without end": DEEP,
    "a field without end": update(tracing=nested(300)),
    "tool parameters without end": update(tools=[{"type": "function", "name": "f", "parameters": nested(300)}]),
    "arguments without end": function_call('{"a":' + DEEP),
    "half a character": update(instructions="\ud800"),
    "half a character in a name": '{"type": "response.create", "\\udc00": 1}',
    "half a character in arguments": function_call('{"a": "\\ud800"}'),
    "half a character in an event's id": '{"type": "response.cancel", "event_id": "\\ud800"}',
    "not a number": update(tracing={"a": float("nan")}),
    "an infinite number": '{"type": "session.update", "session": {"type": "realtime", "tracing": {"a": 1e999}}}',
    "a number of 400 digits": '{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": %s}'
    % ("9" * 400),
    "a number of 5000 digits": '{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": %s}'
    % ("9" * 5000),
}


@pytest.mark.parametrize("headers", [{}, {"OpenAI-Beta": "realtime=v1"}], ids=["ga", "beta"])
def test_a_message_that_cannot_be_read_is_refused_and_the_session_goes_on(server: Live, headers: Any) -> None:
    with client(server.url, strict=not headers, additional_headers=headers) as talk:
        for name, message in MISTAKES.items():
            talk.socket.send(message)
            error = talk.until("error")["error"]
            assert (error["type"], error["code"]) in (
                ("invalid_request_error", "invalid_event"),
                ("invalid_request_error", "invalid_value"),
            ), name
            json.dumps(error, ensure_ascii=False).encode()
        talk.socket.send(update(instructions="Hello. 🙂"))
        assert talk.until("session.updated")["session"]["instructions"] == "Hello. 🙂"


def test_what_is_deep_but_sane_is_read() -> None:
    assert parse_json(json.dumps(nested(30))) == nested(30)
    with pytest.raises(RequestError, match="nested"):
        parse_json(json.dumps(nested(sys.getrecursionlimit() // 2)))


def test_a_failure_of_the_server_is_told_and_logged(
    server: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody has thought of ends the session, but not without a word."""

    def fail(self: Controller, *_: Any) -> Any:
        raise ZeroDivisionError("nobody thought of this")

    with caplog.at_level(logging.ERROR), client(server.url) as talk:
        monkeypatch.setattr(Controller, "handle", fail)
        talk.send("response.create")
        error = talk.until("error")["error"]
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        with pytest.raises(ConnectionClosed) as closed:
            talk.until("never")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        monkeypatch.undo()
    assert "nobody thought of this" in caplog.text


def test_a_reply_is_finished_while_the_server_drains() -> None:
    with live(TalkBundle(pace=0.02)) as server, client(server.url) as talk:
        server.bundle.responder.answer = lambda messages, tools: ["word "] * 40
        talk.send("response.create")
        talk.until("response.output_audio_transcript.delta")
        server.server.handle_exit(signal.SIGTERM, None)
        assert talk.until("response.done")["response"]["status"] == "completed"
        with pytest.raises(ConnectionClosed):
            talk.until("never")
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_a_foreign_page_gets_in_with_no_key_that_opens_nothing(server: Live) -> None:
    """A server without keys takes any key of programs, but a page of another site cannot make one up."""
    made_up = ["realtime", "openai-insecure-api-key.made-up"]
    with (
        pytest.raises(InvalidStatus) as refused,
        client(server.url, subprotocols=made_up, origin="https://evil.example"),
    ):
        pass
    assert refused.value.response.status_code == 403
    with client(server.url, subprotocols=made_up), client(server.url, subprotocols=made_up, origin=server.url):
        pass
