"""Who may enter: optional API keys, as `Authorization: Bearer KEY`, and names that are this machine's."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterable
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stepaudio.serve.errors import ForeignNameError, WrongKeyError, error_response

_CALLS = "/v1/realtime/calls"


class ApiKeys:
    """The keys of a server. Only their digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def check(self, authorization: str | None) -> None:
        """Accept the value of an Authorization header, or raise WrongKeyError. Without keys everybody may enter."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        digest = sha256(key.strip().encode("utf-8", "surrogatepass")).digest()
        # Every key is compared, in constant time, so that timing tells nothing about them.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            cause = "Wrong API key" if authorization else "This server needs an API key"
            raise WrongKeyError(f"{cause}: send the header `Authorization: Bearer YOUR_KEY`.")


class RequireKey:
    """ASGI middleware: HTTP requests under /v1 need a key, checked before their body is read.

    WebSocket routes check for themselves, because browsers cannot send them a header, and so do calls, which an
    ephemeral key opens too.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith("/v1") and not path.startswith(_CALLS):
            try:
                self.keys.check(Headers(scope=scope).get("authorization"))
            except WrongKeyError as error:
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class RequireOwnName:
    """ASGI middleware of a server without keys: over the loopback it is asked for by address, as `localhost` or by the
    machine's name.

    A page of another site whose name was made to point here (DNS rebinding) would pass for the server's own page.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._own = {"localhost", socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and _is_loopback((scope.get("server") or ("",))[0]):
            name = host_name(f"//{Headers(scope=scope).get('host', '')}")
            if name and not (name in self._own or name.endswith(".localhost") or _is_address(name)):
                error = ForeignNameError(
                    f"This server does not know the name {name!r}: use its address or localhost, or give it API keys."
                )
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def host_name(url: str) -> str:
    """The host of a URL in lower case; "" when it has none, the whole of it when it is not a URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return url


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    if not _is_address(name):
        return False
    address = ip_address(name)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:  # a socket for both kinds of addresses
        address = address.ipv4_mapped
    return address.is_loopback
