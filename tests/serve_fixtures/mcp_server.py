"""A real MCP server for the tests: `python mcp_server.py stdio`, or `python mcp_server.py http PORT`."""

from __future__ import annotations

import asyncio
import os
import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

server = MCPServer("house")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@server.tool()
def pid() -> int:
    """Which process this is."""
    return os.getpid()


@server.tool()
async def wait(seconds: float, note: str = "") -> str:
    """Takes its time. A note is written to that file if it is not cancelled."""
    await asyncio.sleep(seconds)
    if note:
        with open(note, "a", encoding="utf-8") as file:
            file.write("done\n")
    return "waited"


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ToolError("the fuse has blown")


@server.tool()
def die() -> str:
    """Ends the process in the middle of the call."""
    os._exit(1)


@server.tool()
def shout(length: int) -> str:
    """A long result."""
    return "A" * length


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run()
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
