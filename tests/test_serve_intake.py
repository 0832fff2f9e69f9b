"""Bodies that are too large, too slow, cut off or not what they claim to be."""

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from serve_fixtures.fakes import FakeBundle, recording
from serve_fixtures.live import Live, head, live, until

SPEECH = "/v1/audio/speech"
UPLOAD = "/v1/audio/transcriptions"
CHAT = "/v1/chat/completions"
MULTIPART = "multipart/form-data; boundary=frontier"


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    settings = {"max_body_bytes": 1 << 20, "max_json_bytes": 100_000, "body_timeout": 0.3}
    with live(FakeBundle(), **settings) as running:
        yield running


def error_code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_an_announced_size_over_the_limit_is_refused_before_the_body_is_sent(server: Live) -> None:
    with server.connect() as connection:
        connection.sendall(head(UPLOAD, 2 << 20, MULTIPART))
        connection.settimeout(5)
        assert error_code(connection.recv(65536)) == (413, "too_large")


def test_an_unannounced_size_is_refused_as_soon_as_it_is_over_the_limit(server: Live) -> None:
    with server.connect() as connection:
        connection.sendall(head(UPLOAD, None, MULTIPART))
        piece = b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(50_000)
        answer = b""
        connection.settimeout(0.02)
        for _ in range(100):
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            try:
                answer = connection.recv(65536)
                break
            except TimeoutError:
                piece = bytes(50_000)
        assert error_code(answer) == (413, "too_large")


def test_json_has_a_limit_of_its_own(server: Live) -> None:
    answer = httpx.post(server.url + SPEECH, json={"input": "x" * 100_001})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_body_that_trickles_in_is_given_up(server: Live) -> None:
    with server.connect() as connection:
        connection.sendall(head(SPEECH, 1000, "application/json"))
        connection.settimeout(0.05)
        answer = b""
        end = time.monotonic() + 10
        while not answer and time.monotonic() < end:
            connection.sendall(b" ")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
        assert error_code(answer) == (408, "request_timeout")


def test_a_body_that_breaks_off_leaves_nothing_behind(server: Live) -> None:
    for path, kind in ((SPEECH, "application/json"), (UPLOAD, MULTIPART)):
        with server.connect() as connection:
            connection.sendall(head(path, 1000, kind) + b'{"input":')
    until(server.idle)
    metric = 'stepaudio_cancelled_total{route="/v1/audio/speech"} 1.0'
    until(lambda: metric in httpx.get(f"{server.url}/metrics").text)


def test_bodies_of_all_requests_together_have_a_limit() -> None:
    with live(FakeBundle(), max_held_bytes=60_000, body_timeout=30) as server, server.connect() as connection:
        connection.sendall(head(SPEECH, 100_000, "application/json") + b" " * 50_000)
        time.sleep(0.1)
        answer = httpx.post(server.url + SPEECH, json={"input": "x" * 15_000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "server_busy")
        connection.close()
        until(lambda: httpx.post(server.url + SPEECH, json={"input": "x"}).status_code == 200)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"input": "\\ud800"}',
        b'{"input": NaN}',
        b'{"input": ' + b"9" * 5000 + b"}",
        b"[" * 10_000,
        b'{"input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("path", [SPEECH, CHAT])
def test_garbled_json_is_refused(server: Live, path: str, body: bytes) -> None:
    answer = httpx.post(server.url + path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", MULTIPART, "", "application"])
def test_a_wrong_content_type_is_refused(server: Live, kind: str) -> None:
    for path in (SPEECH, CHAT, UPLOAD):
        answer = httpx.post(server.url + path, content=b'{"input": "x"}', headers={"Content-Type": kind})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"


def field(name: str, value: bytes) -> bytes:
    return b'--frontier\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)


@pytest.mark.parametrize(
    "body",
    [
        b"no boundary at all",
        b"--frontier",
        b"--frontier\r\nNonsense\r\n\r\nx\r\n--frontier--\r\n",
        field("prompt", b"x" * 900_000) + b"--frontier--\r\n",
        b"".join(field(f"f{i}", b"x") for i in range(1500)) + b"--frontier--\r\n",
        b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + recording(0.5),
    ],
    ids=["no boundary", "only a boundary", "no disposition", "giant field", "many fields", "no end"],
)
def test_garbled_multipart_is_refused(server: Live, body: bytes) -> None:
    answer = httpx.post(server.url + UPLOAD, content=body, headers={"Content-Type": MULTIPART})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    until(server.idle)
