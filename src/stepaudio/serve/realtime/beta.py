"""The beta dialect of the protocol: other names for events and contents, and a flat session.

Pure translation in both directions, for clients that send the header `OpenAI-Beta: realtime=v1`.
"""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

_FORMATS: dict[str, Json] = {
    "pcm16": {"type": "audio/pcm", "rate": 24000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
_FORMAT_NAMES = {known["type"]: name for name, known in _FORMATS.items()}
_INPUT = {
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}
_OUTPUT = {"output_audio_format": "format", "voice": "voice", "speed": "speed"}
_PLAIN = {
    "modalities": "output_modalities",
    "max_response_output_tokens": "max_output_tokens",
    "max_output_tokens": "max_output_tokens",
}
_OUTPUT_EVENT = re.compile(r"^response\.output_(text|audio|audio_transcript)\.")
_CONTENTS = {"output_text": "text", "output_audio": "audio"}


def incoming(message: Any) -> Any:
    """A client event as the GA protocol has it. What is no event is left for others to refuse."""
    if not isinstance(message, dict):
        return message
    message = dict(message)
    kind = message.get("type")
    if kind == "transcription_session.update":
        message["type"] = "session.update"
    if isinstance(session := message.get("session"), dict):
        message["session"] = nested_session(session)
        if kind == "transcription_session.update":
            message["session"]["type"] = "transcription"
    if isinstance(response := message.get("response"), dict):
        message["response"] = _nested_response(response)
    if isinstance(item := message.get("item"), dict):
        message["item"] = _new_item(item)
    return message


def outgoing(event: Json) -> Json | None:
    """What the beta says in place of a GA event: None for one that it does not have."""
    kind = event["type"]
    if kind in ("conversation.item.done", "input_audio_buffer.timeout_triggered") or _is_mcp(event):
        return None
    event = {**event, "type": _OUTPUT_EVENT.sub(r"response.\1.", kind)}
    if kind == "conversation.item.added":
        event["type"] = "conversation.item.created"
    if "session" in event:
        if event["session"].get("type") == "transcription":
            event["type"] = f"transcription_{kind}"
        event["session"] = flat_session(event["session"])
    if "response" in event:
        event["response"] = _flat_response(event["response"])
    if "item" in event:
        event["item"] = _old_item(event["item"])
    return event


def nested_session(flat: Json) -> Json:
    """A flat session, or a part of one, as the GA protocol nests it. Unknown fields stay, to be refused by name."""
    nested: Json = {}
    audio: Json = {}
    for name, value in flat.items():
        if name in _INPUT:
            audio.setdefault("input", {})[_INPUT[name]] = _format(value) if "format" in name else value
        elif name in _OUTPUT:
            audio.setdefault("output", {})[_OUTPUT[name]] = _format(value) if "format" in name else value
        elif name == "temperature":
            nested["stepaudio"] = {"temperature": value}
        elif name != "client_secret":
            nested[_PLAIN.get(name, name)] = value
    if audio:
        nested["audio"] = audio
    if nested.get("output_modalities") in (["text", "audio"], ["audio", "text"]):
        nested["output_modalities"] = ["audio"]
    return nested


def flat_session(session: Json) -> Json:
    """A GA session as the beta shows it."""
    heard, said = session["audio"]["input"], session["audio"].get("output")
    flat = {
        "id": session["id"],
        "object": session["object"],
        "expires_at": session["expires_at"],
        "input_audio_format": _FORMAT_NAMES[heard["format"]["type"]],
        "input_audio_transcription": heard["transcription"],
        "input_audio_noise_reduction": heard["noise_reduction"],
        "turn_detection": heard["turn_detection"],
    }
    if said is None:
        return flat
    return {
        **flat,
        "model": session["model"],
        "modalities": _modalities(session["output_modalities"]),
        "instructions": session["instructions"],
        "voice": _voice(said["voice"]),
        "speed": said["speed"],
        "output_audio_format": _FORMAT_NAMES[said["format"]["type"]],
        "tools": session["tools"],
        "tool_choice": _choice(session["tool_choice"]),
        "temperature": (session.get("stepaudio") or {}).get("temperature", 0.0),
        "max_response_output_tokens": session["max_output_tokens"],
        "tracing": session["tracing"],
    }


def _nested_response(flat: Json) -> Json:
    nested = nested_session(flat)
    nested.pop("stepaudio", None)  # the temperature of a single response is the session's
    if isinstance(nested.get("input"), list):
        nested["input"] = [_new_item(item) if isinstance(item, dict) else item for item in nested["input"]]
    return nested


def _flat_response(response: Json) -> Json:
    flat = {name: value for name, value in response.items() if name not in ("audio", "output_modalities")}
    said = response["audio"]["output"]
    flat["modalities"] = _modalities(response["output_modalities"])
    flat["voice"] = _voice(said["voice"])
    flat["output_audio_format"] = _FORMAT_NAMES[said["format"]["type"]]
    flat["output"] = [_old_item(item) for item in response["output"] if not item["type"].startswith("mcp_")]
    return flat


def _is_mcp(event: Json) -> bool:
    """The beta knows no tools that run at the server."""
    return "mcp_" in event["type"] or str(event.get("item", {}).get("type")).startswith("mcp_")


def _new_item(item: Json) -> Json:
    if not isinstance(contents := item.get("content"), list) or item.get("role") != "assistant":
        return item
    return {**item, "content": [_renamed(part, {"text": "output_text", "audio": "output_audio"}) for part in contents]}


def _old_item(item: Json) -> Json:
    if "content" not in item:
        return item
    return {**item, "content": [_renamed(part, _CONTENTS) for part in item["content"]]}


def _renamed(part: Any, names: dict[str, str]) -> Any:
    if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
        return part
    return {**part, "type": names.get(kind, kind)}


def _format(name: Any) -> Any:
    return _FORMATS.get(name, name) if isinstance(name, str) else name


def _modalities(modalities: list[str]) -> list[str]:
    return ["audio", "text"] if "audio" in modalities else ["text"]


def _voice(voice: Any) -> str:
    return str(voice["id"] if isinstance(voice, dict) else voice)


def _choice(choice: Any) -> str:
    return choice if isinstance(choice, str) else str(choice["name"])
