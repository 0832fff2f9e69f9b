"""The life of a server: loading, ready, draining, stopped."""

import os
import signal
import subprocess
import sys
import textwrap

import httpx
import pytest

from serve_fixtures.fakes import FakeBundle
from serve_fixtures.live import live, read_all, until
from stepaudio.errors import InputError, MissingError
from stepaudio.serve.runner import bind, serve

SPEECH = "/v1/audio/speech"


def test_not_ready_while_the_models_load() -> None:
    bundle = FakeBundle()
    bundle.warming.clear()
    with live(bundle, wait=False) as server:
        until(lambda: server.server.started)
        answer = httpx.get(f"{server.url}/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        for refused in (httpx.post(server.url + SPEECH, json={"input": "x"}), httpx.get(f"{server.url}/v1/voices")):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_unavailable")
        bundle.warming.set()
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)
        assert httpx.post(server.url + SPEECH, json={"input": "x"}).status_code == 200


def test_running_work_is_finished_and_new_work_refused_while_draining() -> None:
    with live(FakeBundle(pace=0.05)) as server:
        running = server.post(SPEECH, {"input": "word " * 20, "response_format": "pcm"})
        until(lambda: server.state.slots.busy == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        answer = httpx.get(f"{server.url}/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
        refused = httpx.post(server.url + SPEECH, json={"input": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_unavailable")
        answer_bytes = read_all(running)
        assert answer_bytes.endswith(b"\r\n0\r\n\r\n")
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_work_that_outlasts_the_drain_is_cut_off() -> None:
    with live(FakeBundle(pace=0.05), drain_timeout=0.1) as server:
        with server.post(SPEECH, {"input": "word " * 1000, "response_format": "pcm"}) as running:
            until(lambda: server.state.slots.busy == 1)
            server.server.handle_exit(signal.SIGTERM, None)
            assert not read_all(running).endswith(b"0\r\n\r\n")
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert server.bundle.work.running == 0


def test_a_second_signal_stops_at_once() -> None:
    with live(FakeBundle(pace=0.05)) as server:
        with server.post(SPEECH, {"input": "word " * 1000}):
            until(lambda: server.state.slots.busy == 1)
            server.server.handle_exit(signal.SIGINT, None)
            server.server.handle_exit(signal.SIGINT, None)
            server.thread.join(10)
        assert not server.thread.is_alive()


def test_a_port_in_use_is_told_with_the_remedy() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(InputError, match=r"in use; .* --port"):
        serve(FakeBundle(), port=taken.getsockname()[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 80), ("127.0.0.1", 70_000), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_had_is_told(host: str, port: int) -> None:
    with pytest.raises(InputError, match=host):
        bind(host, port)


def test_models_that_cannot_be_loaded_end_the_server_with_their_error() -> None:
    bundle = FakeBundle()

    def fail() -> None:
        raise MissingError("weights are missing")

    bundle.warm = fail  # type: ignore[method-assign]
    with pytest.raises(MissingError, match="weights are missing"):
        serve(bundle, port=0)  # type: ignore[arg-type]


def test_one_line_at_the_start_and_a_clean_end_on_interrupt() -> None:
    script = textwrap.dedent(
        """
        from serve_fixtures.fakes import FakeBundle
        from stepaudio.serve.runner import serve
        serve(FakeBundle(), port=0)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("stepaudio serves fake on http://127.0.0.1:")
        url = line.split()[4]
        until(lambda: _models(url) == ["fake"])
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _models(url: str) -> list[str]:
    try:
        return [model["id"] for model in httpx.get(f"{url}/models").json()["data"]]
    except httpx.TransportError:
        return []
