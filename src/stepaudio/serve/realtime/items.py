"""Conversation items, between the protocol and the core. History is text: audio inside an item is heard once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from stepaudio.agent import context
from stepaudio.agent.errors import RequestError
from stepaudio.serve.realtime import schema
from stepaudio.serve.realtime.wire import parse_json
from stepaudio.speech.roles import ToolCall


def item_json(
    item: context.Item, *, spoken: bool | None = None, result: context.OutputItem | None = None
) -> dict[str, Any]:
    """An item as the protocol shows it. `spoken` says whether an assistant's message is audio; by default it is when
    it has some. A call that is run here shows its `result` too."""
    shown: dict[str, Any] = {"id": item.id, "object": "realtime.item", "status": item.status}
    match item:
        case context.MessageItem(role="assistant"):
            audio = bool(item.seconds) if spoken is None else spoken
            return {**shown, "type": "message", "role": "assistant", "content": [part(item.text or "", audio)]}
        case context.MessageItem(role="user") if item.seconds or not item.text:
            content: dict[str, Any] = {"type": "input_audio", "transcript": item.text}
            # To the protocol a turn is complete when its audio is; the transcript has events of its own.
            return {**shown, "status": "completed", "type": "message", "role": "user", "content": [content]}
        case context.MessageItem():
            content = {"type": "input_text", "text": item.text}
            return {**shown, "type": "message", "role": item.role, "content": [content]}
        case context.CallItem(call=call):
            arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
            if item.server is not None:
                shown = {"id": item.id, "type": "mcp_call", "server_label": item.server, "name": call.name}
                return {**shown, "arguments": arguments, **_result_json(result)}
            return {**shown, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments}
        case context.OutputItem():
            return {**shown, "type": "function_call_output", "call_id": item.call_id, "output": item.output}


def _result_json(result: context.OutputItem | None) -> dict[str, Any]:
    if result is None:
        return {"output": None, "error": None}
    if result.failed:
        return {"output": None, "error": {"type": "tool_execution_error", "message": result.output}}
    return {"output": result.output, "error": None}


def part(text: str, audio: bool) -> dict[str, Any]:
    """The content of an assistant's message."""
    return {"type": "output_audio", "transcript": text} if audio else {"type": "output_text", "text": text}


def parse_item(
    item: schema.Message | schema.FunctionCall | schema.FunctionCallOutput,
    *,
    new_id: Callable[[str], str],
) -> tuple[context.Item, str | None]:
    """The core's item and, for a user's message that is audio, that audio as base64. Raises RequestError."""
    item_id = item.id or new_id("item")
    if isinstance(item, schema.FunctionCallOutput):
        return context.OutputItem(item_id, item.call_id, item.output), None
    if isinstance(item, schema.FunctionCall):
        call = ToolCall(item.call_id or new_id("call"), item.name, _arguments(item.arguments))
        return context.CallItem(item_id, call), None
    texts = [content.text or content.transcript for content in item.content]
    audio = [content.audio for content, text in zip(item.content, texts, strict=True) if text is None and content.audio]
    text = " ".join(filter(None, texts))
    if not audio:
        return context.MessageItem(item_id, item.role, text), None
    if text or len(audio) > 1 or item.role != "user":
        raise RequestError(
            "A message holds either text or one piece of the user's audio; send several messages.",
            code="invalid_value",
            param="item.content",
        )
    return context.MessageItem(item_id, "user", None), audio[0]


def _arguments(text: str) -> Mapping[str, Any]:
    try:
        arguments = parse_json(text or "{}")
    except RequestError as error:
        raise RequestError(f"The arguments cannot be used: {error}", code=error.code, param="item.arguments") from None
    if not isinstance(arguments, dict):
        raise RequestError("The arguments must be a JSON object.", code="invalid_value", param="item.arguments")
    return arguments
