"""Tool calls in model text: found while it streams, checked before anyone acts on them.

Small models write a correct call in many dresses: bare JSON, a fenced block, `<tool_call>` tags, several in a row,
after a sentence. `CallFinder` separates calls from words without holding words back; `Toolbox` turns what was found
into a `ToolCall` whose name exists and whose arguments are valid for the tool's JSON schema, or says why it cannot.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepaudio.errors import InputError, StepAudioError
from stepaudio.speech.roles import Tool, ToolCall

_OPENERS = ("<tool_call>", "<tools>", "```json", "```xml", "```tool_call", "```", "[")
_NESTING = 2  # such as a tag inside a fence, or a list inside a tag
_CLOSERS = ("</tool_call>", "</tools>", "```", "]", ",")
_KEYS = ('"name"', '"arguments"', '"parameters"', '"function"', '"type"')
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Attempt:
    """Text that has the shape of a call: `raw` is the JSON object as the model wrote it."""

    raw: str


class CallError(StepAudioError):
    """An attempted call cannot be carried out. `tool` is the tool it meant, when that exists."""

    code = "invalid_tool_call"

    def __init__(self, message: str, *, tool: Tool | None = None) -> None:
        super().__init__(message)
        self.tool = tool


class CallFinder:
    """Splits a stream of text into ordinary text and attempted calls.

    `push` returns what is settled so far, `flush` the rest; any way of cutting the stream gives the same text and
    the same attempts. Text is held back only while it could still open a call: an opening tag, a code fence or a
    brace, up to the first key. Wrapping (tags, fences, the commas and brackets of a list) is dropped with its call;
    everything else comes out as it went in. An object that the stream breaks off is an attempt too.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._text = ""
        self._scan = _ObjectScan()
        self._after_call = False

    def push(self, text: str) -> list[str | Attempt]:
        self._text += text
        return self._settle(ended=False)

    def flush(self) -> list[str | Attempt]:
        out = self._settle(ended=True)
        self.reset()
        return out

    def _settle(self, *, ended: bool) -> list[str | Attempt]:
        out: list[str | Attempt] = []
        while self._text:
            if self._scan.started:
                end = self._scan.find_end(self._text)
                if end is None and not ended:
                    break
                out.append(Attempt(self._text[:end]))
                self._text = "" if end is None else self._text[end:]
                self._scan = _ObjectScan()
                self._after_call = True
            elif self._after_call:
                rest, whole = _strip_closers(self._text, ended)
                self._text = rest
                if not whole:
                    break
                self._after_call = False
            else:
                words, brace = _find_call(self._text, ended)
                if words:
                    out.append(self._text[:words])
                if brace is None:
                    self._text = self._text[words:]
                    break
                self._text = self._text[brace:]
                self._scan.started = True
        return out


class _ObjectScan:
    """Finds where a JSON object ends, reading each character once."""

    def __init__(self) -> None:
        self.started = False
        self._at = self._depth = 0
        self._quoted = self._escaped = False

    def find_end(self, text: str) -> int | None:
        """Index just past the object that starts at 0, or None when `text` ends inside it."""
        while self._at < len(text):
            char = text[self._at]
            self._at += 1
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = char == "\\"
                self._quoted = char != '"'
            elif char == '"':
                self._quoted = True
            elif char == "{":
                self._depth += 1
            elif char == "}":
                self._depth -= 1
                if self._depth == 0:
                    return self._at
        return None


def _find_call(text: str, ended: bool) -> tuple[int, int | None]:
    """(characters that are ordinary text, index of the brace that opens a call or None)."""
    for start, char in enumerate(text):
        if char not in "<`[{":
            continue
        brace = _opening(text[start:])
        if brace is None and not ended:
            return start, None
        if brace is not None and brace >= 0:
            return start, start + brace
    return len(text), None


def _opening(text: str) -> int | None:
    """Index of the brace when `text` opens a call, -1 when it cannot, None when more text must decide."""
    rest = text
    for _ in range(_NESTING):
        if any(len(rest) < len(opener) and opener.startswith(rest) for opener in _OPENERS):
            return None
        opener = next((opener for opener in _OPENERS if rest.startswith(opener)), "")
        rest = rest[len(opener) :].lstrip()
        if not opener or rest.startswith("{"):
            break
    if not rest:
        return None
    key = rest[1:].lstrip()
    if rest[0] == "{" and any(key.startswith(name) for name in _KEYS):
        return len(text) - len(rest)
    return None if rest[0] == "{" and any(name.startswith(key) for name in _KEYS) else -1


def _strip_closers(text: str, ended: bool) -> tuple[str, bool]:
    """(`text` without the wrapping that ends a call, True when no more of it can follow)."""
    while True:
        rest = text.lstrip()
        closer = next((closer for closer in _CLOSERS if rest.startswith(closer)), None)
        if closer is None:
            open_end = not rest or any(closer.startswith(rest) for closer in _CLOSERS)
            return rest, ended or not open_end
        text = rest[len(closer) :]


class Toolbox:
    """The tools of one request, with their schemas checked once.

    Raises InputError for a schema that is not valid JSON Schema (draft 2020-12), for a name that is not a name or
    stands twice, and for a `choice` that is none of auto, none, required or a tool's name.
    """

    def __init__(self, tools: Sequence[Tool], choice: str = "auto") -> None:
        self._validators = {tool.name: _validator(tool) for tool in tools}
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) != len(tools):
            raise InputError("two tools have the same name; give each its own", param="tools")
        if choice not in ("auto", "none", "required", *self.tools):
            known = ", ".join(self.tools) or "no tools were given"
            raise InputError(f"tool_choice {choice!r} names no tool ({known})", param="tool_choice")
        if choice == "required" and not tools:
            raise InputError("tool_choice is required but no tools were given", param="tool_choice")
        self.choice = choice

    def parse(self, raw: str) -> ToolCall | None:
        """The call that an attempt stands for; None when it is an object of another kind.

        Raises CallError when a call is meant but broken off, of a tool that does not exist, or not valid.
        """
        try:
            # strict=False: models put real line breaks into strings.
            call = json.loads(raw, strict=False)
        except (ValueError, RecursionError):
            named = re.search(r'"name"\s*:\s*"([^"]*)"', raw)
            tool = self.tools.get(named[1]) if named else None
            raise CallError("the call is not complete JSON", tool=tool) from None
        if isinstance(call.get("function"), dict):
            call = call["function"]
        name = call.get("name", call.get("function"))
        if not isinstance(name, str) or name not in self.tools:
            if "arguments" not in call and "parameters" not in call:
                return None
            known = ", ".join(self.tools)
            raise CallError(f"there is no tool named {name!r}; the tools are: {known}")
        return self.check(name, call.get("arguments", call.get("parameters", {})))

    def check(self, name: str, arguments: object) -> ToolCall:
        """A call of tool `name` with harmless slips mended (`"5"` for 5); raises CallError when it is not valid."""
        from referencing.exceptions import Unresolvable

        tool = self.tools[name]
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}", strict=False)
            except (ValueError, RecursionError):
                raise CallError(f"the arguments of {name} are not JSON", tool=tool) from None
        arguments = _mend({} if arguments is None else arguments, tool.parameters)
        if not isinstance(arguments, dict):
            raise CallError(f"the arguments of {name} are not a JSON object", tool=tool)
        try:
            problem = next(self._validators[name].iter_errors(arguments), None)
        except Unresolvable as error:
            raise InputError(f"the parameters of tool {name}: {error}", param="tools") from None
        if problem is not None:
            where = "/".join(str(step) for step in problem.absolute_path) or "arguments"
            raise CallError(f"the call of {name} is not valid: {where}: {problem.message}", tool=tool)
        return ToolCall(f"call_{secrets.token_hex(8)}", name, arguments)


def _validator(tool: Tool) -> Any:
    import jsonschema
    from referencing import Registry

    if not _NAME.fullmatch(tool.name):
        raise InputError(
            f"{tool.name!r} cannot be a tool's name; use 1 to 64 letters, digits, '_', '-' and '.'", param="tools"
        )
    if tool.name in ("auto", "none", "required"):
        raise InputError(f"{tool.name!r} cannot be a tool's name: it is a tool_choice", param="tools")
    if tool.parameters.get("type", "object") != "object":
        raise InputError(f"the parameters of tool {tool.name} must be of type object", param="tools")
    kind = jsonschema.Draft202012Validator
    try:
        kind.check_schema(tool.parameters)
    except jsonschema.SchemaError as error:
        raise InputError(
            f"the parameters of tool {tool.name} are no JSON Schema: {error.message}", param="tools"
        ) from None
    # An empty registry: a `$ref` in a caller's schema must never make this process fetch a URL.
    return kind({"type": "object", **tool.parameters}, registry=Registry())


def _mend(value: Any, schema: object) -> Any:
    """`value` with slips mended that cannot change its meaning; anything else is left for the validator."""
    if not isinstance(schema, Mapping):
        return value
    options = schema.get("enum")
    if isinstance(options, list) and value not in options and isinstance(value, str):
        alike = [option for option in options if str(option).casefold() == value.strip().casefold()]
        return alike[0] if len(alike) == 1 else value
    kind = schema.get("type")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        needed = schema.get("required", [])
        return {
            key: _mend(item, known.get(key))
            for key, item in value.items()
            # A null for something optional means that it was left out.
            if item is not None or key in needed or _takes_null(known.get(key))
        }
    if isinstance(value, list):
        return [_mend(item, schema.get("items")) for item in value]
    if isinstance(value, str) and kind in ("integer", "number"):
        number = re.fullmatch(r"\s*(-?\d+)(\.\d+)?\s*", value)
        value = (float(value) if number[2] else int(value)) if number else value
    elif isinstance(value, str) and kind == "boolean":
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    elif kind == "string" and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    return value


def _takes_null(schema: object) -> bool:
    """Whether null may be meant: any schema but one whose plain `type` excludes it."""
    if not isinstance(schema, Mapping) or "type" not in schema:
        return True
    kinds = schema["type"]
    return "null" in (kinds if isinstance(kinds, list) else [kinds])
