"""The codec without a server: audio formats, the session's fields, the outbox, the beta dialect, ephemeral keys."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.beta.realtime import RealtimeServerEvent as BetaServerEvent
from pydantic import Field, TypeAdapter

from realtime_fixtures import TalkBundle, client, pcm, speech
from serve_fixtures.fakes import tone
from serve_fixtures.live import live
from stepaudio.agent.errors import RequestError
from stepaudio.agent.turn import TurnConfig
from stepaudio.audio import g711
from stepaudio.serve.realtime import beta
from stepaudio.serve.realtime.config import SessionConfig
from stepaudio.serve.realtime.formats import AudioDecoder, AudioEncoder
from stepaudio.serve.realtime.outbox import Outbox
from stepaudio.serve.realtime.secrets import ClientSecrets

PCM = {"type": "audio/pcm", "rate": 24000}
FORMATS = [PCM, {"type": "audio/pcmu"}, {"type": "audio/pcma"}]


@pytest.fixture
def config() -> SessionConfig:
    bundle = TalkBundle()
    return SessionConfig("fake", bundle.speaker, bundle.transcriber)


def test_an_acoustic_scorer_that_is_not_there_is_refused(config: SessionConfig) -> None:
    with pytest.raises(RequestError) as refused:
        config.updated({"type": "realtime", "stepaudio": {"acoustic": True}})
    assert refused.value.param == "session.stepaudio.acoustic"
    config.updated({"type": "realtime", "stepaudio": {"acoustic": False}})


def test_a_reply_can_go_back_to_the_default_voice(config: SessionConfig) -> None:
    other = config.updated({"type": "realtime", "audio": {"output": {"voice": "zhong"}}})
    assert config.reply_voice("tone") is config.reply_voice(None) is other.reply_voice(None) is None
    assert other.reply_voice("tone") == "tone"
    assert (other.shown_voice(None), other.shown_voice("zhong"), other.shown_voice("tone")) == (
        "zhong",
        "zhong",
        "tone",
    )


# ---------------------------------------------------------------- audio


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), max_size=8), st.sampled_from(FORMATS))
def test_input_cut_anywhere_is_the_same(cuts: list[int], audio_format: dict[str, Any]) -> None:
    data = base64.b64decode(pcm(tone(0.2, 24_000)))
    if audio_format is not PCM:
        data = g711.encode(tone(0.2, 8_000), "mulaw")
    whole = AudioDecoder(audio_format, 16_000)
    expected = np.concatenate([whole.push(base64.b64encode(data).decode()), whole.flush()])
    pieces, decoder = [], AudioDecoder(audio_format, 16_000)
    for cut in [*cuts, len(data)]:
        pieces.append(decoder.push(base64.b64encode(data[:cut]).decode()))
        data = data[cut:]
    np.testing.assert_array_equal(np.concatenate([*pieces, decoder.flush()]), expected)


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_what_is_encoded_is_decoded(audio_format: dict[str, Any], rate: int) -> None:
    encoder, decoder = AudioEncoder(audio_format, rate), AudioDecoder(audio_format, rate)
    samples = tone(1.0, rate)
    pieces = [*encoder.push(samples[:5000]), *encoder.push(samples[5000:]), *encoder.flush()]
    back = np.concatenate([*(decoder.push(piece) for piece in pieces), decoder.flush()])
    assert len(back) == len(samples)
    assert np.abs(back - samples)[200:-200].max() < 0.03
    assert max(map(len, pieces)) < 15_000


# ---------------------------------------------------------------- the session's fields


def test_a_partial_update_changes_what_it_names(config: SessionConfig) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    first = config.updated(
        {
            "type": "realtime",
            "tools": [tool],
            "instructions": "Be brief.",
            "audio": {
                "input": {"transcription": {"language": "en-US"}, "turn_detection": {"type": "semantic_vad"}},
                "output": {"speed": 1.5},
            },
        }
    )
    second = first.updated({"type": "realtime", "tracing": "auto"})
    assert second.fields == {**first.fields, "tracing": "auto"}
    assert first.fields["audio"]["output"] == {"format": PCM, "voice": "tone", "speed": 1.5}
    assert first.settings().language == "en"
    assert first.settings().turn == TurnConfig.semantic_vad("auto")
    assert [spec.tool.name for spec in first.settings().tools] == ["f"]
    third = second.updated(
        {
            "tools": [],
            "instructions": None,
            "audio": {"input": {"turn_detection": None, "transcription": None}, "output": {"speed": None}},
        }
    )
    assert third.fields["instructions"] == ""
    assert third.settings().turn is None
    assert third.settings().tools == ()
    assert third.fields["audio"]["output"]["speed"] == 1.0
    assert config.settings().turn == TurnConfig.server_vad()


@pytest.mark.parametrize("voice", ["alloy", "marin", {"id": "ash"}, "tone"])
def test_voices_of_openai_mean_the_default(config: SessionConfig, voice: Any) -> None:
    changed = config.updated({"audio": {"output": {"voice": voice}}})
    assert changed.settings().voice is None
    assert changed.fields["audio"]["output"]["voice"] == voice
    assert config.updated({"audio": {"output": {"voice": "zhong"}}}).settings().voice == "zhong"


def test_a_refused_update_changes_nothing(config: SessionConfig) -> None:
    before = str(config.fields)
    with pytest.raises(RequestError):
        config.updated({"instructions": "x", "audio": {"output": {"voice": "nobody"}}})
    assert str(config.fields) == before


# ---------------------------------------------------------------- the outbox


def test_the_outbox_is_bounded_and_drops_what_may_be_dropped() -> None:
    async def check() -> None:
        room = asyncio.Event()
        outbox = Outbox(room, high=10, limit=30)
        outbox.put("aaaa")
        outbox.put("bbbbbbbb", droppable=True)
        assert not room.is_set()
        outbox.put("cc")
        outbox.drop()
        assert room.is_set()
        assert [await outbox.get(), await outbox.get()] == ["aaaa", "cc"]
        assert outbox.chars == 0
        for _ in range(100):
            outbox.put("dddddddd")
        assert outbox.overflowed
        assert outbox.chars <= 40

    asyncio.run(check())


# ---------------------------------------------------------------- ephemeral keys


def test_ephemeral_keys_expire(config: SessionConfig) -> None:
    now = 1000.0
    secrets = ClientSecrets(lambda: now)
    secret = secrets.new(config, 60)
    assert secrets.find(secret.value) is secret
    assert secrets.find("ek_other") is None
    now = secret.expires_at
    assert secrets.find(secret.value) is None


# ---------------------------------------------------------------- the beta dialect

_BETA: TypeAdapter[Any] = TypeAdapter(Annotated[BetaServerEvent, Field(discriminator="type")])
BETA = {"additional_headers": {"OpenAI-Beta": "realtime=v1"}, "strict": False}


def test_the_beta_dialect() -> None:
    with live(TalkBundle()) as server, client(server.url, "/v1/realtime?model=gpt-realtime", **BETA) as talk:
        talk.send(
            "session.update",
            session={
                "modalities": ["text", "audio"],
                "voice": "alloy",
                "input_audio_format": "pcm16",
                "output_audio_format": "g711_ulaw",
                "input_audio_transcription": {"model": "whisper-1"},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
                "max_response_output_tokens": 50,
                "temperature": 0.7,
            },
        )
        session = talk.until("session.updated")["session"]
        assert session["modalities"] == ["audio", "text"]
        assert (session["output_audio_format"], session["max_response_output_tokens"]) == ("g711_ulaw", 50)
        assert (session["temperature"], session["turn_detection"]["silence_duration_ms"]) == (0.7, 400)
        talk.say(speech())
        done = talk.until("response.done")["response"]
        assert done["output"][0]["content"] == [{"type": "audio", "transcript": "You said hello world."}]
        assert (done["modalities"], done["output_audio_format"]) == (["audio", "text"], "g711_ulaw")
        kinds = talk.types()
        assert "conversation.item.created" in kinds
        assert "response.audio_transcript.delta" in kinds
        assert "response.audio.done" in kinds
        assert not [kind for kind in kinds if "output_text" in kind or "output_audio" in kind]
        assert "conversation.item.added" not in kinds
        audio = b"".join(base64.b64decode(event["delta"]) for event in talk.all("response.audio.delta"))
        assert len(audio) == 4 * 0.1 * 8000
        item = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Earlier."}]}
        talk.send("conversation.item.create", item=item)
        assert talk.until("conversation.item.created")["item"]["content"] == [{"type": "text", "text": "Earlier."}]
        talk.send("response.create", response={"modalities": ["text"]})
        talk.until("response.text.done")
        assert talk.until("response.done")["response"]["modalities"] == ["text"]
        for event in talk.events:
            _BETA.validate_python(event)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.just("assistant") | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "session", "response", "item", "content", "input", "role", "modalities"])
                | st.sampled_from(["input_audio_format", "voice", "temperature"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=10,
    )
)
def test_whatever_comes_the_beta_translates_or_leaves_it(message: Any) -> None:
    beta.incoming(message)
