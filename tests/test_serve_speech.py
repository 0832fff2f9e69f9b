import asyncio
import base64
import io
import json
from collections.abc import Iterator

import av
import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from serve_fixtures.fakes import FakeBundle
from serve_fixtures.live import Live, live, until
from stepaudio.audio.encode import FORMATS


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeBundle(), max_input_chars=1000) as running:
        yield running


@pytest.fixture
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def seconds_of(audio: bytes, format: str) -> float:
    if format == "pcm":
        return len(audio) / 2 / 24_000
    with av.open(io.BytesIO(audio)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_carries_the_whole_speech(client: OpenAI, format: str) -> None:
    answer = client.audio.speech.create(
        model="tts-1", voice="alloy", input="one two three four five", response_format=format
    )
    assert answer.response.headers["content-type"] == FORMATS[format]
    assert seconds_of(answer.read(), format) == pytest.approx(0.5, abs=0.09)


def test_the_default_format_is_mp3(client: OpenAI) -> None:
    answer = client.audio.speech.create(model="fake", voice="tone", input="one")
    assert answer.response.headers["content-type"] == "audio/mpeg"


def test_speed_reaches_the_speaker(client: OpenAI) -> None:
    pcm = client.audio.speech.create(model="fake", voice="tone", input="a b", response_format="pcm", speed=2).read()
    assert seconds_of(pcm, "pcm") == pytest.approx(0.1)


def test_the_async_client_hears_the_start_while_the_rest_is_still_being_spoken() -> None:
    async def listen(server: Live) -> int:
        size = 0
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
            request = client.audio.speech.with_streaming_response.create(
                model="gpt-4o-mini-tts", voice={"id": "tone"}, input="word " * 50, response_format="pcm"
            )
            async with request as answer:
                async for piece in answer.iter_bytes():
                    if not size:
                        assert server.bundle.work.running == 1
                    size += len(piece)
        return size

    with live(FakeBundle(pace=0.02)) as server:
        assert asyncio.run(listen(server)) == 50 * 2400 * 2


def test_events_carry_the_same_audio(server: Live, client: OpenAI) -> None:
    body = {"input": "one two three", "voice": "tone", "response_format": "wav"}
    whole = client.audio.speech.create(model="fake", **body).read()
    with httpx.stream("POST", f"{server.url}/v1/audio/speech", json={**body, "stream_format": "sse"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == whole
    assert done["type"] == "speech.audio.done"


@pytest.mark.parametrize("name", ["alloy", "marin", None, "tone"])
def test_openai_voices_mean_the_default_voice(server: Live, name: str | None) -> None:
    answer = httpx.post(f"{server.url}/v1/audio/speech", json={"input": "hello", "voice": name})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"voice": "nobody"}, "voice", "the voices are tone, zhong"),
        ({"model": "llama"}, "model", "use `fake`"),
    ],
)
def test_unknown_names_are_not_found(client: OpenAI, change: dict[str, str], param: str, says: str) -> None:
    with pytest.raises(NotFoundError, match=says) as error:
        client.audio.speech.create(**{"model": "fake", "voice": "tone", "input": "x", **change})  # type: ignore[arg-type]
    assert error.value.param == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"speed": 9}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"response_format": "midi"}, "response_format"),
        ({"input": ""}, "input"),
        ({"input": "unspeakable"}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_bad_field_is_named(client: OpenAI, change: dict[str, object], param: str) -> None:
    body = json.dumps({"model": "fake", "voice": "tone", "input": "x", **change}).encode()
    with pytest.raises(BadRequestError) as error:
        client.post(
            "/audio/speech",
            cast_to=object,
            content=body,
            options={"headers": {"Content-Type": "application/json"}},
        )
    assert error.value.param == param


def test_too_long_a_text_is_told_the_limit(server: Live) -> None:
    answer = httpx.post(f"{server.url}/v1/audio/speech", json={"input": "x" * 1001})
    assert answer.status_code == 413
    assert "1001 characters and this server takes 1000" in answer.json()["error"]["message"]


def test_an_error_after_the_first_audio_cuts_the_connection(server: Live) -> None:
    with httpx.stream("POST", f"{server.url}/v1/audio/speech", json={"input": "Fine. Now crash."}) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()
    until(server.idle)


def test_an_error_in_a_stream_of_events_is_its_last_event(server: Live) -> None:
    body = {"input": "Fine so far. This is unspeakable.", "stream_format": "sse"}
    answer = httpx.post(f"{server.url}/v1/audio/speech", json=body)
    *_, last = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert last["error"]["code"] == "invalid_text"


def test_a_crash_tells_nothing_about_itself(server: Live) -> None:
    answer = httpx.post(f"{server.url}/v1/audio/speech", json={"input": "crash"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"]
