"""The ASGI application: routers over one loaded bundle, behind the middleware that guards it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

import stepaudio
from stepaudio.agent.tools import AllTools
from stepaudio.serve import chat, clone, errors, health, models, page, speech, transcriptions
from stepaudio.serve.auth import ApiKeys, RequireKey, RequireOwnName
from stepaudio.serve.intake import Intake
from stepaudio.serve.observe import Observe
from stepaudio.serve.realtime import calls, keys, socket
from stepaudio.serve.realtime.hub import Hub
from stepaudio.serve.settings import Settings
from stepaudio.serve.state import ServerState

if TYPE_CHECKING:
    from stepaudio.agent.mcp import McpTools
    from stepaudio.agent.tools import ToolProvider
    from stepaudio.speech.bundle import Bundle


def create_app(
    bundle: Bundle,
    *,
    settings: Settings | None = None,
    tools: ToolProvider | None = None,
    mcp: McpTools | None = None,
) -> FastAPI:
    """The HTTP API over `bundle`, which is loaded while the app starts and stays the caller's to close.

    `app.state.server` is the `ServerState` that other routers may share. `tools` run here, in every realtime session,
    and so do those of `mcp`, whose servers are connected to before the app is ready and left when it stops.
    """
    settings = settings or Settings()
    server = ServerState(bundle, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(server.load(mcp.start if mcp else None))
        yield
        await loading
        await app.state.realtime.close()
        if mcp:
            await mcp.close()

    app = FastAPI(
        title="stepaudio",
        summary="Hear, understand, answer and speak, in the shape of OpenAI's audio and chat API.",
        version=stepaudio.__version__,
        lifespan=lifespan,
        # The interactive pages would fetch their scripts from the internet.
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = server
    app.state.realtime = Hub(server, AllTools([provider for provider in (tools, mcp) if provider is not None]))
    errors.install(app)
    app.include_router(health.router)
    app.include_router(page.router)
    # The key is checked by RequireKey; this makes the schema say so.
    security = [Security(HTTPBearer(auto_error=False))] if settings.api_keys else []
    app.include_router(socket.router)
    for module in (models, speech, clone, transcriptions, chat, keys, calls):
        app.include_router(module.router, dependencies=security)

    # The last one added is the outermost.
    app.add_middleware(Intake, settings=settings, slots=server.slots)
    if settings.api_keys:
        app.add_middleware(RequireKey, keys=ApiKeys(settings.api_keys))
    else:
        app.add_middleware(RequireOwnName)
    app.add_middleware(Observe, metrics=server.metrics)
    return app
