"""GET /: the page to talk to. Static files without a build step; everything comes from this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def _serve(path: str, name: str) -> None:
    @router.get(path)
    async def page_file() -> FileResponse:
        return FileResponse(_FOLDER / name, headers=_HEADERS)


_serve("/", "index.html")
for _name in ("page.css", "page.js", "capture.js"):
    _serve(f"/{_name}", _name)
