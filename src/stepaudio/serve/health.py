"""GET /healthz, /readyz and /metrics: for the machinery around the server; they need no key."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from stepaudio.serve.state import Phase, State

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """`ok` for a living process; for readiness one of loading, ready, failed, draining."""

    status: str


@router.get("/healthz")
async def healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", responses={200: {"model": Health}, 503: {"model": Health}}, response_class=JSONResponse)
async def readyz(server: State) -> JSONResponse:
    """200 when requests are welcome, 503 while the models load, after they failed to, and while the server stops."""
    return JSONResponse({"status": server.phase.value}, 200 if server.phase is Phase.READY else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(server: State) -> PlainTextResponse:
    """Prometheus metrics."""
    return PlainTextResponse(server.metrics.render(), media_type=CONTENT_TYPE_LATEST)
