"""Whatever is sent, the answer is a success or a refusal in OpenAI's shape, and the server lives on."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_fixtures.fakes import FakeBundle, recording
from serve_fixtures.live import Live, head, live, read_all, until

JSON_ROUTES = ("/v1/audio/speech", "/v1/chat/completions")
UPLOAD = "/v1/audio/transcriptions"
SAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "auto", "tone"])
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)

VALID: dict[str, Any] = {
    "model": "fake",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "modalities": ["text", "audio"],
    "audio": {"voice": "tone", "format": "pcm16"},
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["x"],
    "temperature": 1,
    "max_tokens": 5,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeBundle(), body_timeout=0.3) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


def check(answer: httpx.Response) -> None:
    assert answer.status_code in (200, 400, 404, 408, 413), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "code", "param"}
        assert error["message"]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*path, key))


PLACES = [path for path in paths(VALID) if path]


@SAMPLES
@given(st.sampled_from(JSON_ROUTES), json_values)
def test_any_json(client: httpx.Client, path: str, body: Any) -> None:
    check(client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"}))


@SAMPLES
@given(st.sampled_from(JSON_ROUTES), st.binary())
def test_any_bytes_as_json(client: httpx.Client, path: str, body: bytes) -> None:
    check(client.post(path, content=body, headers={"Content-Type": "application/json"}))


@SAMPLES
@given(st.lists(st.tuples(st.sampled_from(PLACES), json_values), min_size=1, max_size=3))
def test_a_conversation_with_something_odd_in_it(
    client: httpx.Client, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    body = copy.deepcopy(VALID)
    for (*path, last), value in changes:
        place: Any = body
        try:
            for key in path:
                place = place[key]
            place[last] = value
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change removed this place
    check(client.post("/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}))


@SAMPLES
@given(st.binary(max_size=300), st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_any_upload(client: httpx.Client, data: bytes, fields: dict[str, str]) -> None:
    check(client.post(UPLOAD, files={"file": ("a.wav", data)}, data=fields))


@SAMPLES
@given(st.data())
def test_a_damaged_upload(client: httpx.Client, data: st.DataObject) -> None:
    request = client.build_request("POST", UPLOAD, files={"file": ("a.wav", recording(0.2))}, data={"model": "fake"})
    body = bytearray(request.read())
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    check(client.post(UPLOAD, content=bytes(body), headers={"Content-Type": request.headers["content-type"]}))


@SAMPLES
@given(st.binary(max_size=200), st.booleans())
def test_bytes_that_are_no_http(server: Live, data: bytes, after_a_head: bool) -> None:
    with server.connect() as connection:
        connection.settimeout(0.02)
        connection.sendall((head("/v1/audio/speech", None, "application/json") if after_a_head else b"") + data)
        read_all(connection)


def test_nothing_is_left_running(server: Live, client: httpx.Client) -> None:
    until(server.idle)
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/audio/speech", json={"input": "still here"}).status_code == 200
