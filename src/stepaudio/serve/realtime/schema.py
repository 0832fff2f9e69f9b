"""The client's side of the Realtime protocol as types: events, items, session fields.

Unknown fields and values are refused by name. Field names and their meaning are OpenAI's
(https://platform.openai.com/docs/api-reference/realtime).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from stepaudio.agent.errors import RequestError
from stepaudio.serve.realtime.wire import check_json


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


# ---------------------------------------------------------------- session


class Pcm(Strict):
    type: Literal["audio/pcm"]
    rate: Literal[24000] = 24000


class Pcmu(Strict):
    type: Literal["audio/pcmu"]


class Pcma(Strict):
    type: Literal["audio/pcma"]


AudioFormat = Annotated[Pcm | Pcmu | Pcma, Field(discriminator="type")]


class ServerVad(Strict):
    type: Literal["server_vad"]
    threshold: float = Field(default=0.5, gt=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=500, ge=32, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = Field(default=None, ge=100)


class SemanticVad(Strict):
    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


TurnDetection = Annotated[ServerVad | SemanticVad, Field(discriminator="type")]


class Transcription(Strict):
    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = Field(default=None, max_length=4000)
    keywords: list[str] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class NoiseReduction(Strict):
    type: Literal["near_field", "far_field"] | None = None
    strength: float | None = None


class AudioInput(Strict):
    format: AudioFormat | None = None
    transcription: Transcription | None = None
    noise_reduction: NoiseReduction | None = None
    turn_detection: TurnDetection | None = None


class VoiceId(Strict):
    id: str


class AudioOutput(Strict):
    format: AudioFormat | None = None
    voice: str | VoiceId | None = None
    speed: float | None = Field(default=None, ge=0.25, le=4)


class Audio(Strict):
    input: AudioInput | None = None
    output: AudioOutput | None = None


class FunctionTool(Strict):
    type: Literal["function"] = "function"
    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class McpFilter(Strict):
    tool_names: list[str] | None = None
    read_only: bool | None = None


class McpTools(Strict):
    """The tools of an MCP server that this server connects to for the session."""

    type: Literal["mcp"]
    server_label: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    server_url: str = Field(pattern=r"^https?://")
    server_description: str | None = None
    headers: dict[str, str] | None = None
    authorization: str | None = None
    allowed_tools: list[str] | McpFilter | None = None
    require_approval: Literal["never"]


def _kind(tool: Any) -> Any:
    """A tool without a type is a function."""
    return tool.get("type", "function") if isinstance(tool, dict) else getattr(tool, "type", "function")


AnyTool = Annotated[Annotated[FunctionTool, Tag("function")] | Annotated[McpTools, Tag("mcp")], Discriminator(_kind)]


class ChosenFunction(Strict):
    type: Literal["function"]
    name: str


Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)]
Instructions = Annotated[str, Field(max_length=100_000)]
ToolChoice = Literal["none", "auto", "required"] | ChosenFunction
MaxTokens = Annotated[int, Field(ge=1, le=4096)] | Literal["inf"]


class Extras(Strict):
    """What the protocol has no word for. `events` asks for the `stepaudio.*` events, `speculation` lets replies be
    prepared at pauses, `acoustic` asks the bundle's acoustic turn scorer, `temperature` draws replies at random."""

    events: bool = False
    speculation: bool = True
    acoustic: bool = False
    temperature: float = Field(default=0.0, ge=0, le=2)


class SessionPatch(Strict):
    """The fields of `session.update`, of a client secret, and of the session itself; absent fields stay."""

    type: Literal["realtime", "transcription"] | None = None
    model: str | None = None
    instructions: Instructions | None = None
    output_modalities: Modalities | None = None
    audio: Audio | None = None
    tools: list[AnyTool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    max_output_tokens: MaxTokens | None = None
    parallel_tool_calls: bool | None = None
    # Accepted and handed back; nothing here depends on them.
    include: list[str] | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    tracing: Literal["auto"] | dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | dict[str, Any] | None = None
    stepaudio: Extras | None = None


# ---------------------------------------------------------------- items


class Content(Strict):
    type: Literal["input_text", "input_audio", "output_text", "output_audio"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None


class _Item(Strict):
    id: str | None = Field(default=None, min_length=1, max_length=64)
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class Message(_Item):
    type: Literal["message"]
    role: Literal["system", "user", "assistant"]
    content: list[Content]


class FunctionCall(_Item):
    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: str | None = None


class FunctionCallOutput(_Item):
    type: Literal["function_call_output"]
    call_id: str
    output: str


class ItemReference(Strict):
    type: Literal["item_reference"]
    id: str


Item = Annotated[Message | FunctionCall | FunctionCallOutput, Field(discriminator="type")]
InputItem = Annotated[Message | FunctionCall | FunctionCallOutput | ItemReference, Field(discriminator="type")]


# ---------------------------------------------------------------- events


class ResponseAudio(Strict):
    output: AudioOutput | None = None


class ResponseParams(Strict):
    """How one response differs from the session."""

    instructions: Instructions | None = None
    output_modalities: Modalities | None = None
    audio: ResponseAudio | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    max_output_tokens: MaxTokens | None = None
    parallel_tool_calls: bool | None = None
    conversation: Literal["auto", "none"] | None = None
    input: list[InputItem] | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None


class _Event(Strict):
    event_id: str | None = Field(default=None, max_length=512)


class SessionUpdate(_Event):
    type: Literal["session.update"]
    session: dict[str, Any]


class Append(_Event):
    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(_Event):
    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):
    type: Literal["input_audio_buffer.clear"]


class ClearOutput(_Event):
    type: Literal["output_audio_buffer.clear"]


class ItemCreate(_Event):
    type: Literal["conversation.item.create"]
    item: Item
    previous_item_id: str | None = None


class ItemRetrieve(_Event):
    type: Literal["conversation.item.retrieve"]
    item_id: str


class ItemTruncate(_Event):
    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: Literal[0] = 0
    audio_end_ms: int


class ItemDelete(_Event):
    type: Literal["conversation.item.delete"]
    item_id: str


class ResponseCreate(_Event):
    type: Literal["response.create"]
    response: ResponseParams | None = None


class ResponseCancel(_Event):
    type: Literal["response.cancel"]
    response_id: str | None = None


ClientEvent = Annotated[
    SessionUpdate
    | Append
    | Commit
    | Clear
    | ClearOutput
    | ItemCreate
    | ItemRetrieve
    | ItemTruncate
    | ItemDelete
    | ResponseCreate
    | ResponseCancel,
    Field(discriminator="type"),
]
_client_event: TypeAdapter[ClientEvent] = TypeAdapter(ClientEvent)


def parse_event(message: object) -> ClientEvent:
    """A client event. Raises RequestError that names what does not fit."""
    try:
        return _client_event.validate_python(message)
    except ValidationError as error:
        raise refusal(error) from None


def parse_session(fields: object) -> dict[str, Any]:
    """The fields that are present in a session, checked, as JSON. Raises RequestError."""
    check_json(fields)
    try:
        patch = SessionPatch.model_validate(fields)
    except ValidationError as error:
        raise refusal(error, "session") from None
    return patch.model_dump(mode="json", exclude_unset=True)


_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "union_tag_not_found": "missing_required_parameter",
}
_TAGS = frozenset(
    {"server_vad", "semantic_vad", "message", "function", "function_call", "function_call_output", "mcp"}
    | {"item_reference", "int", "str"}
)
"""What pydantic puts into a path although it is no field: the alternative that it tried."""
_FIELD = re.compile(r"[a-z]\w*|\d+")


def refusal(error: ValidationError, *path: str) -> RequestError:
    """The first thing that does not fit, as an error for the client."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = [str(part) for part in problem["loc"]]
    if not path and where:  # the first part is the tag that chose the type of event
        where = where[1:]
    kind = problem["type"]
    param = ".".join([*path, *(part for part in where if _FIELD.fullmatch(part) and part not in _TAGS)])
    if kind.startswith("union_tag"):
        param = f"{param}.type" if param else "type"
    code = _CODES.get(kind, "invalid_value")
    if code == "unknown_parameter":
        message = f"Unknown parameter: '{param}'."
    elif kind == "missing":
        message = f"Missing required parameter: '{param}'."
    else:
        message = f"Invalid value for '{param or 'the event'}': {problem['msg']}."
    return RequestError(message, code=code, param=param or None)
