"""POST /v1/audio/speech: text to a stream of audio."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from threading import Event
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from stepaudio.audio.encode import FORMATS, Encoder
from stepaudio.errors import TextError, TooLargeError
from stepaudio.serve.errors import ERROR_RESPONSES
from stepaudio.serve.models import check_model, resolve_voice
from stepaudio.serve.state import ServerState, State
from stepaudio.serve.work import EVENTS, Streamed, event
from stepaudio.speech.roles import Speech, StyledSpeaker
from stepaudio.speech.say import say

router = APIRouter(tags=["audio"], responses=ERROR_RESPONSES)


class VoiceId(BaseModel):
    """A voice by id, the way OpenAI names custom voices."""

    id: str


class SpeechRequest(BaseModel):
    """What to say and how."""

    model_config = ConfigDict(extra="forbid")

    input: str = Field(min_length=1)
    model: str | None = None
    voice: str | VoiceId | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: Annotated[
        str | None, Field(description="How to speak; changes nothing where the voices know no styles.")
    ] = None


_BODY = {"type": "string", "format": "binary"}
_CONTENT: dict[str, Any] = {mime: {"schema": _BODY} for mime in FORMATS.values()}
_CONTENT["text/event-stream"] = EVENTS


@router.post(
    "/v1/audio/speech",
    response_class=Response,
    responses={200: {"content": _CONTENT, "description": "The audio, or events that carry it, as it is spoken."}},
)
async def create_speech(body: SpeechRequest, server: State) -> Response:
    """Speak a text. The first audio leaves while the rest is still being spoken."""
    check_input(body.input, server)
    check_model(body.model, server.bundle.name)

    if body.stream_format == "sse":
        return Streamed(server, lambda cancel: _events(server, body, cancel), media_type="text/event-stream")
    return Streamed(server, lambda cancel: _audio(server, body, cancel), media_type=FORMATS[body.response_format])


def check_input(text: str, server: ServerState) -> None:
    """Raises TooLargeError for a text that is longer than this server takes."""
    limit = server.settings.max_input_chars
    if len(text) > limit:
        raise TooLargeError(
            f"The input has {len(text)} characters and this server takes {limit}; send it in parts.", param="input"
        )


def _audio(server: ServerState, body: SpeechRequest, cancel: Event) -> Iterator[bytes]:
    speaker = server.bundle.speaker
    voice = body.voice.id if isinstance(body.voice, VoiceId) else body.voice
    voice = resolve_voice(voice, speaker)
    style = body.instructions if isinstance(speaker, StyledSpeaker) else None
    return encoded(
        server,
        say(speaker, body.input, voice=voice, speed=body.speed, style=style or None, cancel=cancel),
        body.response_format,
    )


def encoded(server: ServerState, speech: Iterator[Speech], format: str) -> Iterator[bytes]:
    """Speech as it comes, in a file format; what is wrong with the text is said of `input`."""
    rate = server.bundle.speaker.rate
    encoder = Encoder(format, rate)
    try:
        for chunk in speech:
            server.metrics.audio_seconds.labels("out").inc(len(chunk.samples) / rate)
            if data := encoder.push(chunk.samples):
                yield data
    except TextError as error:
        error.param = "input"
        raise
    yield encoder.flush()


def _events(server: ServerState, body: SpeechRequest, cancel: Event) -> Iterator[bytes]:
    for data in _audio(server, body, cancel):
        yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode("ascii")})
    # OpenAI bills speech by token and its typed clients want the field; here no tokens are spent.
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    yield event({"type": "speech.audio.done", "usage": usage})
