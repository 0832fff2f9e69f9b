"""POST /v1/audio/transcriptions: an uploaded recording to text."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from threading import Event
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from stepaudio.errors import InputError
from stepaudio.serve.errors import ERROR_RESPONSES
from stepaudio.serve.hearing import Hearing
from stepaudio.serve.intake import TRANSCRIPTIONS, check_fields
from stepaudio.serve.models import check_model
from stepaudio.serve.state import State
from stepaudio.serve.work import EVENTS, Streamed, event, run
from stepaudio.speech.transcribe import Segment, join, join_text, to_srt, to_vtt

router = APIRouter(tags=["audio"], responses=ERROR_RESPONSES)

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularity = Literal["word", "segment"]


class DurationUsage(BaseModel):
    """How much audio was heard, in seconds."""

    type: Literal["duration"] = "duration"
    seconds: float


class Transcription(BaseModel):
    """The answer in format json."""

    text: str
    usage: DurationUsage


class WordInfo(BaseModel):
    """A word and when it was said, in seconds."""

    word: str
    start: float
    end: float


class SegmentInfo(BaseModel):
    """A stretch of speech. Fields that only OpenAI's decoder has are constant: see docs/http.md."""

    id: int
    seek: int = 0
    start: float
    end: float
    text: str
    tokens: list[int] = []
    temperature: float = 0.0
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float = 0.0


class VerboseTranscription(BaseModel):
    """The answer in format verbose_json."""

    task: Literal["transcribe"] = "transcribe"
    language: str
    duration: float
    text: str
    segments: list[SegmentInfo] | None = None
    words: list[WordInfo] | None = None
    usage: DurationUsage


_TEXT = {"schema": {"type": "string"}}


@router.post(
    TRANSCRIPTIONS,
    response_model=Transcription | VerboseTranscription,
    response_model_exclude_none=True,
    responses={200: {"content": {"text/plain": _TEXT, "text/event-stream": EVENTS}}},
)
async def create_transcription(
    request: Request,
    server: State,
    file: Annotated[UploadFile, File(description="A recording in any format that FFmpeg or libsndfile decodes.")],
    model: Annotated[str | None, Form()] = None,
    language: Annotated[str | None, Form(description="ISO 639-1; detected when it is left out.")] = None,
    prompt: Annotated[str | None, Form(description="Biases spelling and vocabulary.")] = None,
    response_format: Annotated[Format, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1, description="Accepted; decoding is always greedy first.")] = 0.0,
    granularities: Annotated[list[Granularity] | None, Form(alias="timestamp_granularities[]")] = None,
    stream: Annotated[bool, Form()] = False,
) -> Response | Transcription | VerboseTranscription:
    """Transcribe a recording, hours long if need be; with `stream` its text comes segment by segment."""
    await check_fields(request, _FIELDS)
    check_model(model, server.bundle.name)
    if granularities and response_format != "verbose_json":
        raise InputError("Timestamps need `response_format` verbose_json.", param="timestamp_granularities[]")
    if stream and response_format not in ("json", "text"):
        raise InputError(f"A stream cannot be {response_format}; ask for json or text.", param="response_format")
    hearing = Hearing(server)

    def hear(cancel: Event) -> Iterator[Segment]:
        words = "word" in (granularities or ())
        return hearing.segments(file.file, cancel, language=language or None, prompt=prompt or None, words=words)

    if stream:
        return Streamed(server, lambda cancel: _events(hear(cancel)), media_type="text/event-stream")
    segments = await run(server, request, lambda cancel: list(hear(cancel)))
    match response_format:
        case "json":
            return Transcription(text=join(segments).text, usage=DurationUsage(seconds=hearing.seconds))
        case "verbose_json":
            return _verbose(segments, hearing.seconds, granularities or ["segment"])
        case "text":
            return PlainTextResponse(join(segments).text + "\n")
        case "srt":
            return PlainTextResponse(to_srt(segments))
        case "vtt":
            return PlainTextResponse(to_vtt(segments))


def _events(segments: Iterator[Segment]) -> Iterator[bytes]:
    text = ""
    for segment in segments:
        longer = join_text(text, segment.transcript.text)
        if delta := longer[len(text) :]:
            yield event({"type": "transcript.text.delta", "delta": delta})
        text = longer
    yield event({"type": "transcript.text.done", "text": text})


def _verbose(segments: list[Segment], seconds: float, granularities: list[Granularity]) -> VerboseTranscription:
    whole = join(segments)
    words = [WordInfo(word=word.text, start=word.start, end=word.end) for word in whole.words]
    return VerboseTranscription(
        language=whole.language,
        duration=seconds,
        text=whole.text,
        segments=[_segment(i, segment) for i, segment in enumerate(segments)] if "segment" in granularities else None,
        words=words if "word" in granularities else None,
        usage=DurationUsage(seconds=seconds),
    )


def _segment(index: int, segment: Segment) -> SegmentInfo:
    text = segment.transcript.text
    data = text.encode()
    return SegmentInfo(
        id=index,
        start=segment.start,
        end=segment.end,
        text=text,
        avg_logprob=math.log(max(segment.transcript.confidence, 1e-9)),
        compression_ratio=len(data) / len(zlib.compress(data)),
    )


_FIELDS = frozenset(
    {"file", "model", "language", "prompt", "response_format", "temperature", "timestamp_granularities[]", "stream"}
)
