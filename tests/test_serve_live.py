"""The stock `openai` client against a live server on loopback, with the real models of the bundle `tiny`."""

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

import stepaudio
from serve_fixtures.live import Live, live, until

pytestmark = pytest.mark.weights

SENTENCE = "The quick brown fox jumps over the lazy dog."
PARAGRAPH = (
    "Nora opened the window and looked at the harbour. Three small boats were coming home from the sea. "
    "She counted the lanterns, closed the book, and walked down the hill to meet her brother."
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stepaudio.load("tiny")) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def words(text: str) -> list[str]:
    return "".join(char for char in text.lower() if char.isalnum() or char == " ").split()


@pytest.mark.parametrize("format", ["mp3", "wav"])
def test_what_is_said_is_heard(client: OpenAI, format: Any) -> None:
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input=SENTENCE, response_format=format).read()
    heard = client.audio.transcriptions.create(
        model="whisper-1",
        file=(f"a.{format}", speech),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert heard.language == "en"
    assert len(set(words(heard.text)) & set(words(SENTENCE))) >= 7, heard.text
    assert heard.words is not None
    times = [time for word in heard.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= heard.duration + 0.5


def test_chinese_is_said_and_heard(client: OpenAI) -> None:
    speech = client.audio.speech.create(
        model="gpt-4o-mini-tts",
        voice="zf_xiaobei",
        input="今天天气很好，我们去公园吧。",
        response_format="wav",
    ).read()
    heard = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", speech), language="zh")
    assert len(set(heard.text) & set("今天天气很好我们去公园吧")) >= 6, heard.text


def test_the_async_client_streams_speech_and_a_transcript(server: Live) -> None:
    async def talk() -> tuple[list[int], list[Any]]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
            pieces = []
            request = client.audio.speech.with_streaming_response.create(
                model="tiny", voice="heart", input=PARAGRAPH, response_format="wav"
            )
            async with request as answer:
                async for piece in answer.iter_bytes():
                    if not pieces:
                        assert server.state.slots.busy == 1, "the first bytes came when all was done"
                    pieces.append(piece)
            events = await client.audio.transcriptions.create(
                model="tiny", file=("a.wav", b"".join(pieces)), stream=True
            )
            return [len(piece) for piece in pieces], [event async for event in events]

    sizes, events = asyncio.run(talk())
    assert len(sizes) > 3
    *deltas, done = events
    assert deltas
    assert "".join(event.delta for event in deltas) == done.text
    assert len(set(words(done.text)) & set(words(PARAGRAPH))) >= 15, done.text


def test_chat_streams_text_and_counts_tokens(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=40,
    )
    chunks = list(stream)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(chunks) > 4
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens > 5
    assert 0 < usage.completion_tokens <= 40


def test_chat_calls_a_tool_and_uses_its_result(client: OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    with client.chat.completions.stream(model="tiny", messages=question, tools=[WEATHER]) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    call = message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] == "Paris"
    history: Any = [
        *question,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "It is 31 degrees and sunny."},
    ]
    reply = client.chat.completions.create(model="tiny", messages=history, tools=[WEATHER], tool_choice="none")
    assert reply.choices[0].message.content
    assert "31" in reply.choices[0].message.content


def test_a_spoken_question_gets_a_spoken_answer(client: OpenAI) -> None:
    question = client.audio.speech.create(
        model="tiny", voice="heart", input="What is the capital of France?", response_format="wav"
    ).read()
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(question).decode(), "format": "wav"}}
    reply = client.chat.completions.create(
        model="gpt-4o-audio-preview",
        messages=[{"role": "user", "content": [part]}],
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "mp3"},
        max_tokens=40,
    )
    audio = reply.choices[0].message.audio
    assert audio is not None
    assert "Paris" in audio.transcript
    heard = client.audio.transcriptions.create(model="tiny", file=("a.mp3", base64.b64decode(audio.data)))
    assert "paris" in words(heard.text), heard.text


def test_the_examples_of_the_documentation_run(
    server: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parent.parent / "docs/http.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        code = code.replace("http://127.0.0.1:8000", server.url).replace('"small"', '"tiny"')
        exec(compile(code, "docs/http.md", "exec"), {"__name__": "example"})
    assert "capital of France" in capsys.readouterr().out
    assert (tmp_path / "reply.mp3").stat().st_size > 1000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/audio/speech", {"input": f"{SENTENCE} " * 60, "voice": "heart", "response_format": "pcm"}),
        ("/v1/audio/speech", {"input": f"{SENTENCE} " * 60, "voice": "af_bella", "response_format": "mp3"}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Count from one to five hundred."}], "max_tokens": 900},
        ),
    ],
    ids=["hibari", "kokoro", "chat"],
)
def test_real_work_stops_when_the_client_leaves(server: Live, path: str, body: dict[str, object]) -> None:
    slots = server.state.slots
    with server.post(path, body):
        until(lambda: slots.busy == 1)
    until(lambda: slots.busy == 0, seconds=5)
