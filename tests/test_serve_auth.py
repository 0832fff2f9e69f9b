import asyncio
from collections.abc import Iterator
from socket import gethostname

import httpx
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AuthenticationError, OpenAI
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from serve_fixtures.fakes import FakeBundle
from serve_fixtures.live import Live, head, live
from stepaudio.serve.auth import ApiKeys, RequireOwnName
from stepaudio.serve.errors import WrongKeyError

KEYS = ("first-key", "zweiter_Schluessel")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeBundle(), api_keys=KEYS) as running:
        yield running


def test_the_stock_client_enters_with_a_key_only(server: Live) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEYS[0]) as client:
        assert [model.id for model in client.models.list()] == ["fake"]
    with OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(AuthenticationError, match="Wrong API key") as error:
            client.models.list()
        assert error.value.code == "invalid_api_key"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/voices", "/v1/models/fake", "/v1/nowhere", "/v1", "/v1/models/"])
def test_everything_under_v1_is_locked(server: Live, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_health_and_schema_are_open(server: Live, path: str) -> None:
    assert httpx.get(server.url + path).status_code == 200


def test_a_body_without_a_key_is_not_read(server: Live) -> None:
    with server.connect() as connection:
        connection.sendall(head("/v1/audio/speech", 1000, "application/json"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_the_schema_says_that_a_key_is_needed(server: Live) -> None:
    schema = httpx.get(f"{server.url}/openapi.json").json()
    assert schema["paths"]["/v1/models"]["get"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in schema["paths"]["/healthz"]["get"]


@hypothesis.settings(deadline=None)
@given(st.text() | st.none())
def test_only_the_exact_keys_open(authorization: str | None) -> None:
    keys = ApiKeys(KEYS)
    with pytest.raises(WrongKeyError):
        keys.check(authorization)
    ApiKeys(()).check(authorization)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens(key: str) -> None:
    keys = ApiKeys(KEYS)
    keys.check(f"Bearer {key}")
    keys.check(f"bearer  {key} ")
    for wrong in (key, f"Basic {key}", f"Bearer {key}x", f"Bearer {key[:-1]}", "Bearer "):
        with pytest.raises(WrongKeyError):
            keys.check(wrong)


@pytest.fixture(scope="module")
def open_server() -> Iterator[Live]:
    with live(FakeBundle()) as running:
        yield running


OWN_NAMES = ["127.0.0.1:8000", "localhost:1", "LOCALHOST", "app.localhost", "[::1]:8000", "192.168.0.7", gethostname()]
FOREIGN_NAMES = ["evil.example", "evil.example:8000", "localhost.evil.example", "[", "127.0.0.1.evil.example"]


@pytest.mark.parametrize("name", OWN_NAMES)
def test_without_keys_the_machine_answers_to_its_own_names(open_server: Live, name: str) -> None:
    assert httpx.get(f"{open_server.url}/v1/models", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize("name", FOREIGN_NAMES)
@pytest.mark.parametrize("path", ["/v1/models", "/", "/metrics"])
def test_a_name_that_was_made_to_point_here_is_refused(open_server: Live, name: str, path: str) -> None:
    answer = httpx.get(open_server.url + path, headers={"Host": name})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1", "192.168.0.7", "::", "", None]
)
def test_what_came_over_the_network_may_have_any_name(address: str | None) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response()(scope, receive, send)

    status = []

    async def send(message: Message) -> None:
        status.append(message.get("status"))

    scope = {"type": "http", "headers": [(b"host", b"voice.example")], "server": address and (address, 80)}
    asyncio.run(RequireOwnName(app)(scope, send, send))
    assert status[0] == (403 if address and ("127." in address or address == "::1") else 200)


def test_a_conversation_under_a_foreign_name_is_refused(open_server: Live) -> None:
    with (
        pytest.raises(InvalidStatus) as refused,
        connect("ws://evil.example/v1/realtime", sock=open_server.connect(), origin=Origin("http://evil.example")),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_a_server_with_keys_may_have_any_name(server: Live) -> None:
    headers = {"Host": "voice.example", "Authorization": f"Bearer {KEYS[0]}"}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
