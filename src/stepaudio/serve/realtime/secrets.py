"""Ephemeral keys: what a browser may hold instead of the API key."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from stepaudio.serve.realtime.config import SessionConfig

MAX_SECRETS = 10_000


@dataclass(frozen=True, slots=True)
class Secret:
    """A key, when it expires (Unix time), and the session that a connection with it starts with."""

    value: str
    expires_at: int
    config: SessionConfig


class ClientSecrets:
    """The ephemeral keys that are valid now; the oldest make room when there are too many."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._secrets: OrderedDict[str, Secret] = OrderedDict()

    def new(self, config: SessionConfig, seconds: int) -> Secret:
        """A key that opens connections for so many seconds."""
        secret = Secret(f"ek_{secrets.token_urlsafe(24)}", int(self._clock()) + seconds, config)
        self._secrets[secret.value] = secret
        while len(self._secrets) > MAX_SECRETS:
            self._secrets.popitem(last=False)
        return secret

    def find(self, value: str) -> Secret | None:
        """The secret of this value, unless it is unknown or has expired."""
        secret = self._secrets.get(value)
        if secret is not None and secret.expires_at <= self._clock():
            del self._secrets[value]
            return None
        return secret
