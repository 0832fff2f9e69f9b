"""Tools of real MCP servers: a subprocess over stdio, and one on loopback over streamable HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from realtime_fixtures import within
from stepaudio.agent import mcp as agent_mcp
from stepaudio.agent.mcp import McpServer, McpTools, read_config
from stepaudio.errors import BackendError, InputError, NotFoundError
from stepaudio.speech.roles import ToolCall

SCRIPT = str(Path(__file__).parent / "serve_fixtures" / "mcp_server.py")
STDIO = McpServer("house", sys.executable, (SCRIPT, "stdio"))
PATIENCE = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def http_server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, SCRIPT, "http", str(port)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < end, "the MCP server did not start"
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def tools_of(*servers: McpServer) -> AsyncIterator[McpTools]:
    tools = McpTools(servers)
    await tools.start()
    try:
        yield tools
    finally:
        await tools.close()


async def call(tools: McpTools, name: str, **arguments: Any) -> str:
    result: str = await tools.run(ToolCall("x", name, arguments))
    return result


def run(conversation: Callable[[], Any]) -> None:
    asyncio.run(within(PATIENCE, conversation()))


def test_tools_are_listed_and_called() -> None:
    async def conversation() -> None:
        async with tools_of(STDIO) as tools:
            specs = {spec.tool.name: spec for spec in tools.specs()}
            weather = specs["weather"]
            assert (weather.server, weather.client_side, weather.tool.read_only) == ("house", False, True)
            assert weather.tool.description == "The weather in a city."
            assert weather.tool.parameters["required"] == ["city"]
            assert not specs["pid"].tool.read_only
            assert await call(tools, "weather", city="Paris") == "sunny in Paris"
            together = await asyncio.gather(*(call(tools, "wait", seconds=0.05) for _ in range(8)))
            assert together == ["waited"] * 8
            with pytest.raises(BackendError, match="the fuse has blown"):
                await call(tools, "fail")
            with pytest.raises(BackendError, match="city"):
                await call(tools, "weather")
            with pytest.raises(NotFoundError):
                tools.run(ToolCall("x", "nothing", {}))
            assert len(await call(tools, "shout", length=1_000_000)) < 21_000

    run(conversation)


def test_a_server_that_dies_in_a_call_fails_it_and_comes_back() -> None:
    async def conversation() -> None:
        async with tools_of(STDIO) as tools:
            first = await call(tools, "pid")
            waiting = asyncio.create_task(call(tools, "wait", seconds=60))
            await asyncio.sleep(0.2)
            with pytest.raises(BackendError, match="house"):
                await call(tools, "die")
            with pytest.raises(BackendError, match="house"):
                await waiting
            second = await call(tools, "pid")
            assert second != first
            os.kill(int(second), signal.SIGKILL)
            # It dies while nothing is asked of it: not even one call is lost.
            server = tools._servers[0]
            while server._connection is None or not server._connection.retired:
                await asyncio.sleep(0.01)
            assert await call(tools, "pid") not in (first, second)

    run(conversation)


def test_a_cancelled_call_is_cancelled_at_the_server(tmp_path: Path) -> None:
    note = tmp_path / "note"

    async def conversation() -> None:
        async with tools_of(STDIO) as tools:
            waiting = asyncio.create_task(call(tools, "wait", seconds=0.5, note=str(note)))
            await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await call(tools, "wait", seconds=1.0) == "waited"

    run(conversation)
    assert not note.exists()


def test_servers_started_here_end_here() -> None:
    async def conversation() -> str:
        async with tools_of(STDIO) as tools:
            return await call(tools, "pid")

    pid = int(asyncio.run(conversation()))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_over_http_that_is_restarted() -> None:
    port = free_port()
    server = McpServer("far", url=f"http://127.0.0.1:{port}/mcp")

    async def conversation() -> None:
        with http_server(port) as process:
            async with tools_of(server) as tools:
                first = await call(tools, "pid")
                assert await call(tools, "weather", city="Oslo") == "sunny in Oslo"
                waiting = asyncio.create_task(call(tools, "wait", seconds=60))
                await asyncio.sleep(0.3)
                process.kill()
                process.wait()
                with pytest.raises(BackendError, match="far"):
                    await waiting
                with pytest.raises(BackendError, match="far"):
                    await call(tools, "pid")
                with http_server(port):
                    assert await call(tools, "pid") != first

    run(conversation)


def test_tools_of_one_name_are_told_apart() -> None:
    async def conversation() -> None:
        other = McpServer("barn", sys.executable, (SCRIPT, "stdio"), names=frozenset({"pid"}))
        async with tools_of(STDIO, other) as tools:
            assert [spec.tool.name for spec in tools.specs() if "pid" in spec.tool.name] == ["pid", "barn_pid"]
            assert await call(tools, "pid") != await call(tools, "barn_pid")

    run(conversation)


def test_only_read_only_tools() -> None:
    async def conversation() -> None:
        async with tools_of(McpServer("house", sys.executable, (SCRIPT, "stdio"), read_only=True)) as tools:
            assert [spec.tool.name for spec in tools.specs()] == ["weather"]

    run(conversation)


@pytest.mark.parametrize(
    "server",
    [
        McpServer("gone", "/no/such/program"),
        McpServer("mute", sys.executable, ("-c", "import time; time.sleep(60)")),
        McpServer("short", sys.executable, ("-c", "")),
        McpServer("nowhere", url="http://127.0.0.1:9/mcp"),
    ],
    ids=lambda server: server.label,
)
def test_a_server_that_cannot_be_used_is_named(server: McpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    if server.label == "mute":
        monkeypatch.setattr(agent_mcp, "CONNECT_SECONDS", 0.5)

    async def conversation() -> None:
        with pytest.raises(BackendError, match=server.label):
            await McpTools([server]).start()

    run(conversation)


def test_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    servers: dict[str, Any] = {
        "house": {"command": "run", "args": ["-v", 3], "env": {"KEY": "x"}, "type": "stdio"},
        "far": {"url": "https://example.com/mcp", "headers": {"Authorization": "Bearer x"}, "timeout": 5},
        "off": {"command": "x", "disabled": True},
    }
    path.write_text(json.dumps({"mcpServers": servers}))
    assert read_config(path) == [
        McpServer("house", "run", ("-v", "3"), {"KEY": "x"}),
        McpServer("far", url="https://example.com/mcp", headers={"Authorization": "Bearer x"}, timeout=5.0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"mcpServers": {"x": {}}}',
        '{"mcpServers": {"x": []}}',
        '{"mcpServers": {"x": {"command": 3}}}',
        '{"mcpServers": {"x": {"url": "file:///etc/passwd"}}}',
        '{"mcpServers": {"x": {"command": "a", "url": "http://b"}}}',
        '{"mcpServers": {"x": {"command": "a", "timeout": 0}}}',
    ],
)
def test_a_configuration_that_does_not_fit(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no MCP configuration"):
        read_config(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "nothing")
