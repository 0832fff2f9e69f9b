"""Tools of MCP servers (https://modelcontextprotocol.io), over stdio and streamable HTTP.

One connection to each server, shared by every session. A server that was lost fails the calls that were on their way
to it; the next call connects again. Everything happens on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepaudio.agent.tools import ToolSpec
from stepaudio.errors import BackendError, InputError, MissingError, NotFoundError
from stepaudio.speech.roles import Tool, ToolCall

if TYPE_CHECKING:
    from mcp import Client
    from mcp.client import Transport
    from mcp.types import CallToolResult

log = logging.getLogger("stepaudio.agent")

CONNECT_SECONDS = 30.0
"""What a server may take to start, to say hello and to list its tools; some are downloaded first."""
_CALL_SECONDS = 30.0
_CLOSE_SECONDS = 6.0
"""What a server may take to end, the longest escalation of the `mcp` package included."""
_SILENT_SECONDS = 300.0
"""How long a stream of a server's may be silent."""
_MOST_TOOLS = 128
_MOST_PAGES = 100
_MOST_CHARS = 20_000
"""Of a result: more would push everything else out of the model's context."""


@dataclass(frozen=True, slots=True)
class McpServer:
    """Where a server is: a `command` to start, or the `url` of one that runs.

    `timeout` is for each call, in seconds. Offered are the tools of these `names` (None: of any), and of those only
    the ones that say they are `read_only`, or that do not, unless that is None.
    """

    label: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = _CALL_SECONDS
    names: frozenset[str] | None = None
    read_only: bool | None = None


def read_config(path: Path) -> list[McpServer]:
    """The servers of a file in the usual shape: `{"mcpServers": {label: {"command": ..., "args": [...]}}}`, or with
    `"url"` and `"headers"`; `"timeout"` is in seconds. Raises InputError that says what does not fit."""
    try:
        servers = json.loads(Path(path).read_text(encoding="utf-8"))["mcpServers"]
        return [_parse_server(label, fields) for label, fields in servers.items() if not fields.get("disabled")]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise InputError(
            f'{path} is no MCP configuration ({detail}): it must be JSON like {{"mcpServers": {{"name": '
            '{"command": "program", "args": []}}}, with "url" in place of "command" for a server that runs already.'
        ) from None


def _parse_server(label: str, fields: Mapping[str, Any]) -> McpServer:
    known = {name: fields[name] for name in ("command", "cwd", "url") if name in fields}
    if ("command" in known) == ("url" in known) or not all(isinstance(value, str) for value in known.values()):
        raise ValueError(f'the server {label!r} needs either a "command" or a "url"')
    if "url" in known and not known["url"].startswith(("http://", "https://")):
        raise ValueError(f'the "url" of the server {label!r} must be one of http or https')
    timeout = float(fields.get("timeout", _CALL_SECONDS))
    if not timeout > 0:
        raise ValueError(f'the "timeout" of the server {label!r} must be greater than 0')
    return McpServer(
        label,
        args=tuple(str(arg) for arg in fields.get("args", ())),
        env={name: str(value) for name, value in fields.get("env", {}).items()},
        headers={name: str(value) for name, value in fields.get("headers", {}).items()},
        timeout=timeout,
        **known,
    )


class McpTools:
    """The tools of some servers, as a `ToolProvider`.

    A tool keeps its name; one whose name is taken gets its server's label in front. Raises MissingError when the
    `mcp` package is not installed.
    """

    def __init__(self, servers: Sequence[McpServer]) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError:
            raise MissingError("the mcp package is not installed; run: pip install 'stepaudio[mcp]'") from None
        self._servers = [_Server(server) for server in servers]

    async def start(self) -> None:
        """Connect to all servers and list their tools. Raises BackendError that names the one which fails."""
        connecting = [asyncio.create_task(server.connected()) for server in self._servers]
        try:
            await asyncio.gather(*connecting)
        except BaseException:
            for task in connecting:
                task.cancel()
            await self.close()
            raise

    def specs(self) -> Sequence[ToolSpec]:
        """As the servers listed them when they were last connected to."""
        return [replace(spec, tool=replace(spec.tool, name=name)) for name, (_, spec) in self._by_name().items()]

    def run(self, call: ToolCall) -> Any:
        """An awaitable of the result. Raises NotFoundError here, BackendError there."""
        try:
            server, spec = self._by_name()[call.name]
        except KeyError:
            raise NotFoundError(f"There is no tool named {call.name!r}.") from None
        return server.call(spec.tool.name, call.arguments)

    async def close(self) -> None:
        """Leave all servers, and end those that were started here."""
        await asyncio.gather(*(server.close() for server in self._servers))

    def _by_name(self) -> dict[str, tuple[_Server, ToolSpec]]:
        named: dict[str, tuple[_Server, ToolSpec]] = {}
        for server in self._servers:
            for spec in server.specs:
                name = spec.tool.name
                named[f"{server.label}_{name}" if name in named else name] = (server, spec)
        return named


# ---------------------------------------------------------------- one server


class _Connection:
    """A connection that stands, until `leave` is set. `retired` takes no new calls and leaves after its last one."""

    def __init__(self, client: Client, leave: asyncio.Event) -> None:
        self.client = client
        self.leave = leave
        self.retired = False
        self._calls = 0

    def retire(self) -> None:
        self.retired = True
        if not self._calls:
            self.leave.set()

    @contextlib.contextmanager
    def calling(self) -> Any:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self.retired:
                self.retire()


class _Server:
    """One server, connected when it is needed."""

    def __init__(self, config: McpServer) -> None:
        self.label = config.label
        self.specs: list[ToolSpec] = []
        self._config = config
        self._connecting = asyncio.Lock()
        self._connection: _Connection | None = None
        self._keepers: set[asyncio.Task[None]] = set()

    async def connected(self) -> _Connection:
        """The connection, a new one if there is none. Raises BackendError."""
        async with self._connecting:
            if self._connection is not None and not self._connection.retired:
                return self._connection
            ready: asyncio.Future[_Connection] = asyncio.get_running_loop().create_future()
            # A connection has to be closed by the task that opened it.
            keeper = asyncio.create_task(self._keep(ready))
            self._keepers.add(keeper)
            keeper.add_done_callback(self._keepers.discard)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    self._connection = await ready
            except TimeoutError:
                keeper.cancel()
                message = f"The MCP server {self.label!r} did not answer within {CONNECT_SECONDS:g} s."
                raise BackendError(message) from None
            except BaseException:
                keeper.cancel()
                raise
            return self._connection

    async def _keep(self, ready: asyncio.Future[_Connection]) -> None:
        """Open the connection and hold it until it is to be left, or is lost."""
        from mcp import Client

        connection: _Connection | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                leave = asyncio.Event()
                transport = await self._transport(stack)
                client = await stack.enter_async_context(Client(_watched(transport, leave)))
                self.specs = await self._list(client)
                connection = _Connection(client, leave)
                if not ready.done():
                    ready.set_result(connection)
                    await leave.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            cause = _first(error)
            if not ready.done():
                detail = str(cause) or type(cause).__name__
                ready.set_exception(BackendError(f"The MCP server {self.label!r} cannot be used: {detail}"))
            else:
                log.warning("The connection to the MCP server %s broke: %s", self.label, cause)
        finally:
            if connection is not None:
                connection.retired = True

    async def _transport(self, stack: contextlib.AsyncExitStack) -> Transport:
        import httpx2
        from mcp import StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client

        config = self._config
        if config.url:
            limits = httpx2.Timeout(CONNECT_SECONDS, read=_SILENT_SECONDS)
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=dict(config.headers), timeout=limits))
            return streamable_http_client(config.url, http_client=http)
        started = StdioServerParameters(
            command=config.command, args=list(config.args), env=dict(config.env), cwd=config.cwd
        )
        return stdio_client(started)

    async def _list(self, client: Client) -> list[ToolSpec]:
        config, specs = self._config, list[ToolSpec]()
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                read_only = bool(tool.annotations and tool.annotations.read_only_hint)
                if config.names is not None and tool.name not in config.names:
                    continue
                if config.read_only is not None and read_only != config.read_only:
                    continue
                offered = Tool(tool.name, tool.description or "", tool.input_schema, read_only)
                specs.append(ToolSpec(offered, config.timeout, server=self.label))
            cursor = page.next_cursor
            if cursor is None or len(specs) > _MOST_TOOLS:
                break
        if len(specs) > _MOST_TOOLS:
            raise BackendError(f"it has more than {_MOST_TOOLS} tools.")
        return specs

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What the tool answers, as text. Raises BackendError."""
        from mcp import MCPError

        connection = await self.connected()
        with connection.calling():
            try:
                result = await connection.client.call_tool(name, dict(arguments))
            except MCPError as error:
                if not _is_the_callers(error):
                    connection.retire()
                raise BackendError(f"The MCP server {self.label!r} failed: {error}") from None
            except Exception as error:
                connection.retire()
                raise BackendError(f"The MCP server {self.label!r} failed: {_first(error)}") from None
        text = _as_text(result)
        if result.is_error:
            raise BackendError(text or "The tool failed without a word.")
        return text

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.leave.set()
        keepers = list(self._keepers)
        if keepers:
            _, late = await asyncio.wait(keepers, timeout=_CLOSE_SECONDS)
            for keeper in late:
                keeper.cancel()
            await asyncio.gather(*late, return_exceptions=True)


@contextlib.asynccontextmanager
async def _watched(transport: Transport, leave: asyncio.Event) -> AsyncIterator[Any]:
    """The streams of a transport; `leave` is set when the server hangs up."""
    import anyio

    async with transport as (read, write), anyio.create_task_group() as tasks:
        into, out = anyio.create_memory_object_stream[Any](0)

        async def relay() -> None:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                async with into:
                    async for message in read:
                        await into.send(message)
            leave.set()

        tasks.start_soon(relay)
        try:
            yield out, write
        finally:
            tasks.cancel_scope.cancel()


def _is_the_callers(error: Any) -> bool:
    """Whether the call was wrong, and the connection is not."""
    from mcp.types import INVALID_PARAMS, METHOD_NOT_FOUND

    return error.code in (INVALID_PARAMS, METHOD_NOT_FOUND)


def _first(error: BaseException) -> BaseException:
    """What happened inside the task groups of the `mcp` package."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _as_text(result: CallToolResult) -> str:
    """What a model that reads text gets of a result."""
    parts = []
    for block in result.content:
        text = getattr(block, "text", None) or getattr(getattr(block, "resource", None), "text", None)
        parts.append(text or f"({block.type}, which cannot be shown as text)")
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n".join(parts)
    return text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS] + " (cut off here)"
