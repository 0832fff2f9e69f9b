import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from serve_fixtures.fakes import HEARD, FakeBundle, recording
from serve_fixtures.live import Live, live

TWO = recording(1.0, 2.0)
"""Two utterances, far enough apart to be two segments."""


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeBundle(), max_audio_seconds=20, max_body_bytes=4 << 20) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def upload(server: Live, data: bytes = TWO, name: str = "a.wav", **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": (name, data)}, data=fields)


def test_json_is_the_default(client: OpenAI) -> None:
    heard = client.audio.transcriptions.create(model="whisper-1", file=("q.wav", TWO))
    assert heard.text.replace(HEARD, "X").split() == ["X", "X"]
    assert heard.usage is not None
    assert heard.usage.type == "duration"
    assert heard.usage.seconds == pytest.approx(9.0)


def test_every_text_format(client: OpenAI) -> None:
    text = client.audio.transcriptions.create(model="fake", file=("q.wav", TWO), response_format="text")
    assert isinstance(text, str)
    assert text.replace(HEARD, "X").split() == ["X", "X"]
    srt = client.audio.transcriptions.create(model="fake", file=("q.wav", TWO), response_format="srt")
    assert srt.startswith("1\n00:00:0")
    assert srt.count("-->") == 2
    vtt = client.audio.transcriptions.create(model="fake", file=("q.wav", TWO), response_format="vtt")
    assert vtt.startswith("WEBVTT\n")


def test_verbose_json_has_segments_and_words_on_the_clock_of_the_recording(client: OpenAI) -> None:
    heard = client.audio.transcriptions.create(
        model="fake",
        file=("q.wav", TWO),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="zh",
        temperature=0.2,
        prompt="Names",
    )
    assert heard.language == "zh"
    assert heard.duration == pytest.approx(9.0)
    assert heard.segments is not None
    assert heard.words is not None
    first, second = heard.segments
    assert first.start < 0.5 < first.end < 2.0 < second.start < 4.1
    assert 0 > first.avg_logprob > -1
    assert [word.word for word in heard.words] == ["hello", "world"] * 2
    assert heard.words[2].start == pytest.approx(second.start)
    assert heard.words[3].end == pytest.approx(second.end)


def test_only_what_was_asked_for_is_in_verbose_json(server: Live) -> None:
    plain = upload(server, response_format="verbose_json").json()
    assert len(plain["segments"]) == 2
    assert "words" not in plain
    words = upload(server, response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
    assert "segments" not in words
    assert len(words["words"]) == 4


def test_the_async_client_streams_text_segment_by_segment(server: Live) -> None:
    async def listen() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
            stream = await client.audio.transcriptions.create(
                model="gpt-4o-transcribe", file=("q.wav", TWO), stream=True
            )
            return [event async for event in stream]

    *deltas, done = asyncio.run(listen())
    assert [event.type for event in deltas] == ["transcript.text.delta"] * 2
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text


def test_silence_is_an_empty_text(server: Live) -> None:
    silence = recording(0, 0, 0)
    assert upload(server, silence).json()["text"] == ""
    assert upload(server, silence, response_format="verbose_json").json()["segments"] == []
    events = upload(server, silence, stream="true").text
    assert json.loads(events.removeprefix("data: "))["text"] == ""


@pytest.mark.parametrize("format", ["flac", "mp3", "opus", "aac"])
def test_any_format_is_decoded_whatever_its_name(server: Live, format: str) -> None:
    answer = upload(server, recording(1.0, format=format), name="mystery.bin")
    assert answer.json()["text"] == HEARD


@pytest.mark.parametrize(
    ("data", "fields", "param"),
    [
        (b"", {}, None),
        (b"this is no recording", {}, None),
        (TWO[:30], {}, None),
        (TWO, {"language": "xx"}, "language"),
        (TWO, {"response_format": "diarized_json"}, "response_format"),
        (TWO, {"temperature": "2"}, "temperature"),
        (TWO, {"stream": "true", "response_format": "srt"}, "response_format"),
        (TWO, {"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        (TWO, {"timestamp_granularities[]": "phone", "response_format": "verbose_json"}, "timestamp_granularities[]"),
        (TWO, {"keywords": "x"}, "keywords"),
    ],
)
def test_what_cannot_be_done_is_refused(server: Live, data: bytes, fields: dict[str, str], param: str | None) -> None:
    answer = upload(server, data, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert param is None or error["param"].startswith(param)


def test_a_missing_file_is_named(server: Live, client: OpenAI) -> None:
    for fields in ({"files": {"other": b"x"}}, {"data": {"file": "text"}}, {"data": {"model": "fake"}}):
        answer = httpx.post(f"{server.url}/v1/audio/transcriptions", **fields)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file"), answer.text
    with pytest.raises(BadRequestError):
        client.audio.transcriptions.create(model="fake", file=("empty.wav", b""))


def test_too_long_a_recording_is_refused_before_it_is_heard(server: Live) -> None:
    calls = server.bundle.transcriber.calls
    answer = upload(server, recording(21.0))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert server.bundle.transcriber.calls == calls


def test_too_large_a_file_is_refused(server: Live, client: OpenAI) -> None:
    answer = upload(server, bytes(5 << 20))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "4 MiB" in answer.json()["error"]["message"]
