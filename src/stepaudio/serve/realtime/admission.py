"""Who may hold a conversation, and how it starts: the same for every transport."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from stepaudio.errors import StepAudioError
from stepaudio.serve.auth import host_name
from stepaudio.serve.realtime.config import SessionConfig
from stepaudio.serve.realtime.hub import Hub

_KEY_PROTOCOL = "openai-insecure-api-key."


class ForeignPageError(StepAudioError):
    """A web page of another site wants in without a key."""

    status = 403
    code = "origin_not_allowed"


class ExpiredError(StepAudioError):
    """The session has lasted as long as a session may."""

    status = 400
    code = "session_expired"


class FailedError(StepAudioError):
    """The session ran into what nobody has thought of."""


def admit(connection: HTTPConnection, hub: Hub) -> SessionConfig:
    """The session that this client starts with. Raises WrongKeyError and ForeignPageError."""
    secret = hub.admit(_key(connection))
    if secret is None and not hub.needs_key:  # any key is as good as none
        _check_origin(connection)
    config = secret.config if secret else hub.config(connection.query_params.get("model"))
    if connection.query_params.get("intent") == "transcription":
        config = config.updated({"type": "transcription"})
    if connection.query_params.get("extensions") == "1":
        config = config.updated({"stepaudio": {"events": True}})
    return config


def protocols(connection: HTTPConnection) -> list[str]:
    """The subprotocols that a WebSocket offers."""
    return list(connection.scope.get("subprotocols", []))


def _key(connection: HTTPConnection) -> str | None:
    """A browser's WebSocket cannot send headers: it puts the key into a subprotocol."""
    for protocol in protocols(connection):
        if protocol.startswith(_KEY_PROTOCOL):
            return protocol.removeprefix(_KEY_PROTOCOL)
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _check_origin(connection: HTTPConnection) -> None:
    """Any page that a user visits may connect to a server on the user's own machine: without a key only the server's
    own pages may."""
    origin = connection.headers.get("origin")
    if origin is None:
        return
    if host_name(origin) != host_name(f"//{connection.headers.get('host', '')}"):
        raise ForeignPageError(f"Pages of {origin} need an API key, or an ephemeral one, to connect here.")
