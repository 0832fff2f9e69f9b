"""Tool calls in Step-Audio 2's published format, the only one that StepFun has published for audio models.

Tools are declared in a turn of role `tool_json_schemas` that holds a JSON array. The assistant writes

    <tool_call>function
    name
    {"argument": "value"}</tool_call>

any number of times, after ordinary text if it likes. A result comes back in a turn of role `input` whose
lines are `function_output`, the tool's name and the result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
DECLARE_ROLE = "tool_json_schemas"
RESULT_ROLE = "input"


def declare(tools: Sequence[Mapping[str, Any]]) -> str:
    """Content of the turn that declares tools; each is an OpenAI-style function with name, description,
    parameters."""
    return json.dumps([{"type": "function", "function": dict(tool)} for tool in tools], ensure_ascii=False)


def render_call(name: str, arguments: str) -> str:
    """A call as the assistant writes it; `arguments` is JSON text."""
    return f"{OPEN}function\n{name}\n{arguments}{CLOSE}"


def render_result(name: str, result: str) -> str:
    """Content of the turn that brings a tool's result back."""
    return f"function_output\n{name}\n{result}"


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary reply text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins: the name is complete, its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of the JSON arguments of the call that began last."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is complete. `closed` is false when the reply ended inside it."""

    closed: bool


Piece = Text | CallStart | CallArguments | CallEnd


class ToolCallParser:
    """Reply text as it is written to text and tool calls. However the text is cut, the joined pieces are the
    same.

    What does not follow the format inside `<tool_call>` (no `function` line) becomes ordinary text, so that
    nothing the model wrote is lost.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._buffer = ""
        self._arguments = False  # inside a call, past its name

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while (piece := self._next()) is not None:
            pieces.append(piece)
        return pieces

    def flush(self) -> list[Piece]:
        """The end of the reply: what was held back, and the end of a call that was not closed."""
        rest, inside = self._buffer, self._arguments
        self.reset()
        if inside:
            return [CallArguments(rest), CallEnd(closed=False)] if rest else [CallEnd(closed=False)]
        return [Text(rest)] if rest else []

    def _next(self) -> Piece | None:
        if self._arguments:
            text = self._take_until(CLOSE)
            if text:
                return CallArguments(text)
            if self._buffer.startswith(CLOSE):
                self._buffer = self._buffer.removeprefix(CLOSE)
                self._arguments = False
                return CallEnd(closed=True)
            return None
        text = self._take_until(OPEN)
        if text:
            return Text(text)
        return self._call_start() if self._buffer.startswith(OPEN) else None

    def _call_start(self) -> Piece | None:
        head = self._buffer.removeprefix(OPEN).split("\n", 2)
        # `function` may be followed by more only once its line has ended.
        if not (head[0] == "function" or (len(head) == 1 and "function".startswith(head[0]))):
            self._buffer = self._buffer.removeprefix(OPEN)
            return Text(OPEN)
        if len(head) < 3:
            return None
        self._buffer, self._arguments = head[2], True
        return CallStart(head[1])

    def _take_until(self, mark: str) -> str:
        """Take the text before `mark`, or as much as cannot be the beginning of it."""
        stop = self._buffer.find(mark)
        if stop < 0:
            held = next(n for n in range(len(mark) - 1, -1, -1) if self._buffer.endswith(mark[:n]))
            stop = len(self._buffer) - held
        text, self._buffer = self._buffer[:stop], self._buffer[stop:]
        return text
