import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from serve_fixtures.fakes import HEARD, FakeBundle, recording
from serve_fixtures.live import Live, live
from stepaudio.audio.io import read
from stepaudio.speech.roles import Message, ToolCall

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HELLO: Any = [{"role": "user", "content": "hello big world"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeBundle(), max_audio_seconds=12) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def spoken(data: bytes, format: str = "wav") -> Any:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": format}}
    return [{"role": "user", "content": [part]}]


# ---------------------------------------------------------------- text


def test_a_reply_in_text(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="gpt-4o-audio-preview", messages=HELLO)
    assert reply.choices[0].message.content == "hello big world"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (3, 3, 6)
    assert reply.model == "gpt-4o-audio-preview"


def test_the_async_client_streams_the_same_reply() -> None:
    async def talk(server: Live) -> tuple[str, list[Any]]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
            stream = await client.chat.completions.create(
                model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks

    with live(FakeBundle()) as server:
        text, chunks = asyncio.run(talk(server))
    assert text == "hello big world"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 6
    assert len({chunk.id for chunk in chunks}) == 1


def test_sampling_reaches_the_model(server: Live, client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=2, temperature=0.7, top_p=0.9, seed=5, stop=["a", "b"]
    )
    assert reply.choices[0].finish_reason == "length"
    sampling = server.bundle.responder.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (2, 0.7, 0.9)
    assert (sampling.seed, sampling.stop) == (5, ("a", "b"))
    client.chat.completions.create(model="fake", messages=HELLO, max_completion_tokens=1, stop="c")
    assert (server.bundle.responder.sampling.max_tokens, server.bundle.responder.sampling.stop) == (1, ("c",))


# ---------------------------------------------------------------- tools


def test_a_tool_is_called_and_its_result_comes_back(server: Live, client: OpenAI) -> None:
    question: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}]
    reply = client.chat.completions.create(model="fake", messages=question, tools=[WEATHER])
    assert reply.choices[0].finish_reason == "tool_calls"
    message = reply.choices[0].message
    assert message.tool_calls is not None
    call = message.tool_calls[0]
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Zürich"})

    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    # The whole message goes back as it came, as most callers do it.
    history: Any = [*question, message.model_dump(), result]
    reply = client.chat.completions.create(model="fake", messages=history, tools=[WEATHER])
    assert reply.choices[0].message.content == "sunny"
    assert server.bundle.responder.seen == [
        Message("system", "Be brief."),
        Message("user", "Weather?"),
        Message("assistant", "", (ToolCall("call_1", "weather", {"city": "Zürich"}),)),
        Message("tool", "sunny", tool_call_id="call_1"),
    ]


def test_a_streamed_tool_call_is_put_together_by_the_stock_client(client: OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=HELLO, tools=[WEATHER]) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Zürich"}


def test_tool_choice_names_a_tool_or_forbids_them(client: OpenAI) -> None:
    other: Any = {"type": "function", "function": {"name": "other"}}
    named = client.chat.completions.create(
        model="fake",
        messages=HELLO,
        tools=[WEATHER, other],
        tool_choice={"type": "function", "function": {"name": "other"}},
    )
    assert named.choices[0].message.tool_calls is not None
    assert named.choices[0].message.tool_calls[0].function.name == "other"  # type: ignore[union-attr]
    none = client.chat.completions.create(model="fake", messages=HELLO, tools=[WEATHER], tool_choice="none")
    assert none.choices[0].message.content == "hello big world"


# ---------------------------------------------------------------- speech


@pytest.mark.parametrize("format", ["wav", "mp3", "flac"])
def test_a_spoken_question_is_heard(client: OpenAI, format: str) -> None:
    reply = client.chat.completions.create(model="fake", messages=spoken(recording(1, format=format), format))
    assert reply.choices[0].message.content == HEARD


def test_the_same_recording_is_heard_once(server: Live, client: OpenAI) -> None:
    messages = spoken(recording(0.7))
    client.chat.completions.create(model="fake", messages=messages)
    calls = server.bundle.transcriber.calls
    client.chat.completions.create(model="fake", messages=[*messages, {"role": "user", "content": "again"}])
    assert server.bundle.transcriber.calls == calls
    assert server.bundle.responder.seen[0].content == HEARD


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "aac"])
def test_a_spoken_reply(client: OpenAI, format: Any) -> None:
    reply = client.chat.completions.create(
        model="fake", messages=HELLO, modalities=["text", "audio"], audio={"voice": "alloy", "format": format}
    )
    message = reply.choices[0].message
    assert message.content is None
    assert message.audio is not None
    assert message.audio.transcript.split() == ["hello", "big", "world"]
    samples = read(base64.b64decode(message.audio.data), rate=24_000)
    assert len(samples) / 24_000 == pytest.approx(0.3, abs=0.09)
    assert np.abs(samples).max() > 0.3


def test_a_streamed_spoken_reply_is_pcm16(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="fake",
        messages=HELLO,
        modalities=["text", "audio"],
        audio={"voice": "tone", "format": "pcm16"},
        stream=True,
    )
    chunks = list(stream)
    audio = [chunk.choices[0].delta.audio for chunk in chunks if chunk.choices[0].delta.audio]
    assert sum(len(base64.b64decode(piece.data)) for piece in audio if piece.data) == 3 * 2400 * 2
    assert "".join(f" {piece.transcript}" for piece in audio if piece.transcript).split() == ["hello", "big", "world"]
    assert len({piece.id for piece in audio}) == 1
    assert audio[-1].expires_at
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_an_earlier_spoken_reply_is_referred_to_by_its_id(server: Live, client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="fake", messages=HELLO, modalities=["text", "audio"], audio={"voice": "tone", "format": "wav"}
    )
    message = reply.choices[0].message
    assert message.audio is not None
    for past in ({"id": message.audio.id}, message.audio.model_dump(), {"id": "gone", "transcript": "hello big world"}):
        history: Any = [*HELLO, {"role": "assistant", "audio": past}, {"role": "user", "content": "go on"}]
        client.chat.completions.create(model="fake", messages=history)
        assert server.bundle.responder.seen[1].content.split() == ["hello", "big", "world"]
    with pytest.raises(NotFoundError, match="unknown or has expired"):
        client.chat.completions.create(model="fake", messages=[{"role": "assistant", "audio": {"id": "gone"}}])


def test_a_tool_call_instead_of_speech(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="fake",
        messages=HELLO,
        tools=[WEATHER],
        modalities=["text", "audio"],
        audio={"voice": "tone", "format": "wav"},
    )
    assert reply.choices[0].finish_reason == "tool_calls"
    assert reply.choices[0].message.audio is None


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.user.content"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 1.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"top_k": 5}, "top_k"),
        ({"temperature": 3}, "temperature"),
        ({"seed": 2**70}, "seed"),
        ({"modalities": ["audio", "text"]}, "audio"),
        ({"modalities": ["audio"], "stream": True, "audio": {"format": "mp3"}}, "audio.format"),
        ({"stream_options": {}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "array"}}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"messages": spoken(b"not audio at all")}, None),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server: Live, change: dict[str, Any], param: str | None) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": HELLO, **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert param is None or error["param"].startswith(param)


def test_neutral_values_of_unsupported_fields_are_taken(client: OpenAI) -> None:
    client.chat.completions.create(
        model="fake",
        messages=HELLO,
        n=1,
        logprobs=False,
        frequency_penalty=0.0,
        presence_penalty=0,
        response_format={"type": "text"},
        user="me",
        store=False,
        metadata={"a": "b"},
        parallel_tool_calls=True,
    )


@pytest.mark.parametrize("data", ["!!!", "AAA", "ÄÖÜ", "data:audio/wav;base64,AAAA"])
def test_garbled_base64_is_refused(client: OpenAI, data: str) -> None:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    with pytest.raises(BadRequestError, match="not valid base64"):
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": [part]}])  # type: ignore[list-item]


def test_the_recordings_of_a_request_share_its_limit(server: Live) -> None:
    six_seconds = spoken(recording(5.1))
    other_six = spoken(recording(5.2))
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": six_seconds})
    assert answer.status_code == 200
    # The first is remembered and costs nothing now; two new ones are too much together.
    fresh = spoken(recording(5.3))
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [*other_six, *fresh]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_tool_schemas_may_not_be_nested_without_end(server: Live) -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"type": "object", "properties": {"x": schema}}
    tool = {"type": "function", "function": {"name": "deep", "parameters": schema}}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": HELLO, "tools": [tool]})
    assert answer.status_code == 400
    assert "nested" in answer.json()["error"]["message"]
