"""Every request gets an id and an answer, is counted and timed, and leaves one line in the log."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepaudio.serve.errors import error_response
from stepaudio.serve.metrics import Metrics

log = logging.getLogger("stepaudio.serve")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Observe:
    """ASGI middleware around everything else. A client's own `X-Request-Id` is kept when it is a plain word."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        own = Headers(scope=scope).get("x-request-id", "")
        request_id = own if REQUEST_ID.fullmatch(own) else f"req_{uuid.uuid4().hex}"
        started = time.monotonic()
        status = 0
        first_byte: float | None = None
        finished = left = False

        async def watched_receive() -> Message:
            nonlocal left
            message = await receive()
            left = left or (message["type"] == "http.disconnect" and not finished)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status, first_byte, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            elif message["type"] == "http.response.body":
                if first_byte is None and message.get("body"):
                    first_byte = time.monotonic() - started
                finished = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, watched_receive, watched_send)
        except Exception as error:
            # After the first byte there is no way to say so; the unfinished answer makes the server cut the connection.
            log.exception("Request %s failed", request_id)
            if not status:
                await error_response(error)(scope, receive, watched_send)
        finally:
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path_format", "unknown")
            if left:
                self.metrics.cancelled.labels(route).inc()
            else:
                self.metrics.requests.labels(route, scope["method"], status).inc()
                self.metrics.seconds.labels(route).observe(seconds)
                if first_byte is not None:
                    self.metrics.first_byte_seconds.labels(route).observe(first_byte)
            outcome = "client left" if left else status
            log.info("%s %s %s in %.3f s, %s", scope["method"], scope["path"], outcome, seconds, request_id)
