"""What the language model is told: who it is, how to write for the ear, and the ChatML its prompt is written in."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from stepaudio.speech.roles import HearingResponder, Message, Responder, Samples, Tool

# Kept short: every token of it is evaluated once per process and held in every slot.
_STYLE = (
    "You are Stepaudio, an open-source voice assistant made by the Stepaudio project, not by OpenAI. "
    "Every word you write is spoken aloud: reply in the user's language with one to three short sentences of plain "
    "speech, without markdown, lists, numbering, code, emoji or links. Begin with the answer itself."
)
_NO_LIVE_FACTS = (
    " You have no clock, no calendar, no weather and no news: when asked for those, say that you cannot check. "
    # Small models follow an English rule about Chinese questions half of the time.
    "被问到日期、时间、天气或新闻时，说你查不到。"
)


def spoken(instructions: str | None = None, *, tools: bool = False) -> str:
    """The system prompt of a spoken conversation, in English and Chinese: identity, style, then the caller's own
    `instructions`. With `tools` it does not say that live facts are out of reach: a model that was told so does not
    look them up either.
    """
    prompt = _STYLE if tools else _STYLE + _NO_LIVE_FACTS
    return f"{prompt}\n\n{instructions.strip()}" if instructions and instructions.strip() else prompt


def with_audio(messages: Sequence[Message], responder: Responder, samples: Samples) -> Sequence[Message]:
    """The messages, the last one of the user's with its audio, samples [T] at 16 kHz, if the responder hears it."""
    if not isinstance(responder, HearingResponder) or len(samples) > responder.hears_seconds * 16_000:
        return messages
    asked = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if asked is None:
        return messages
    return [*messages[:asked], replace(messages[asked], audio=samples), *messages[asked + 1 :]]


USER_TURN = "<|im_start|>user\n"
ASSISTANT_TURN = "<|im_start|>assistant\n"
CALL_OPENING = "<tool_call>\n"
END = "<|im_end|>\n"

_CONTROL = re.compile(r"<\|(?=\w+\|>)")

_TOOLS_HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def answer_tool(names: Collection[str]) -> Tool:
    """The function that stands for an answer in words, listed before the caller's own functions (whose names are
    given). With it, choosing a function also says when none fits.
    """
    name = "answer"
    while name in names:
        name += "_"
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    return Tool(
        name,
        "Answer the user in words: greetings, names, jokes, thanks, facts, sums, and everything that no other "
        "function does.",
        text,
    )


def chatml(messages: Sequence[Message], tools: Sequence[Tool] = (), *, system: str = "") -> str:
    """The closed turns of a conversation in ChatML, with tools and their results as Qwen2.5 was trained on them.

    Follow it with `ASSISTANT_TURN` for a reply, or `user_turn` for a prefix that the rest of that turn will extend.
    `system` is used when `messages` do not begin with a system message. Control tokens inside a message are
    broken up, so that no text can open a turn.
    """
    if messages and messages[0].role == "system":
        system, messages = messages[0].content, messages[1:]
    system = _plain(system)
    if tools:
        signatures = "".join(f"\n{_plain(_signature(tool))}" for tool in tools)
        system += f"{_TOOLS_HEAD}{signatures}{_TOOLS_TAIL}"
    # An explicit system turn even when empty: without one these models fall back to another name.
    return f"<|im_start|>system\n{system}{END}" + turns(messages)


def turns(messages: Sequence[Message]) -> str:
    """The turns after the system prompt. Neighbouring tool results share one user turn."""
    parts = []
    for index, message in enumerate(messages):
        text = _plain(message.content)
        if message.role == "tool":
            first = index == 0 or messages[index - 1].role != "tool"
            last = index + 1 == len(messages) or messages[index + 1].role != "tool"
            parts.append(USER_TURN.rstrip("\n") if first else "")
            parts.append(f"\n<tool_response>\n{text}\n</tool_response>{END if last else ''}")
        else:
            calls = [
                _plain(json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False))
                for call in message.tool_calls
            ]
            body = [text] * bool(text) + [f"{CALL_OPENING}{call}\n</tool_call>" for call in calls]
            parts.append(f"<|im_start|>{message.role}\n" + "\n".join(body) + END)
    return "".join(parts)


def user_turn(words: str) -> str:
    """A user turn that is not closed yet."""
    return USER_TURN + _plain(words)


def _plain(text: str) -> str:
    return _CONTROL.sub("< |", text)


def _signature(tool: Tool) -> str:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)
