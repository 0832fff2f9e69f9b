"""POST /v1/audio/clone and /v1/audio/edit: speak like an uploaded clip, and change how one was spoken."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from stepaudio.audio.encode import FORMATS, Encoder
from stepaudio.serve.errors import ERROR_RESPONSES
from stepaudio.serve.intake import CLONE, EDIT, check_fields
from stepaudio.serve.models import check_model
from stepaudio.serve.speech import check_input, encoded
from stepaudio.serve.state import State
from stepaudio.serve.work import Streamed
from stepaudio.speech.clone import parse_edit

router = APIRouter(tags=["audio"], responses=ERROR_RESPONSES)

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
_SOUND: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {mime: {"schema": {"type": "string", "format": "binary"}} for mime in FORMATS.values()},
        "description": "The audio, as it is spoken.",
    }
}
_Clip = Annotated[UploadFile, File(description="2 to 30 s of one person speaking.")]
_Transcript = Annotated[str | None, Form(description="What is said in it; heard by the server if left out.")]
_CLONE_FIELDS = ("file", "input", "transcript", "style", "speed", "response_format", "model")
_EDIT_FIELDS = ("file", "edit", "transcript", "response_format", "model")


@router.post(CLONE, response_class=Response, responses=_SOUND)
async def create_clone(
    request: Request,
    server: State,
    file: _Clip,
    input: Annotated[str, Form(min_length=1, description="What to say.")],
    transcript: _Transcript = None,
    style: Annotated[str | None, Form(description="How to say it, for models that know styles.")] = None,
    speed: Annotated[float, Form(ge=0.25, le=4.0)] = 1.0,
    response_format: Annotated[Format, Form()] = "mp3",
    model: Annotated[str | None, Form()] = None,
) -> Response:
    """Speak a text in the voice of a clip. The first audio leaves while the rest is still being spoken."""
    await check_fields(request, _CLONE_FIELDS)
    check_input(input, server)
    check_model(model, server.bundle.name)

    def audio(cancel: Event) -> Iterator[bytes]:
        speech = server.bundle.clone(
            file.file, input, transcript=transcript or None, speed=speed, style=style or None, cancel=cancel
        )
        return encoded(server, speech, response_format)

    return Streamed(server, audio, media_type=FORMATS[response_format])


@router.post(EDIT, response_class=Response, responses=_SOUND)
async def create_edit(
    request: Request,
    server: State,
    file: _Clip,
    edit: Annotated[
        list[str],
        Form(min_length=1, max_length=8, description="`KIND` or `KIND=VALUE`, in the order to be made: `emotion=sad`."),
    ],
    transcript: _Transcript = None,
    response_format: Annotated[Format, Form()] = "mp3",
    model: Annotated[str | None, Form()] = None,
) -> Response:
    """Change how a recording was spoken: emotion, style, speed, sounds between the words, noise, silence."""
    await check_fields(request, _EDIT_FIELDS)
    check_model(model, server.bundle.name)
    edits = [parse_edit(text) for text in edit]

    def audio(cancel: Event) -> Iterator[bytes]:
        samples = server.bundle.edit(file.file, edits, transcript=transcript or None, cancel=cancel)
        rate = server.bundle.speaker.rate
        server.metrics.audio_seconds.labels("out").inc(len(samples) / rate)
        encoder = Encoder(response_format, rate)
        yield encoder.push(samples) + encoder.flush()

    return Streamed(server, audio, media_type=FORMATS[response_format])
