"""The session object of the protocol: its defaults, how a partial update changes it, and what it means for the core."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio.agent.errors import RequestError
from stepaudio.agent.mcp import McpServer
from stepaudio.agent.settings import Settings, SpeculationConfig
from stepaudio.agent.tools import ToolSpec
from stepaudio.agent.turn import TurnConfig
from stepaudio.serve.models import resolve_voice
from stepaudio.serve.realtime.schema import parse_session
from stepaudio.speech.prompts import spoken
from stepaudio.speech.roles import Sampling, Speaker, Tool, Transcriber

_CLEARABLE = frozenset({"turn_detection", "transcription", "noise_reduction", "tracing", "prompt", "include"})
"""Null means "none" here; elsewhere it means the default."""
_UNLIMITED_TOKENS = 1024
"""What "inf" gives a spoken reply: about six minutes of speech."""

_DEFAULTS: dict[str, Any] = {
    "type": "realtime",
    "model": None,
    "output_modalities": ["audio"],
    "instructions": "",
    "tools": [],
    "tool_choice": "auto",
    "max_output_tokens": "inf",
    "tracing": None,
    "prompt": None,
    "truncation": "auto",
    "include": None,
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "transcription": None,
            "noise_reduction": None,
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": 500,
                "idle_timeout_ms": None,
                "create_response": True,
                "interrupt_response": True,
            },
        },
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": None, "speed": 1.0},
    },
}
_MOST_MCP_SERVERS = 8
_OF_TRANSCRIPTION = ("type", "audio", "include", "stepaudio")
_OF_REPLIES = ("create_response", "interrupt_response", "idle_timeout_ms")


class SessionConfig:
    """The session's fields as the client sees them. `mcp` lets it name MCP servers, `acoustic` ask the acoustic turn
    scorer."""

    def __init__(
        self, model: str, speaker: Speaker, transcriber: Transcriber, *, mcp: bool = False, acoustic: bool = False
    ) -> None:
        self._mcp = mcp
        self._acoustic = acoustic
        self._speaker = speaker
        self._languages = transcriber.languages
        self.fields = copy.deepcopy(_DEFAULTS)
        self.fields["model"] = model
        self.fields["audio"]["output"]["voice"] = speaker.voices[0].name

    def updated(self, patch: object) -> SessionConfig:
        """A copy with a partial update merged in. Raises RequestError, naming the field, for one that cannot be."""
        changed = copy.copy(self)
        changed.fields = _merge(self.fields, parse_session(patch), self._defaults())
        changed._check()
        return changed

    def as_json(self, session_id: str, expires_at: int) -> dict[str, Any]:
        """The `session` of `session.created` and `session.updated`."""
        fields = copy.deepcopy(self.fields)
        for tool in fields["tools"]:
            for secret in ("authorization", "headers"):
                tool.pop(secret, None)
        if self.transcribes_only:
            fields = {name: fields[name] for name in _OF_TRANSCRIPTION if name in fields}
            del fields["audio"]["output"]
            for name in _OF_REPLIES:
                (fields["audio"]["input"]["turn_detection"] or {}).pop(name, None)
            return {**fields, "object": "realtime.transcription_session", "id": session_id, "expires_at": expires_at}
        return {**fields, "object": "realtime.session", "id": session_id, "expires_at": expires_at}

    @property
    def transcribes_only(self) -> bool:
        return bool(self.fields["type"] == "transcription")

    @property
    def input(self) -> dict[str, Any]:
        fields: dict[str, Any] = self.fields["audio"]["input"]
        return fields

    @property
    def output(self) -> dict[str, Any]:
        fields: dict[str, Any] = self.fields["audio"]["output"]
        return fields

    @property
    def extras(self) -> dict[str, Any]:
        return self.fields.get("stepaudio") or {}

    @property
    def mcp_servers(self) -> list[McpServer]:
        """The servers that the client names."""
        return [_mcp_server(tool) for tool in self.fields["tools"] if tool["type"] == "mcp"]

    @property
    def temperature(self) -> float:
        return float(self.extras.get("temperature", 0.0))

    @property
    def tells_transcripts(self) -> bool:
        """Whether the client wants to read what the user said."""
        return self.transcribes_only or self.input["transcription"] is not None

    def settings(self, server_tools: Sequence[ToolSpec] = ()) -> Settings:
        """What the fields mean for the conversation core."""
        fields, extras = self.fields, self.extras
        speak = speaks(fields["output_modalities"])
        instructions = fields["instructions"]
        transcription = self.input["transcription"] or {}
        hints = [transcription.get("prompt") or "", *(transcription.get("keywords") or [])]
        return Settings(
            instructions=spoken(instructions) if speak else instructions,
            speak=speak,
            voice=self.voice(self.output["voice"]),
            speed=self.output["speed"],
            sampling=sampling(fields["max_output_tokens"], self.temperature),
            tools=(*client_tools(fields["tools"]), *server_tools),
            tool_choice=tool_choice(fields["tool_choice"]),
            turn=self._turn(),
            language=self._language(transcription),
            hint=", ".join(filter(None, hints)) or None,
            acoustic=extras.get("acoustic", False),
            speculation=SpeculationConfig(enabled=extras.get("speculation", True)),
        )

    def voice(self, voice: str | Mapping[str, str] | None) -> str | None:
        """The speaker's name for a voice; None for OpenAI's and for the default. Raises RequestError."""
        name = voice["id"] if isinstance(voice, Mapping) else voice
        known = [voice.name for voice in self._speaker.voices]
        name = resolve_voice(name, self._speaker)
        if name is not None and name not in known:
            raise RequestError(
                f"There is no voice '{name}'; the voices are {', '.join(known)}.",
                code="invalid_value",
                param="session.audio.output.voice",
            )
        return None if name == known[0] else name

    def reply_voice(self, voice: str | Mapping[str, str] | None) -> str | None:
        """The speaker's name for the voice of one reply; None for the session's. Raises RequestError."""
        name = self.voice(voice)
        if voice is not None and name is None and self.voice(self.output["voice"]) is not None:
            return self._speaker.voices[0].name
        return name

    def shown_voice(self, name: str | None) -> str:
        """What the client knows the voice of a reply by: the session's own word for the session's voice."""
        own = self.output["voice"]
        if name is None or name == self.voice(own):
            return str(own["id"] if isinstance(own, Mapping) else own)
        return name

    def _turn(self) -> TurnConfig | None:
        detection = self.input["turn_detection"]
        if detection is None:
            return None
        replies = {
            "create_response": detection["create_response"] and not self.transcribes_only,
            "interrupt_response": detection["interrupt_response"],
        }
        if detection["type"] == "semantic_vad":
            return TurnConfig.semantic_vad(detection["eagerness"], **replies)
        idle = detection["idle_timeout_ms"]
        return TurnConfig.server_vad(
            threshold=detection["threshold"],
            prefix_padding=detection["prefix_padding_ms"] / 1000,
            silence_duration=detection["silence_duration_ms"] / 1000,
            idle_timeout=None if idle is None or self.transcribes_only else idle / 1000,
            **replies,
        )

    def _language(self, transcription: Mapping[str, Any]) -> str | None:
        """As ISO 639-1; clients also send "en-US", and a list where several are possible."""
        several = transcription.get("languages") or []
        named = transcription.get("language") or (several[0] if len(several) == 1 else None)
        return named.partition("-")[0].lower() if named else None

    def _defaults(self) -> dict[str, Any]:
        defaults = copy.deepcopy(_DEFAULTS)
        defaults["model"] = self.fields["model"]
        defaults["audio"]["output"]["voice"] = self._speaker.voices[0].name
        return defaults

    def _check(self) -> None:
        language = self._language(self.input["transcription"] or {})
        if language is not None and language not in self._languages:
            raise RequestError(
                f"The language '{language}' is not understood here; these are: {', '.join(self._languages)}.",
                code="invalid_value",
                param="session.audio.input.transcription.language",
            )
        if self.extras.get("acoustic") and not self._acoustic:
            raise RequestError(
                "The models of this server have no acoustic turn scorer: leave `acoustic` out.",
                code="invalid_value",
                param="session.stepaudio.acoustic",
            )
        self._check_mcp()
        self.settings()

    def _check_mcp(self) -> None:
        servers = self.mcp_servers
        if servers and not self._mcp:
            raise RequestError(
                "This server connects to no MCP servers that clients name: start it with --session-mcp to let it.",
                code="mcp_not_allowed",
                param="session.tools",
            )
        if len(servers) > _MOST_MCP_SERVERS or len({server.label for server in servers}) < len(servers):
            raise RequestError(
                f"A session may have {_MOST_MCP_SERVERS} MCP servers, each with a server_label of its own.",
                code="invalid_value",
                param="session.tools",
            )


def _mcp_server(tool: Mapping[str, Any]) -> McpServer:
    headers = dict(tool.get("headers") or {})
    if tool.get("authorization"):
        headers["Authorization"] = f"Bearer {tool['authorization']}"
    allowed = tool.get("allowed_tools")
    filters = allowed if isinstance(allowed, dict) else {"tool_names": allowed}
    names = filters.get("tool_names")
    return McpServer(
        tool["server_label"],
        url=tool["server_url"],
        headers=headers,
        names=None if names is None else frozenset(names),
        read_only=filters.get("read_only"),
    )


def _merge(current: dict[str, Any], patch: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`audio`, its `input` and `output` are merged field by field; every other field is replaced as a whole."""
    merged = copy.deepcopy(current)
    for name, value in patch.items():
        if value is None:
            if name in _CLEARABLE:
                merged[name] = None
            elif name in defaults:
                merged[name] = copy.deepcopy(defaults[name])
            else:
                merged.pop(name, None)
        elif name in ("audio", "input", "output"):
            merged[name] = _merge(merged[name], value, defaults[name])
        elif name == "turn_detection":
            merged[name] = _completed(value)
        elif name == "stepaudio":
            merged[name] = {**(merged.get(name) or {}), **value}
        else:
            merged[name] = value
    return merged


def _completed(detection: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of its type."""
    common = {"create_response": True, "interrupt_response": True}
    if detection["type"] == "semantic_vad":
        return {"eagerness": "auto", **common, **detection}
    return {**_DEFAULTS["audio"]["input"]["turn_detection"], **detection}


def speaks(modalities: Sequence[str]) -> bool:
    """Text alone is not spoken; audio comes with its transcript."""
    return "audio" in modalities


def sampling(max_output_tokens: int | str, temperature: float) -> Sampling:
    return Sampling(
        max_tokens=_UNLIMITED_TOKENS if max_output_tokens == "inf" else int(max_output_tokens),
        temperature=temperature,
    )


def shown_tokens(most: int) -> int | str:
    """`max_output_tokens` as the client knows it."""
    return "inf" if most == _UNLIMITED_TOKENS else most


def client_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    """The tools that the client declares and runs itself."""
    return tuple(
        ToolSpec(
            Tool(
                tool["name"],
                tool.get("description") or "",
                tool.get("parameters") or {"type": "object", "properties": {}},
            ),
            client_side=True,
        )
        for tool in tools
        if tool["type"] == "function"
    )


def tool_choice(choice: str | Mapping[str, Any]) -> str:
    """auto, none, required, or the name of a tool."""
    return choice if isinstance(choice, str) else str(choice["name"])
