"""POST /v1/chat/completions: a conversation of text and speech, continued in text or speech."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from threading import Event

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stepaudio.audio.encode import Encoder
from stepaudio.errors import AudioError, TextError
from stepaudio.serve.chat_reply import ChatCompletion, ReplyPiece, chunks, completion
from stepaudio.serve.chat_request import ChatRequest, InputAudio
from stepaudio.serve.errors import ERROR_RESPONSES
from stepaudio.serve.hearing import Hearing
from stepaudio.serve.models import check_model, resolve_voice
from stepaudio.serve.state import ServerState, State
from stepaudio.serve.work import EVENTS, Streamed, run
from stepaudio.speech.roles import ReplyEvent, TextDelta, Tool
from stepaudio.speech.say import say
from stepaudio.speech.threads import pump
from stepaudio.speech.transcribe import join

router = APIRouter(tags=["chat"], responses=ERROR_RESPONSES)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": EVENTS}}},
)
async def create_completion(request: Request, body: ChatRequest, server: State) -> Response:
    """Continue a conversation."""
    model = check_model(body.model, server.bundle.name)
    tools = body.to_tools()
    body.check()

    def reply(cancel: Event) -> Iterator[ReplyPiece]:
        return _reply(server, body, *tools, cancel)

    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage

        def stream(cancel: Event) -> Iterator[bytes]:
            encoder = _encoder(server, body)
            return chunks(reply(cancel), model, encoder, server.past_replies, include_usage=usage)

        return Streamed(server, stream, media_type="text/event-stream")

    def whole(cancel: Event) -> bytes:
        return json.dumps(completion(reply(cancel), model, _encoder(server, body), server.past_replies)).encode()

    return Response(await run(server, request, whole), media_type="application/json")


def _encoder(server: ServerState, body: ChatRequest) -> Encoder | None:
    if not body.speaks or body.audio is None:
        return None
    return Encoder("pcm" if body.audio.format == "pcm16" else body.audio.format, server.bundle.speaker.rate)


def _reply(
    server: ServerState, body: ChatRequest, tools: list[Tool], choice: str, cancel: Event
) -> Iterator[ReplyPiece]:
    hearing = Hearing(server)
    messages = body.to_messages(server.past_replies, lambda audio: _hear(server, hearing, audio, cancel))
    respond = partial(
        server.bundle.responder.respond, messages, tools=tools, tool_choice=choice, sampling=body.to_sampling()
    )
    if not body.speaks:
        yield from respond(cancel=cancel)
        return

    def write(put: Callable[[ReplyEvent], None], stop: Event) -> None:
        for event in respond(cancel=stop):
            put(event)

    # The model writes on in a thread of its own while a clause is spoken; the bound holds it back for slow readers.
    with closing(pump(write, cancel=cancel, buffer=256)) as events:
        yield from _spoken(server, body, events, cancel)


def _spoken(
    server: ServerState, body: ChatRequest, events: Iterator[ReplyEvent], cancel: Event
) -> Iterator[ReplyPiece]:
    """The reply and the audio of its text, each piece of text before its audio."""
    speaker = server.bundle.speaker
    voice = resolve_voice(body.audio.voice if body.audio else None, speaker)
    passed: list[ReplyPiece] = []

    def texts() -> Iterator[str]:
        for event in events:
            passed.append(event)
            if isinstance(event, TextDelta):
                yield event.text

    rest = texts()
    first = next((text for text in rest if text.strip()), None)
    if first is not None:  # None: the reply only calls tools
        with suppress(TextError):  # a lone emoji cannot be read aloud, but is still a reply
            for speech in say(speaker, chain([first], rest), voice=voice, cancel=cancel):
                server.metrics.audio_seconds.labels("out").inc(len(speech.samples) / speaker.rate)
                yield from passed
                passed.clear()
                yield speech
    yield from passed


def _hear(server: ServerState, hearing: Hearing, audio: InputAudio, cancel: Event) -> str:
    """What is said in a recording. Raises AudioError when there is nothing, TooLargeError past the limit."""
    try:
        recording = base64.b64decode(audio.data, validate=True)
    except ValueError:
        raise AudioError("The data of `input_audio` is not valid base64.", param="messages") from None
    text = server.past_recordings.transcript(recording)
    if text is None:
        text = join(hearing.segments(recording, cancel)).text
        server.past_recordings.keep(recording, text)
    if not text:
        raise AudioError("No speech was found in a recording; record it again, closer.", param="messages")
    return text
