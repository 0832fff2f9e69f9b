"""A server of the benchmark's own, in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO

from stepaudio.errors import BackendError

_START_SECONDS = 300.0
_STOP_SECONDS = 15.0
_ADDRESS = re.compile(r"on (http://\S+)/v1 ")


@contextmanager
def serving(bundle: str) -> Iterator[str]:
    """The URL of a server of `bundle` that is ready; it is stopped in the end. Raises BackendError, with what the
    server said, when it does not come up."""
    command = [sys.executable, "-c", "from stepaudio.cli import main; main()", "serve", "--port", "0", "-b", bundle]
    with tempfile.TemporaryFile("a+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            with _leaving_at_sigterm():
                yield _await_ready(process, said)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _pass_on(said)


@contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """SIGTERM ends a process without cleaning up, which would leave the server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _await_ready(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        said.seek(0)
        address = _ADDRESS.search(said.read())
        if address and _ready(address.group(1)):
            return address.group(1)
        time.sleep(0.2)
    said.seek(0)
    state = "did not become ready" if process.poll() is None else f"ended with code {process.returncode}"
    raise BackendError(f"the server {state}: {said.read()[-1000:].strip() or 'it said nothing'}")


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _pass_on(said: IO[str]) -> None:
    """What the server said besides its address: it tells why something failed."""
    said.seek(0)
    rest = "".join(line for line in said if not _ADDRESS.search(line))
    if rest.strip():
        print(f"the server said:\n{rest[-4000:]}", file=sys.stderr)
