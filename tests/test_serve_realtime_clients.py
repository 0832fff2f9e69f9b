"""Stock clients of the protocol hold a spoken conversation with the server."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession
from openai import AsyncOpenAI, OpenAI

from realtime_fixtures import RATE, TalkBundle, pcm, speech, within
from serve_fixtures.live import Live, live
from stepaudio import load
from stepaudio.audio.pcm import Samples, to_float, to_int16
from stepaudio.speech.roles import Message, Tool, ToolCall

STEP = 0.05
PATIENCE = 30


@pytest.fixture
def server() -> Iterator[Live]:
    """One per test: what a session of the last test still hears would be counted as a turn of this one."""
    with live(TalkBundle()) as running:
        yield running


def weather_answer(messages: list[Message], tools: list[Tool]) -> list[str | ToolCall]:
    last = messages[-1]
    if last.role == "tool":
        return [f"In Paris it is {last.content}. " + "And so on. " * 30]
    if "weather" in last.content:
        return ["Let me see. ", ToolCall("x", "get_weather", {"city": "Paris"})]
    return ["You are welcome."]


def in_steps(samples: Samples, step: float = STEP) -> Iterator[Samples]:
    for start in range(0, len(samples), int(step * RATE)):
        yield samples[start : start + int(step * RATE)]


def joined(deltas: list[str]) -> Samples:
    return to_float(np.frombuffer(b"".join(map(base64.b64decode, deltas)), "<i2"))


TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def test_openai_sync(server: Live) -> None:
    bundle = server.bundle
    bundle.responder.answer = weather_answer
    bundle.transcriber.lines = ["what is the weather", "thanks"]
    with OpenAI(base_url=f"{server.url}/v1", api_key="none").realtime.connect(model="gpt-realtime") as connection:
        connection.session.update(session={"type": "realtime", "tools": [TOOL], "instructions": "Be brief."})
        for piece in in_steps(speech()):
            connection.input_audio_buffer.append(audio=pcm(piece))
        audio: list[str] = []
        texts: list[str] = []
        interrupted = False
        for event in connection:
            if event.type == "response.function_call_arguments.done":
                assert event.arguments == '{"city": "Paris"}'
                connection.conversation.item.create(
                    item={"type": "function_call_output", "call_id": event.call_id, "output": "sunny"}
                )
            elif event.type == "response.output_audio.delta":
                audio.append(event.delta)
            elif event.type == "response.done":
                texts.append(_text(event.response))
                if len(texts) == 1:
                    connection.response.create()
                elif not interrupted:
                    interrupted = True
                    time.sleep(0.6)  # some of it is heard
                    for piece in in_steps(speech(1.2)):
                        connection.input_audio_buffer.append(audio=pcm(piece))
                else:
                    break
            assert event.type != "error", event
    assert texts[0] == "Let me see. "
    assert texts[1].startswith("In Paris it is sunny. And so on.")
    assert texts[2] == "You are welcome."
    assert np.abs(joined(audio)).max() > 0.4
    # What the user had not heard of the weather is not in the history of the last reply.
    (weather,) = [m.content for m in bundle.responder.prompts[-1] if "In Paris" in m.content]
    assert len(weather) < len(texts[1])


def test_openai_async(server: Live) -> None:
    server.bundle.responder.answer = weather_answer
    server.bundle.transcriber.lines = ["what is the weather", "thanks"]
    asyncio.run(within(PATIENCE, _converse_async(server)))


async def _converse_async(server: Live) -> None:
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
    # With a bounded queue the client's close would wait for events that nobody reads any more.
    unbounded: Any = {"max_queue": None}
    async with client.realtime.connect(model="gpt-realtime", websocket_connection_options=unbounded) as connection:
        await connection.session.update(session={"type": "realtime", "tools": [TOOL]})

        async def talk(samples: Samples) -> None:
            for piece in in_steps(samples):
                await connection.input_audio_buffer.append(audio=pcm(piece))

        await talk(speech())
        texts: list[str] = []
        speaking, played = "", 0
        async for event in connection:
            assert event.type != "error", event
            if event.type == "response.function_call_arguments.done":
                await connection.conversation.item.create(
                    item={"type": "function_call_output", "call_id": event.call_id, "output": "sunny"}
                )
            elif event.type == "response.output_audio.delta":
                played += 1
                if texts and played == 3:
                    await talk(speech(1.2))
            elif event.type == "input_audio_buffer.speech_started" and texts:
                await connection.conversation.item.truncate(item_id=speaking, content_index=0, audio_end_ms=100)
            elif event.type == "conversation.item.truncated":
                assert event.audio_end_ms == 100
            elif event.type == "response.output_item.added":
                speaking, played = event.item.id or "", 0
            elif event.type == "response.done":
                texts.append(_text(event.response))
                if len(texts) == 1:
                    await connection.response.create()
                if len(texts) == 3:
                    break
    assert texts[2] == "You are welcome."


def _text(response: Any) -> str:
    return "".join(part.transcript or "" for item in response.output if item.type == "message" for part in item.content)


# ---------------------------------------------------------------- openai-agents


def test_openai_agents(server: Live) -> None:
    server.bundle.responder.answer = weather_answer
    server.bundle.transcriber.lines = ["what is the weather", "thanks"]
    asyncio.run(within(PATIENCE, _agents_conversation(server.url, speech(1.0, 2.5), speech(1.2, 2.5))))
    said = [message.content for message in server.bundle.responder.prompts[-1] if message.role == "assistant"]
    assert any(text.startswith("In Paris it is sunny") and len(text) < 200 for text in said)


@asynccontextmanager
async def agents_session(url: str, tools: list[Any]) -> AsyncIterator[RealtimeSession]:
    agent = RealtimeAgent(name="Guide", instructions="You help people. Use the tools.", tools=tools)
    runner = RealtimeRunner(agent)
    address = f"{url.replace('http', 'ws', 1)}/v1/realtime?model=gpt-realtime"
    async with await runner.run(model_config={"url": address, "api_key": "none"}) as session:
        yield session


async def _agents_conversation(url: str, question: Samples, interruption: Samples) -> None:
    """A question that needs a tool; its answer is interrupted; the interruption is answered."""
    asked: list[str] = []
    seen: list[str] = []
    spoken = 0

    @function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "sunny"

    async with agents_session(url, [get_weather]) as session:

        async def talk(samples: Samples) -> None:
            for piece in in_steps(samples):
                await session.send_audio(to_int16(piece).tobytes())
                await asyncio.sleep(STEP / 2)

        talking = asyncio.create_task(talk(question))
        interrupted = False
        async for event in session:
            seen.append(event.type)
            assert event.type != "error", event
            if event.type == "audio":
                spoken += len(event.audio.data)
                if asked and not interrupted and seen.count("agent_end") >= 1 and spoken > RATE:
                    interrupted = True
                    await talking
                    talking = asyncio.create_task(talk(interruption))
            elif event.type == "agent_end" and "audio_interrupted" in seen:
                break
        await talking
    assert asked == ["Paris"]
    assert {"tool_start", "tool_end", "audio", "audio_interrupted", "agent_start"} <= set(seen)


# ---------------------------------------------------------------- with real models


@pytest.mark.weights
def test_a_conversation_with_real_models() -> None:
    """The client speaks with the voice of the bundle itself: it has a tool used, and interrupts the answer."""
    with load("tiny") as bundle, live(bundle) as server:
        request, question = (
            np.concatenate([speech.samples for speech in bundle.say(text)])
            for text in ("Please open the garage door.", "Please wait. What is the capital of France?")
        )
        asked, heard, audio = asyncio.run(within(300, _converse(server.url, request, question)))
    assert "garage" in asked.lower()
    assert ["garage" in heard[0].lower(), "france" in heard[-1].lower()] == [True, True]
    assert np.abs(joined(audio)).max() > 0.05


DOOR: Any = {
    "type": "function",
    "name": "open_door",
    "description": "Opens a door of the house",
    "parameters": {"type": "object", "properties": {"door": {"type": "string"}}, "required": ["door"]},
}


async def _converse(url: str, request: Samples, question: Samples) -> tuple[str, list[str], list[str]]:
    """What the tool was asked for, what the agent heard, and the audio of its answer to the interruption."""
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    pieces = deque(in_steps(request))
    asked, heard, audio = "", list[str](), list[str]()
    interrupting = False
    listens: Any = {"type": "realtime", "tools": [DOOR], "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.session.update(session=listens)

        async def microphone() -> None:
            while True:
                piece = pieces.popleft() if pieces else np.zeros(int(STEP * RATE), np.float32)
                await connection.input_audio_buffer.append(audio=pcm(piece))
                await asyncio.sleep(STEP)

        listening = asyncio.create_task(microphone())
        async for event in connection:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.completed":
                heard.append(event.transcript)
            elif event.type == "response.function_call_arguments.done" and not asked:
                asked = event.arguments
                result: Any = {"type": "function_call_output", "call_id": event.call_id, "output": "It is open now."}
                await connection.conversation.item.create(item=result)
            elif event.type == "response.done" and asked and not interrupting:
                # A model as small as this one would go on calling tools for as long as it has some.
                await connection.session.update(session={"type": "realtime", "tools": []})
                await connection.response.create()
            elif event.type == "response.output_audio.delta" and asked:
                if not interrupting:
                    interrupting = True
                    pieces.extend(in_steps(question))
                elif len(heard) > 1:
                    audio.append(event.delta)
                    if len(audio) > 5:
                        break
            elif event.type == "response.done" and audio:
                break
        listening.cancel()
    return asked, heard, audio
