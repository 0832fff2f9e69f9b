"""`stepaudio serve`: the HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import stepaudio
from stepaudio.cli.output import BundleOption
from stepaudio.errors import MissingError
from stepaudio.speech.bundle_spec import DEFAULT


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    bundle: BundleOption = DEFAULT,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key that clients must present; may be repeated.", envvar="STEPAUDIO_API_KEYS"),
    ] = None,
    max_concurrent: Annotated[int, typer.Option(help="Requests that run at the same time.", min=1)] = 4,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more are refused with 429.", min=0)] = 16,
    mcp: Annotated[
        Path | None,
        typer.Option(help='A JSON file with "mcpServers": their tools are offered in every live conversation.'),
    ] = None,
    session_mcp: Annotated[
        bool, typer.Option("--session-mcp", help="Let clients name MCP servers, which this server then connects to.")
    ] = False,
) -> None:
    """Serve the bundle over HTTP in the shapes of the OpenAI API."""
    try:
        from stepaudio.agent.mcp import McpTools, read_config
        from stepaudio.serve.runner import serve as run
        from stepaudio.serve.settings import Settings
    except ImportError as error:
        raise MissingError(f"{error.name} is not installed; run: pip install 'stepaudio[serve]'") from None
    settings = Settings(
        api_keys=tuple(api_key or ()), max_concurrent=max_concurrent, max_queue=max_queue, session_mcp=session_mcp
    )
    tools = McpTools(read_config(mcp) if mcp is not None else []) if mcp is not None or session_mcp else None
    run(stepaudio.load(bundle), host, port, settings, tools)
