"""The OpenAPI schema is true: requests made from it are never answered with an undocumented status or shape."""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from openai import OpenAI
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from serve_fixtures.fakes import FakeBundle
from serve_fixtures.live import Live, live
from stepaudio.serve.app import create_app

schema = schemathesis.openapi.from_dict(create_app(FakeBundle()).openapi())
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeBundle()) as running:
        yield running


@schema.parametrize()
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_the_server_keeps_to_its_schema(case: schemathesis.Case, server: Live) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS)


def test_the_schema_documents_what_is_there(server: Live) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/voices",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/clone",
        "/v1/audio/edit",
        "/v1/chat/completions",
        "/v1/realtime/calls",
        "/v1/realtime/calls/{call_id}/hangup",
        "/v1/realtime/client_secrets",
        "/v1/realtime/sessions",
        "/v1/realtime/transcription_sessions",
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"], path
    speech = document["paths"]["/v1/audio/speech"]["post"]["responses"]["200"]["content"]
    assert {"audio/mpeg", "audio/wav", "text/event-stream"} <= set(speech)


def test_models_and_voices(server: Live) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        assert client.models.retrieve("fake").owned_by == "stepaudio"
        assert client.models.retrieve("whisper-1").id == "whisper-1"
    tone, zhong = httpx.get(f"{server.url}/v1/voices").json()["data"]
    assert (tone["id"], tone["languages"], tone["default_for"]) == ("tone", ["en"], ["en"])
    assert (zhong["default_for"], zhong["licence"]) == (["zh"], "CC0")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unknown_url"),
        ("GET", "/v1/models/llama", 404, "not_found"),
        ("GET", "/v1/audio/speech", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there(server: Live, method: str, path: str, status: int, code: str) -> None:
    answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if status == 405:
        assert answer.headers["allow"]


def test_a_request_keeps_its_own_id(server: Live) -> None:
    assert httpx.get(f"{server.url}/healthz", headers={"X-Request-Id": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    for odd in ("two words", "x" * 200, '"><script>'):
        answer = httpx.get(f"{server.url}/healthz", headers={"X-Request-Id": odd})
        assert answer.headers["x-request-id"].startswith("req_")


def test_metrics_count_by_route(server: Live) -> None:
    httpx.post(f"{server.url}/v1/audio/speech", json={"input": "one two"})
    httpx.get(f"{server.url}/made/up/by/a/client")
    text = httpx.get(f"{server.url}/metrics").text
    assert 'stepaudio_requests_total{route="/v1/audio/speech",status="200"}' in text
    assert 'stepaudio_first_byte_seconds_count{route="/v1/audio/speech"}' in text
    assert 'route="unknown",status="404"' in text
    assert "made" not in text
    for name in ("stepaudio_slots 4.0", "stepaudio_slots_busy 0.0", "stepaudio_queue_waiting 0.0"):
        assert name in text
