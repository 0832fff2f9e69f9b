"""POST /v1/realtime/client_secrets, and its beta forms: ephemeral keys for browsers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from stepaudio.serve.errors import ERROR_RESPONSES
from stepaudio.serve.realtime.beta import flat_session, nested_session
from stepaudio.serve.realtime.connection import new_id
from stepaudio.serve.realtime.hub import Hub

router = APIRouter(tags=["realtime"], responses=ERROR_RESPONSES)

DEFAULT_SECONDS = 600


class ExpiresAfter(BaseModel):
    """How long the key opens new connections, in seconds from now."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(default=DEFAULT_SECONDS, ge=10, le=7200)


class SecretRequest(BaseModel):
    """The session that connections with the key start with: the fields of `session.update`."""

    model_config = ConfigDict(extra="forbid")

    expires_after: ExpiresAfter = ExpiresAfter()
    session: dict[str, Any] = {}


class SecretResponse(BaseModel):
    """The key, when it expires (Unix time), and its session."""

    value: str
    expires_at: int
    session: dict[str, Any]


def _hub(request: Request) -> Hub:
    hub: Hub = request.app.state.realtime
    return hub


SharedHub = Annotated[Hub, Depends(_hub)]


@router.post("/v1/realtime/client_secrets")
async def create_client_secret(hub: SharedHub, body: SecretRequest | None = None) -> SecretResponse:
    """A key that a browser may hold."""
    body = body or SecretRequest()
    hub.server.check_ready()
    config = hub.config(None).updated(body.session)
    secret = hub.secrets.new(config, body.expires_after.seconds)
    session = config.as_json(new_id("sess"), secret.expires_at)
    return SecretResponse(value=secret.value, expires_at=secret.expires_at, session=session)


@router.post("/v1/realtime/sessions")
async def create_beta_session(hub: SharedHub, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The same, as the beta of the protocol had it: the key is in the session."""
    return _beta_secret(hub, body or {}, "realtime")


@router.post("/v1/realtime/transcription_sessions")
async def create_beta_transcription_session(hub: SharedHub, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The same for a session that only transcribes."""
    return _beta_secret(hub, body or {}, "transcription")


def _beta_secret(hub: Hub, fields: dict[str, Any], kind: str) -> dict[str, Any]:
    hub.server.check_ready()
    config = hub.config(None).updated({**nested_session(fields), "type": kind})
    secret = hub.secrets.new(config, DEFAULT_SECONDS)
    session = flat_session(config.as_json(new_id("sess"), secret.expires_at))
    return {**session, "client_secret": {"value": secret.value, "expires_at": secret.expires_at}}
