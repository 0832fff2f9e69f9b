"""The body of POST /v1/chat/completions, and what it means in stepaudio's own terms."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stepaudio.errors import InputError
from stepaudio.serve.past_audio import PastReplies
from stepaudio.speech.roles import Message, Sampling, Tool, ToolCall

MAX_SCHEMA_DEPTH = 32


class TextPart(BaseModel):
    """Text."""

    type: Literal["text"]
    text: str


class InputAudio(BaseModel):
    """A recording in base64. The format is a hint; the content decides."""

    data: str
    format: str = "wav"


class AudioPart(BaseModel):
    """Speech of the user."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class RefusalPart(BaseModel):
    """An earlier refusal of the assistant."""

    type: Literal["refusal"]
    refusal: str


class SystemMessage(BaseModel):
    """Instructions."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]


UserPart = Annotated[TextPart | AudioPart, Field(discriminator="type")]


class UserMessage(BaseModel):
    """What the user wrote or said."""

    role: Literal["user"]
    content: str | list[UserPart]


class FunctionCall(BaseModel):
    """A function and its arguments as JSON."""

    name: str
    arguments: str


class ToolCallParam(BaseModel):
    """An earlier call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class PastAudioParam(BaseModel):
    """An earlier spoken reply: by its id alone, or with its transcript, as it was received."""

    id: str
    transcript: str | None = None


class AssistantMessage(BaseModel):
    """What the assistant wrote, said or called."""

    role: Literal["assistant"]
    content: str | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = None
    audio: PastAudioParam | None = None
    tool_calls: list[ToolCallParam] | None = None


class ToolMessage(BaseModel):
    """The result of a tool."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str


MessageParam = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


class Function(BaseModel):
    """A function that the model may call; `parameters` is a JSON schema of type object."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(BaseModel):
    """A tool."""

    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """The name of a function."""

    name: str


class NamedTool(BaseModel):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class AudioParam(BaseModel):
    """How a spoken reply should sound and be encoded; a stream is always pcm16."""

    voice: str | None = None
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]


class StreamOptions(BaseModel):
    """`include_usage` adds a last chunk that tells the tokens used."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextFormat(BaseModel):
    """Plain text, the only response format here."""

    type: Literal["text"]


_Ignored = Annotated[Any, Field(description="Accepted for compatibility; changes nothing.")]


class ChatRequest(BaseModel):
    """A conversation to be continued. Fields that would change the reply and that no local model honours are only
    taken with the value that means nothing."""

    model_config = ConfigDict(extra="forbid")

    messages: list[MessageParam] = Field(min_length=1)
    model: str | None = None
    modalities: list[Literal["text", "audio"]] | None = Field(None, min_length=1)
    audio: AudioParam | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None

    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, int], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None

    metadata: _Ignored = None
    parallel_tool_calls: _Ignored = None
    prompt_cache_key: _Ignored = None
    reasoning_effort: _Ignored = None
    safety_identifier: _Ignored = None
    service_tier: _Ignored = None
    store: _Ignored = None
    user: _Ignored = None
    verbosity: _Ignored = None

    @property
    def speaks(self) -> bool:
        """Whether the reply is to be spoken."""
        return "audio" in (self.modalities or ())

    def check(self) -> None:
        """Raises InputError for fields that contradict each other."""
        if self.speaks and self.audio is None:
            raise InputError("A spoken reply needs `audio` with a format.", param="audio")
        if self.speaks and self.stream and self.audio and self.audio.format != "pcm16":
            raise InputError("A streamed spoken reply must have the format pcm16.", param="audio.format")
        if self.stream_options and not self.stream:
            raise InputError("`stream_options` needs `stream`.", param="stream_options")

    def to_messages(self, past: PastReplies, hear: Callable[[InputAudio], str]) -> list[Message]:
        """The history as text; `hear` transcribes a recording. Raises InputError for calls that are not JSON."""
        return [_to_message(message, past, hear) for message in self.messages]

    def to_tools(self) -> tuple[list[Tool], str]:
        """The tools and the choice among them. Raises InputError for a schema or a choice that cannot be met."""
        tools = [_to_tool(tool.function) for tool in self.tools or ()]
        names = [tool.name for tool in tools]
        if len(set(names)) < len(names):
            raise InputError("Two tools have the same name; rename one.", param="tools")
        choice = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        if isinstance(self.tool_choice, NamedTool) and choice not in names:
            raise InputError(f"There is no tool `{choice}` among `tools`.", param="tool_choice")
        if choice == "required" and not tools:
            raise InputError("`tool_choice` is required but there are no `tools`.", param="tool_choice")
        return tools, choice or "auto"

    def to_sampling(self) -> Sampling:
        """How the reply is drawn; the role's own defaults where the request says nothing."""
        default = Sampling()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens or default.max_tokens,
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(text for text in stop if text),
        )


def _to_message(message: MessageParam, past: PastReplies, hear: Callable[[InputAudio], str]) -> Message:
    match message:
        case SystemMessage():
            return Message("system", _join(message.content))
        case UserMessage():
            if isinstance(message.content, str):
                return Message("user", message.content)
            texts = [part.text if isinstance(part, TextPart) else hear(part.input_audio) for part in message.content]
            return Message("user", "\n".join(text for text in texts if text))
        case ToolMessage():
            return Message("tool", _join(message.content), tool_call_id=message.tool_call_id)
        case AssistantMessage():
            text = _join(message.content or "")
            if message.audio is not None and not text:
                text = message.audio.transcript or past.transcript(message.audio.id)
            return Message("assistant", text, tuple(_to_call(call) for call in message.tool_calls or ()))


def _join(content: str | list[TextPart] | list[TextPart | RefusalPart]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _to_call(call: ToolCallParam) -> ToolCall:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InputError(f"The arguments of the tool call `{call.id}` are not a JSON object.", param="messages")
    return ToolCall(call.id, call.function.name, arguments)


def _to_tool(function: Function) -> Tool:
    parameters = function.parameters or {"type": "object", "properties": {}}
    if parameters.get("type", "object") != "object":
        raise InputError(f"The parameters of `{function.name}` must be a JSON schema of type object.", param="tools")
    if _deeper_than(parameters, MAX_SCHEMA_DEPTH):
        raise InputError(
            f"The parameters of `{function.name}` are nested more than {MAX_SCHEMA_DEPTH} deep.", param="tools"
        )
    return Tool(function.name, function.description or "", parameters)


def _deeper_than(value: Any, depth: int) -> bool:
    if depth < 0:
        return True
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_deeper_than(child, depth - 1) for child in children)
