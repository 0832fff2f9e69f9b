"""The answers of POST /v1/chat/completions: one object, or a stream of chunks."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from stepaudio.audio.encode import Encoder
from stepaudio.serve.past_audio import PastReplies
from stepaudio.serve.work import event
from stepaudio.speech.roles import Finish, Speech, TextDelta, ToolCall

ReplyPiece = TextDelta | Speech | ToolCall | Finish
"""A reply is text, the audio of that text where it is spoken, calls of tools, and how it ended."""

FinishReason = Literal["stop", "length", "tool_calls"]


class FunctionCallInfo(BaseModel):
    """The function to call and its arguments as JSON."""

    name: str
    arguments: str


class ToolCallInfo(BaseModel):
    """A call that the caller should carry out."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCallInfo


class SpokenReply(BaseModel):
    """The reply as audio in base64, with its text."""

    id: str
    data: str
    expires_at: int
    transcript: str


class ReplyMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    audio: SpokenReply | None = None
    tool_calls: list[ToolCallInfo] | None = None


class Choice(BaseModel):
    """The one reply."""

    index: Literal[0]
    message: ReplyMessage
    finish_reason: FinishReason
    logprobs: None


class CachedTokens(BaseModel):
    """How much of the prompt was already in the model's cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of the language model."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class ChatCompletion(BaseModel):
    """A whole reply."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


def completion(pieces: Iterator[ReplyPiece], model: str, spoken: Encoder | None, past: PastReplies) -> dict[str, Any]:
    """A whole reply in the shape of ChatCompletion; `spoken` encodes it, None for a reply in text."""
    text = ""
    audio = bytearray()
    calls: list[dict[str, Any]] = []
    finish = Finish("stop")
    for piece in pieces:
        match piece:
            case TextDelta():
                text += piece.text
            case Speech():
                assert spoken is not None
                audio += spoken.push(piece.samples)
            case ToolCall():
                calls.append(_call(piece))
            case Finish():
                finish = piece
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
    if spoken is not None and audio:
        audio += spoken.flush()
        audio_id, expires_at = past.new()
        past.keep(audio_id, text)
        data = base64.b64encode(audio).decode("ascii")
        message["content"] = None
        message["audio"] = {"id": audio_id, "data": data, "expires_at": expires_at, "transcript": text}
    elif not calls:
        message["content"] = text
    if calls:
        message["tool_calls"] = calls
    return {
        **_head("chat.completion", model),
        "choices": [{"index": 0, "message": message, "finish_reason": finish.reason, "logprobs": None}],
        "usage": _usage(finish),
    }


def chunks(
    pieces: Iterator[ReplyPiece], model: str, spoken: Encoder | None, past: PastReplies, *, include_usage: bool
) -> Iterator[bytes]:
    """A reply as server-sent events, each as soon as its piece is there."""
    head = _head("chat.completion.chunk", model)
    extra = {"usage": None} if include_usage else {}

    def chunk(delta: dict[str, Any], reason: FinishReason | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event({**head, "choices": [choice], **extra})

    def audio_chunk(data: bytes) -> bytes:
        return chunk({"audio": {"id": audio_id, "data": base64.b64encode(data).decode("ascii")}})

    audio_id, expires_at = past.new()
    transcript = ""
    calls = 0
    role = {"role": "assistant"}
    finish = Finish("stop")
    for piece in pieces:
        match piece:
            case TextDelta() if spoken is None:
                yield chunk({**role, "content": piece.text})
            case TextDelta():
                transcript += piece.text
                yield chunk({**role, "audio": {"id": audio_id, "transcript": piece.text}})
            case Speech():
                assert spoken is not None
                yield audio_chunk(spoken.push(piece.samples))
            case ToolCall():
                yield chunk({**role, "tool_calls": [{"index": calls, **_call(piece)}]})
                calls += 1
            case Finish():
                finish = piece
                continue
        role = {}
    if spoken is not None and transcript:
        past.keep(audio_id, transcript)
        yield audio_chunk(spoken.flush())
        yield chunk({"audio": {"id": audio_id, "expires_at": expires_at}})
    yield chunk(role, finish.reason)
    if include_usage:
        yield event({**head, "choices": [], "usage": _usage(finish)})
    yield b"data: [DONE]\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call.id, "type": "function", "function": function}


def _usage(finish: Finish) -> dict[str, Any]:
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finish.cached_tokens},
    }
