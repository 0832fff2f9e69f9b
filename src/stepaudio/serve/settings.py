"""What the operator of a server may set."""

from __future__ import annotations

from dataclasses import dataclass, fields

from stepaudio.errors import InputError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Keys and limits of one server; every limit is a promise about memory, disk or time.

    Raises InputError for a limit that is not positive (`max_queue` may be 0: nobody waits).
    """

    api_keys: tuple[str, ...] = ()
    """Keys of which a request to /v1 must carry one; empty leaves the server open."""

    max_body_bytes: int = 256 * MIB
    """Largest upload to /v1/audio/transcriptions; it is kept on disk."""
    max_json_bytes: int = 32 * MIB
    """Largest body of every other request; it is kept in memory."""
    max_held_bytes: int = 1024 * MIB
    """Bodies of all requests together, on disk and in memory."""
    max_audio_seconds: float = 4 * 3600.0
    """Longest audio that one request may bring."""
    max_input_chars: int = 20_000
    """Longest text that one request may have spoken."""

    max_concurrent: int = 4
    """Requests whose model work runs at the same time."""
    max_queue: int = 16
    """Requests that may wait for a slot; the next one is refused at once."""
    queue_timeout: float = 60.0
    """Longest wait for a slot, in seconds."""

    max_sessions: int = 256
    """Realtime sessions at the same time; the next one is refused."""
    max_session_seconds: float = 3600.0
    """Longest realtime session."""
    session_mcp: bool = False
    """Whether clients may name MCP servers for their sessions: this server then connects to whatever they name."""

    body_timeout: float = 15.0
    """Seconds a body may lag behind a pace of 16 KiB/s."""
    send_timeout: float = 30.0
    """Seconds a client may take nothing of its answer before it counts as gone."""
    drain_timeout: float = 30.0
    """Seconds that running work gets to finish when the server stops."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if limit.name in ("api_keys", "session_mcp") or (limit.name == "max_queue" and value == 0):
                continue
            if value <= 0:
                raise InputError(f"{limit.name} must be greater than 0, not {value}.", param=limit.name)
        if not all(key.isascii() and key.isprintable() and key.split() == [key] for key in self.api_keys):
            raise InputError("An API key must be one word of ASCII characters.", param="api_keys")
