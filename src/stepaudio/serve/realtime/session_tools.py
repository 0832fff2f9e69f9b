"""The tools that run here for one session: the server's own, and those of the MCP servers that its client names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from stepaudio.agent.mcp import McpServer, McpTools
from stepaudio.agent.tools import AllTools, ToolProvider
from stepaudio.errors import StepAudioError


class SessionTools(AllTools):
    """`tell(type, **fields)` sends an event, `refuse` an error; `changed` is called when there are other tools."""

    def __init__(
        self,
        shared: ToolProvider | None,
        *,
        tell: Callable[..., None],
        refuse: Callable[[StepAudioError], None],
        changed: Callable[[], None],
        new_id: Callable[[str], str],
    ) -> None:
        self._shared = [shared] if shared is not None else []
        super().__init__(self._shared)
        self._tell = tell
        self._refuse = refuse
        self._changed = changed
        self._new_id = new_id
        self._servers: list[tuple[McpServer, McpTools]] = []
        self._work: set[asyncio.Task[None]] = set()

    def declare(self, servers: list[McpServer]) -> None:
        """Connect to the servers that are new, leave those that are not named any more."""
        kept = [(server, tools) for server, tools in self._servers if server in servers]
        for server, tools in self._servers:
            if server not in servers:
                self._start(tools.close())
        known = [server for server, _ in kept]
        added = [(server, McpTools([server])) for server in servers if server not in known]
        self._servers = kept + added
        self._offer()
        for server, tools in added:
            self._start(self._connect(server, tools))

    async def close(self) -> None:
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, *(tools.close() for _, tools in self._servers), return_exceptions=True)

    async def _connect(self, server: McpServer, tools: McpTools) -> None:
        item_id = self._new_id("item")
        self._tell("mcp_list_tools.in_progress", item_id=item_id)
        try:
            await tools.start()
        except StepAudioError as error:
            self._tell("mcp_list_tools.failed", item_id=item_id)
            self._refuse(error)
            return
        item = {"id": item_id, "type": "mcp_list_tools", "server_label": server.label, "tools": _listed(tools)}
        for name in ("added", "done"):
            self._tell(f"conversation.item.{name}", item=item, previous_item_id=None)
        self._tell("mcp_list_tools.completed", item_id=item_id)
        self._offer()
        self._changed()

    def _offer(self) -> None:
        self.providers = [*self._shared, *(tools for _, tools in self._servers)]

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)


def _listed(tools: McpTools) -> list[dict[str, Any]]:
    listed = [spec.tool for spec in tools.specs()]
    return [{"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in listed]
