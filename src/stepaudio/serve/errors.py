"""Every refusal and failure leaves the server in the shape of an OpenAI error."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stepaudio.errors import BusyError, InputError, StepAudioError

MAX_MESSAGE_CHARS = 1000


class ErrorDetail(BaseModel):
    """What was wrong and what to do about it."""

    message: str
    type: str
    code: str | None
    param: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class WrongKeyError(StepAudioError):
    """The request carries no key of this server."""

    status = 401
    code = "invalid_api_key"


class ForeignNameError(StepAudioError):
    """The request came to this machine under a name that is not its own."""

    status = 403
    code = "host_not_allowed"


class SlowBodyError(StepAudioError):
    """The body of the request does not arrive."""

    status = 408
    code = "request_timeout"


class UnavailableError(StepAudioError):
    """The server is starting or stopping."""

    status = 503
    code = "server_unavailable"


class RefusedBody(HTTPException):
    """Carries an error out of the reading of a body; FastAPI lets only HTTPExceptions through there."""

    def __init__(self, error: StepAudioError) -> None:
        super().__init__(error.status, str(error))
        self.error = error


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request cannot be used as it is."},
    401: {"model": ErrorBody, "description": "The API key is missing or wrong."},
    404: {"model": ErrorBody, "description": "A model, voice or past audio of that name does not exist."},
    408: {"model": ErrorBody, "description": "The body arrived too slowly."},
    413: {"model": ErrorBody, "description": "The body, the audio or the text is over a limit of this server."},
    429: {"model": ErrorBody, "description": "All slots and the queue are taken; see Retry-After."},
    502: {"model": ErrorBody, "description": "A model failed while working."},
    503: {"model": ErrorBody, "description": "The server is stopping, or the bundle lacks what this request needs."},
    # Named as a range so that FastAPI does not promise its own 422, which this server never sends.
    "4XX": {"model": ErrorBody, "description": "Any other refusal."},
}


def install(app: FastAPI) -> None:
    """Answer the errors that routes of `app` raise on purpose in OpenAI's shape; `Observe` answers the rest."""
    for kind in (StepAudioError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    return error_response(error)


def error_response(error: Exception) -> Response:
    """The HTTP answer to an exception."""
    if isinstance(error, RefusedBody):
        error = error.error
    status, _ = _describe(error)
    headers = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    elif isinstance(error, WrongKeyError):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, HTTPException):
        headers.update(error.headers or {})
    # ASCII escapes keep a lone surrogate in an echoed name from breaking the answer.
    content = json.dumps(error_body(error)).encode("ascii")
    return Response(content, status, headers, media_type="application/json")


def error_body(error: Exception) -> dict[str, Any]:
    """The JSON of an OpenAI error; it tells of an unexpected exception nothing but that it happened."""
    return {"error": _describe(error)[1]}


def _describe(error: Exception) -> tuple[int, dict[str, Any]]:
    param: str | None = None
    match error:
        case StepAudioError():
            status, code, message = error.status, error.code, str(error)
            param = error.param if isinstance(error, InputError) else None
        case RequestValidationError():
            status, code = 400, "invalid_input"
            message, param = _first_problem(error)
        case HTTPException():
            status, code, message = (
                error.status_code,
                _HTTP_CODES.get(error.status_code, "invalid_request"),
                error.detail,
            )
        case _:
            status, code = 500, "internal_error"
            message = "The server failed on this request; its log holds the cause under the request id."
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return status, {"message": _shorten(message), "type": kind, "code": code, "param": param and _shorten(param)}


_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def _first_problem(error: RequestValidationError) -> tuple[str, str | None]:
    """One problem of a request that failed validation, as `field: what is wrong`, and the field."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return f"The body is not valid JSON: {problem['ctx']['error']}.", None
    _, *path = problem["loc"] or ("body",)
    param = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        return f"Unknown field `{param}`; remove it.", param
    if not param:
        return f"The body must be a JSON object sent as application/json: {problem['msg']}.", None
    return f"`{param}`: {problem['msg']}.", param


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"
