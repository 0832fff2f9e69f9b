"""POST /v1/realtime/calls: the protocol over WebRTC."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from stepaudio.agent.errors import RequestError
from stepaudio.errors import MissingError, NotFoundError
from stepaudio.serve.errors import ERROR_RESPONSES
from stepaudio.serve.realtime.admission import admit
from stepaudio.serve.realtime.hub import Hub

router = APIRouter(tags=["realtime"], responses=ERROR_RESPONSES)

_LONGEST_OFFER = 256 << 10
_SDP = "application/sdp"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            _SDP: {"schema": {"type": "string"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"sdp": {"type": "string"}, "session": {"type": "string"}},
                    "required": ["sdp"],
                }
            },
        },
    }
}


class NotTakenError(MissingError):
    """Calls need a package that is not there."""

    code = "webrtc_not_installed"


@router.post(
    "/v1/realtime/calls",
    status_code=201,
    response_class=Response,
    responses={201: {"description": "The SDP answer.", "content": {_SDP: {"schema": {"type": "string"}}}}},
    openapi_extra=_BODY,
)
async def create_call(request: Request) -> Response:
    """Take up a call: an SDP offer, alone or as a form with the session, is answered with an SDP answer. Audio goes
    both ways as Opus, events over the data channel `oai-events`. The call lasts until somebody hangs up."""
    hub: Hub = request.app.state.realtime
    config = admit(request, hub)
    try:
        from stepaudio.serve.realtime.webrtc import Call
    except ImportError:
        raise NotTakenError("Calls are not installed here; run: pip install 'stepaudio[webrtc]'") from None
    offer, session = await _read(request)
    config = config.updated(session)
    with ExitStack() as stack:
        stack.enter_context(hub.place())
        call = Call(hub, config)
        answer = await call.answer(offer)
        hub.calls[call.id] = call
        stack.callback(hub.calls.pop, call.id)
        place = stack.pop_all()
    task = asyncio.create_task(call.run())
    hub.work.add(task)
    task.add_done_callback(hub.work.discard)
    task.add_done_callback(lambda _: place.close())
    return Response(answer, 201, {"Location": f"/v1/realtime/calls/{call.id}"}, media_type=_SDP)


@router.post("/v1/realtime/calls/{call_id}/hangup", response_class=Response)
async def hang_up(request: Request, call_id: str) -> Response:
    """End a call."""
    hub: Hub = request.app.state.realtime
    admit(request, hub)
    call = hub.calls.get(call_id)
    if call is None:
        raise NotFoundError(f"There is no call '{call_id}'; it may have ended already.", param="call_id")
    call.hang_up()
    return Response()


async def _read(request: Request) -> tuple[str, dict[str, Any]]:
    """The offer, and the session that comes with it. Raises RequestError."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form() as form:
            offer, session = await _part(form, "sdp"), await _part(form, "session") or "{}"
    else:
        offer, session = (await request.body()).decode(errors="replace"), "{}"
    if not offer.strip() or len(offer) > _LONGEST_OFFER:
        raise RequestError(
            f"Send an SDP offer of at most {_LONGEST_OFFER} bytes: as {_SDP}, or as the field `sdp` of a form.",
            code="invalid_offer",
            param="sdp",
        )
    try:
        return offer, dict(json.loads(session))
    except (ValueError, TypeError, RecursionError):
        raise RequestError("`session` must be a JSON object.", code="invalid_value", param="session") from None


async def _part(form: FormData, name: str) -> str:
    part = form.get(name) or ""
    return (await part.read()).decode(errors="replace") if isinstance(part, UploadFile) else part
