"""What the realtime sessions of one server share: the scheduler, the places, the ephemeral keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import Counter, Gauge

from stepaudio.agent.scheduler import Scheduler
from stepaudio.agent.speculation import Statistics
from stepaudio.agent.tools import ToolProvider
from stepaudio.errors import BusyError
from stepaudio.serve.auth import ApiKeys
from stepaudio.serve.realtime.config import SessionConfig
from stepaudio.serve.realtime.secrets import ClientSecrets, Secret
from stepaudio.serve.state import ServerState


class Call(Protocol):
    """A conversation that no request of its own keeps open."""

    @property
    def speaking(self) -> bool:
        """Whether the agent has more to say than has left."""
        ...

    def hang_up(self) -> None: ...


class Hub:
    """One for each server."""

    def __init__(self, server: ServerState, tools: ToolProvider | None = None) -> None:
        self.server = server
        self.tools = tools
        self.scheduler = Scheduler()
        server.replying = self._replying
        self.secrets = ClientSecrets()
        self.sessions = 0
        self.calls: dict[str, Call] = {}
        """The calls over WebRTC that stand."""
        self.work: set[asyncio.Task[None]] = set()
        self._keys = ApiKeys(server.settings.api_keys)
        registry = server.metrics.registry
        Gauge("stepaudio_sessions", "Realtime sessions that are open.", registry=registry).set_function(
            lambda: self.sessions
        )
        self._speculations = Counter(
            "stepaudio_speculations",
            "Replies prepared at pauses, by what became of them.",
            ("outcome",),
            registry=registry,
        )
        self._lead = Counter(
            "stepaudio_speculation_lead_seconds", "Head start of the committed ones, summed up.", registry=registry
        )
        self._wasted = Counter(
            "stepaudio_speculation_wasted_tokens", "Tokens of those that were discarded.", registry=registry
        )

    async def close(self) -> None:
        """Hang all calls up."""
        for call in self.calls.values():
            call.hang_up()
        await asyncio.gather(*self.work, return_exceptions=True)

    def _replying(self) -> bool:
        return self.scheduler.replying.pressure > 0 or any(call.speaking for call in self.calls.values())

    @contextmanager
    def place(self) -> Iterator[None]:
        """A session's place. Raises UnavailableError unless the server is ready, BusyError when it is full."""
        self.server.check_ready()
        if self.sessions >= self.server.settings.max_sessions:
            raise BusyError(f"All {self.sessions} sessions of this server are taken; try again later.", retry_after=5)
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1

    @property
    def needs_key(self) -> bool:
        """Whether who has no ephemeral key needs one of the server's."""
        return bool(self.server.settings.api_keys)

    def admit(self, key: str | None) -> Secret | None:
        """The ephemeral key that this is, if it is one. Raises WrongKeyError for a key that opens nothing here."""
        secret = self.secrets.find(key) if key else None
        if secret is None:
            self._keys.check(None if key is None else f"Bearer {key}")
        return secret

    def config(self, model: str | None) -> SessionConfig:
        """A session's fields as they are when the client says nothing; any model's name means the loaded bundle."""
        bundle = self.server.bundle
        mcp = self.server.settings.session_mcp
        acoustic = bundle.has("turn_scorer")
        return SessionConfig(model or bundle.name, bundle.speaker, bundle.transcriber, mcp=mcp, acoustic=acoustic)

    def count(self, statistics: Statistics) -> None:
        """A session has ended: add what its speculations did to the server's metrics."""
        self._speculations.labels("committed").inc(statistics.committed)
        for reason, count in statistics.discarded.items():
            self._speculations.labels(reason).inc(count)
        self._lead.inc(statistics.lead)
        self._wasted.inc(statistics.wasted_tokens)
