"""Tools: Python functions as schemas, and a ledger that runs each call once.

`FunctionTools` makes tools of Python functions, `ClientTools` holds those that the client declares and runs itself,
`AllTools` joins several; all are `ToolProvider`s, as is `mcp.McpTools`. `ToolLedger` keeps the books over all calls of
a session, whoever runs them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from stepaudio.errors import InputError, NotFoundError
from stepaudio.speech.roles import Tool, ToolCall

_PRIMITIVES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_ARGUMENT = re.compile(r"^\s*(\w+)\s*(?:\([^)]*\))?\s*:\s*(.+)$")


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool, how long it may take in seconds, and who runs it: the client, or a server that is called `server`."""

    tool: Tool
    timeout: float = 30.0
    client_side: bool = False
    server: str = "stepaudio"


class ToolProvider(Protocol):
    """Where tools come from."""

    def specs(self) -> Sequence[ToolSpec]: ...

    def run(self, call: ToolCall) -> Any:
        """The result, or an awaitable of it; it may block. Raises NotFoundError, InputError, or what the tool
        does."""
        ...


# ---------------------------------------------------------------- Python functions


def json_schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type: int, float, str, bool, None, Literal, Optional, unions, list, dict, dataclass, Enum.

    Raises InputError for any other.
    """
    if hint is Any or hint is inspect.Parameter.empty:
        return {}
    if hint in _PRIMITIVES:
        return {"type": _PRIMITIVES[hint]}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [json_schema(one) for one in arguments]}
    if hint is list or origin is list:
        return {"type": "array", "items": json_schema(arguments[0] if arguments else Any)}
    if hint is dict or origin is dict:
        return {"type": "object", "additionalProperties": json_schema(arguments[1] if arguments else Any)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return _object(
            {field.name: json_schema(hints[field.name]) for field in dataclasses.fields(hint)},
            [field.name for field in dataclasses.fields(hint) if _required(field)],
        )
    raise InputError(f"A tool's parameter cannot be of type {hint!r}: use a JSON type, a dataclass or an Enum.")


def decode(hint: Any, value: Any) -> Any:
    """A JSON value as the type that a function expects. Raises InputError, saying what does not fit."""
    if hint is Any or hint is inspect.Parameter.empty:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for one in arguments:
            try:
                return decode(one, value)
            except InputError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint in _PRIMITIVES:
        if type(value) is hint:
            return value
    elif hint is list or origin is list:
        if isinstance(value, list):
            return [decode(arguments[0] if arguments else Any, one) for one in value]
    elif hint is dict or origin is dict:
        if isinstance(value, Mapping):
            return {str(key): decode(arguments[1] if arguments else Any, one) for key, one in value.items()}
    elif isinstance(hint, type) and issubclass(hint, Enum):
        for member in hint:
            if member.value == value:
                return member
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        hints = get_type_hints(hint)
        required = [field.name for field in dataclasses.fields(hint) if _required(field)]
        return hint(**_decode_fields(hints, required, value))
    raise InputError(f"{value!r} is not of type {getattr(hint, '__name__', hint)}.")


def encode(value: Any) -> str:
    """A tool's result as the model reads it: text as it is but for halves of characters, everything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)
    return text.encode(errors="replace").decode()


class FunctionTools:
    """Python functions as tools: name, type hints and docstring become the schema.

    The docstring's first paragraph describes the tool; lines `name: text` under `Args:` describe its parameters.
    """

    def __init__(self) -> None:
        self._tools: dict[str, tuple[ToolSpec, Callable[..., Any]]] = {}

    def add(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        read_only: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """Offer a function, plain or async. Raises InputError when its parameters have no schema."""
        name = name or function.__name__
        if name in self._tools:
            raise InputError(f"There are two tools named {name!r}: give one another name.")
        description, notes = _parse_docstring(inspect.getdoc(function) or "")
        properties, required = {}, []
        for parameter, hint in _parameters(function):
            properties[parameter.name] = json_schema(hint)
            if parameter.name in notes:
                properties[parameter.name]["description"] = notes[parameter.name]
            if parameter.default is inspect.Parameter.empty:
                required.append(parameter.name)
        tool = Tool(name, description, _object(properties, required), read_only)
        self._tools[name] = (ToolSpec(tool, timeout), function)

    def specs(self) -> Sequence[ToolSpec]:
        return [spec for spec, _ in self._tools.values()]

    def run(self, call: ToolCall) -> Any:
        if call.name not in self._tools:
            raise NotFoundError(f"There is no tool named {call.name!r}.")
        function = self._tools[call.name][1]
        parameters = _parameters(function)
        required = [parameter.name for parameter, _ in parameters if parameter.default is inspect.Parameter.empty]
        hints = {parameter.name: hint for parameter, hint in parameters}
        return function(**_decode_fields(hints, required, call.arguments))


class AllTools:
    """Several providers as one; of two tools of one name the first counts."""

    def __init__(self, providers: Sequence[ToolProvider] = ()) -> None:
        self.providers = providers

    def specs(self) -> Sequence[ToolSpec]:
        named: dict[str, ToolSpec] = {}
        for provider in self.providers:
            for spec in provider.specs():
                named.setdefault(spec.tool.name, spec)
        return list(named.values())

    def run(self, call: ToolCall) -> Any:
        for provider in self.providers:
            if any(spec.tool.name == call.name for spec in provider.specs()):
                return provider.run(call)
        raise NotFoundError(f"There is no tool named {call.name!r}.")


class ClientTools:
    """The tools that the client declares and runs itself: their results come back as items."""

    def __init__(self, tools: Sequence[Tool] = ()) -> None:
        self._specs = [ToolSpec(tool, client_side=True) for tool in tools]

    def specs(self) -> Sequence[ToolSpec]:
        return self._specs

    def run(self, call: ToolCall) -> Any:
        raise NotFoundError(f"The tool {call.name!r} runs at the client.")


def _parameters(function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InputError(f"The tool {function.__name__!r} needs named parameters only, not {parameter}.")
    return [(parameter, hints.get(parameter.name, Any)) for parameter in parameters]


def _decode_fields(hints: Mapping[str, Any], required: list[str], values: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in required if name not in values]
    unknown = [name for name in values if name not in hints]
    if missing or unknown:
        raise InputError(
            "; ".join([f"{name} is missing" for name in missing] + [f"{name} is not a parameter" for name in unknown])
        )
    return {name: decode(hints[name], value) for name, value in values.items()}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    description = " ".join(text.split("\n\n")[0].split())
    notes: dict[str, str] = {}
    _, _, arguments = text.partition("Args:")
    for line in arguments.splitlines():
        if match := _ARGUMENT.match(line):
            notes[match[1]] = match[2].strip()
    return description, notes


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Enum):
        return value.value
    return str(value)


# ---------------------------------------------------------------- the books


@dataclass(slots=True)
class _Entry:
    call: ToolCall
    spec: ToolSpec
    deadline: float | None = None


class ToolLedger:
    """Runs each call at most once, `limit` at a time, none longer than its timeout.

    `request` and `start` return what is to be started now: calls and their timeouts in seconds.
    """

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit
        self._open: dict[str, _Entry] = {}
        self._done: set[str] = set()

    @property
    def running(self) -> int:
        return sum(entry.deadline is not None for entry in self._open.values())

    @property
    def deadline(self) -> float | None:
        """When the next running call is out of time."""
        return min((entry.deadline for entry in self._open.values() if entry.deadline is not None), default=None)

    def request(self, call: ToolCall, spec: ToolSpec, now: float) -> list[tuple[ToolCall, float]]:
        """A call is wanted. One that was requested before, or that the client runs, starts nothing."""
        if call.id in self._open or call.id in self._done or spec.client_side:
            return []
        self._open[call.id] = _Entry(call, spec)
        return self.start(now)

    def settle(self, call_id: str) -> bool:
        """A result has arrived: whether it is the first one of a call that runs here, and so is wanted."""
        entry = self._open.get(call_id)
        if entry is None or entry.deadline is None:
            return False
        del self._open[call_id]
        self._done.add(call_id)
        return True

    def drop(self, call_ids: Iterable[str]) -> list[str]:
        """Forget calls whose results are not wanted any more; returns those that run and are to be cancelled."""
        dropped = {call_id: self._open.pop(call_id) for call_id in call_ids if call_id in self._open}
        self._done.update(dropped)
        return [call_id for call_id, entry in dropped.items() if entry.deadline is not None]

    def expired(self, now: float) -> list[str]:
        """The calls that are out of time."""
        return [call_id for call_id, e in self._open.items() if e.deadline is not None and e.deadline <= now]

    def start(self, now: float) -> list[tuple[ToolCall, float]]:
        """Let waiting calls run, in order, as far as the limit allows."""
        starting = []
        free = self.limit - self.running
        for entry in self._open.values():
            if free > 0 and entry.deadline is None:
                entry.deadline = now + entry.spec.timeout
                starting.append((entry.call, entry.spec.timeout))
                free -= 1
        return starting
