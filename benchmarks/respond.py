"""How fast and how well a GGUF model answers: tokens per second, time to first token, tool calls.

    python benchmarks/respond.py model.gguf [--threads 2] [--tools-only | --speed-only]

Everything is measured in one process, each figure over several replies; the median and the best are printed,
because the best says what the machine can do and the median what it did beside its other work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from stepaudio.speech.backends.llamacpp import LlamaCppResponder
from stepaudio.speech.roles import Finish, Message, Sampling, TextDelta, Tool, ToolCall

QUESTIONS = (
    "How many days are there in a leap year?",
    "Why does the sky look red at sunset?",
    "What should I cook for dinner on a Monday?",
    "Who wrote the play called Romeo and Juliet?",
    "一年有多少个星期？",
    "为什么树叶在秋天会变黄？",
)
HISTORY = [
    message
    for question, reply in (
        ("What is the largest planet?", "Jupiter is the largest planet, eleven times as wide as the Earth."),
        ("And which one is the hottest?", "Venus is the hottest, because its thick air holds the heat."),
        ("How far is the moon?", "The moon is about three hundred and eighty thousand kilometres away."),
        ("Has anyone walked on it?", "Yes, twelve people walked on the moon between 1969 and 1972."),
    )
    for message in (Message("user", question), Message("assistant", reply))
]
TOOLS = (
    Tool(
        "get_weather",
        "Current weather of a city.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    ),
    Tool(
        "set_timer",
        "Start a timer.",
        {
            "type": "object",
            "properties": {"seconds": {"type": "integer", "minimum": 1}, "label": {"type": "string"}},
            "required": ["seconds"],
        },
    ),
    Tool(
        "search",
        "Search the web.",
        {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    ),
)
# Prompt, tool that should be called (None: no tool), what one argument must contain.
ASKED: tuple[tuple[str, str | None, str, tuple[str, ...]], ...] = (
    ("What's the weather in Paris?", "get_weather", "city", ("Paris", "巴黎")),
    ("Set a timer for five minutes.", "set_timer", "seconds", ("300",)),
    ("Search the web for the best pizza in Naples.", "search", "query", ("pizza",)),
    ("What is the weather in Berlin in fahrenheit?", "get_weather", "unit", ("fahrenheit",)),
    ("Set a ninety second timer called tea.", "set_timer", "seconds", ("90",)),
    ("上海今天天气怎么样？", "get_weather", "city", ("上海", "Shanghai")),
    ("定一个十分钟的计时器。", "set_timer", "seconds", ("600",)),
    ("帮我上网搜索最新的电影。", "search", "query", ("电影", "movie")),
    ("北京现在多少摄氏度？", "get_weather", "city", ("北京", "Beijing")),
    ("Please look up online who won the last World Cup.", "search", "query", ("World Cup",)),
    ("Hello, who are you?", None, "", ()),
    ("What is two plus two?", None, "", ()),
    ("Tell me a joke.", None, "", ()),
    ("你好，你叫什么名字？", None, "", ()),
    ("法国的首都是哪里？", None, "", ()),
    ("Thank you, goodbye.", None, "", ()),
)


class Timed(NamedTuple):
    """A reply: its text and calls, seconds to its first event and to its end, and its token counts."""

    text: str
    calls: list[ToolCall]
    first: float
    total: float
    finish: Finish


def timed(responder: LlamaCppResponder, messages: list[Message], tools: tuple[Tool, ...] = ()) -> Timed:
    text, calls, first = "", [], 0.0
    finish = Finish("stop")
    started = time.perf_counter()
    for event in responder.respond(messages, tools=tools, sampling=Sampling(max_tokens=64)):
        first = first or time.perf_counter() - started
        match event:
            case TextDelta(piece):
                text += piece
            case ToolCall():
                calls.append(event)
            case Finish():
                finish = event
    return Timed(text, calls, first, time.perf_counter() - started, finish)


def speed(responder: LlamaCppResponder) -> None:
    system = [Message("system", "You are a helper. " + "Mind the details. " * 60)]
    cold = timed(responder, [*system, Message("user", QUESTIONS[0])])
    print(f"system prompt                 {responder.count_tokens([])} tokens, evaluated once")
    fresh = cold.finish.prompt_tokens - cold.finish.cached_tokens
    print(
        f"unseen prompt                 {fresh} tokens: first token {cold.first:.2f} s, {fresh / cold.first:.0f} tok/s"
    )
    for name, history in (("question", []), ("with 8 turns of history", HISTORY)):
        if history:
            responder.warm(history)
        replies = [timed(responder, [*history, Message("user", question)]) for question in QUESTIONS]
        new = statistics.mean(reply.finish.prompt_tokens - reply.finish.cached_tokens for reply in replies)
        firsts = [reply.first for reply in replies]
        print(
            f"{name:<29} first token {statistics.median(firsts):.2f} s median, {min(firsts):.2f} s best "
            f"({new:.0f} new tokens)"
        )
    rates = [
        (reply.finish.completion_tokens - 1) / (reply.total - reply.first)
        for reply in replies
        if reply.finish.completion_tokens > 4
    ]
    print(f"writing                       {statistics.median(rates):.1f} tok/s median, {max(rates):.1f} best")


def tool_use(responder: LlamaCppResponder) -> None:
    hits = right = false_alarms = wanted = 0
    for prompt, tool, argument, values in ASKED:
        reply = timed(responder, [Message("user", prompt)], TOOLS)
        wanted += tool is not None
        named = [call for call in reply.calls if call.name == tool]
        good = [call for call in named if any(value in str(call.arguments.get(argument)) for value in values)]
        hits += bool(named)
        right += bool(good)
        false_alarms += len(reply.calls) - len(named)
        shown = "; ".join(f"{call.name}({dict(call.arguments)})" for call in reply.calls) or reply.text
        print(
            f"  {'ok ' if bool(good) == (tool is not None) and len(reply.calls) == len(good) else 'BAD'} {prompt}  {shown}"
        )
    precision = hits / (hits + false_alarms) if hits + false_alarms else 0.0
    print(f"tool calls: recall {hits}/{wanted}, precision {precision:.2f}, arguments right {right}/{wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--tools-only", action="store_true")
    only.add_argument("--speed-only", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    responder = LlamaCppResponder(args.model, threads=args.threads)
    print(f"{args.model.name}: loaded and warm in {time.perf_counter() - started:.1f} s")
    if not args.tools_only:
        speed(responder)
    if not args.speed_only:
        tool_use(responder)
    responder.close()


if __name__ == "__main__":
    main()
