"""The Realtime protocol over a WebSocket, against models that follow a script."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect

from realtime_fixtures import RATE, Client, TalkBundle, client, pcm, speech
from serve_fixtures.live import Live, live, until
from stepaudio.audio import g711
from stepaudio.speech.roles import Message, Tool, ToolCall

MANUAL = {"audio": {"input": {"turn_detection": None}}}
TEXT = {"output_modalities": ["text"]}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(TalkBundle()) as running:
        yield running


@pytest.fixture
def bundle(server: Live) -> Any:
    """The models behind the server, with their scripts back at the beginning."""
    fresh = TalkBundle()
    server.bundle.transcriber.lines = fresh.transcriber.lines
    server.bundle.responder.answer = fresh.responder.answer
    server.bundle.responder.prompts.clear()
    server.bundle.responder.samplings.clear()
    server.bundle.work.pace = 0.0
    return server.bundle


def said(event: dict[str, Any]) -> str:
    """The text of a response."""
    return " ".join(
        part.get("transcript") or part.get("text") or ""
        for item in event["response"]["output"]
        for part in item.get("content", [])
    )


def calls_weather(messages: list[Message], tools: list[Tool]) -> list[str | ToolCall]:
    if messages[-1].role == "tool":
        return [f"It is {messages[-1].content}."]
    return ["Let me see. ", ToolCall("x", "weather", {"city": "Paris"})] if tools else ["No tools."]


# ---------------------------------------------------------------- a turn


def test_a_spoken_turn_in_the_documented_order(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
        talk.events.clear()
        talk.say(speech())
        done = talk.until("response.done")
        assert talk.types() == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "conversation.item.input_audio_transcription.delta",
            "conversation.item.input_audio_transcription.completed",
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            "response.output_audio_transcript.delta",
            "response.output_audio.delta",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
        ]
        started, stopped = talk.all("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped")
        assert started["item_id"] == stopped["item_id"] == talk.events[2]["item_id"]
        assert stopped["audio_end_ms"] - started["audio_start_ms"] == pytest.approx(1000, abs=350)
        assert said(done) == "You said hello world."
        audio = b"".join(base64.b64decode(event["delta"]) for event in talk.all("response.output_audio.delta"))
        assert len(audio) == 4 * 0.1 * RATE * 2  # a tenth of a second for each word
        assert np.abs(np.frombuffer(audio, "<i2")).max() > 10_000
        assert done["response"]["usage"]["total_tokens"] == 30
        assert done["response"]["status"] == "completed"
        ids = [event["event_id"] for event in talk.events]
        assert len(set(ids)) == len(ids)


def test_the_transcript_is_told_only_to_those_who_ask(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.say(speech())
        talk.until("response.done")
        assert not [kind for kind in talk.types() if "transcription" in kind]
        assert not [kind for kind in talk.types() if kind.startswith("stepaudio.")]


@pytest.mark.parametrize("law", ["mulaw", "alaw"])
def test_g711_in_both_directions(server: Live, bundle: Any, law: g711.Law) -> None:
    name = {"mulaw": "audio/pcmu", "alaw": "audio/pcma"}[law]
    with client(server.url) as talk:
        talk.update(audio={"input": {"format": {"type": name}}, "output": {"format": {"type": name}}})
        audio = g711.encode(speech(rate=8000), law)
        talk.send("input_audio_buffer.append", audio=base64.b64encode(audio).decode())
        done = talk.until("response.done")
        assert done["response"]["audio"]["output"]["format"] == {"type": name}
        data = b"".join(base64.b64decode(event["delta"]) for event in talk.all("response.output_audio.delta"))
        assert len(data) == 4 * 0.1 * 8000
        spectrum = np.abs(np.fft.rfft(g711.decode(data, law)))
        assert np.argmax(spectrum) * 8000 / len(data) == pytest.approx(440, abs=5)


def test_the_end_of_a_turn_by_its_words(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.update(audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}})
        bundle.transcriber.lines = ["What is the weather in"]
        talk.say(speech(1.0, 2.0))
        talk.quiet(0.3)
        assert not talk.all("input_audio_buffer.speech_stopped")
        bundle.transcriber.lines = ["What is the weather in Paris?"]
        talk.say(speech(0.5, 0.3))
        talk.quiet(0.3)  # the words are known before the silence goes on
        talk.say(np.zeros(RATE, np.float32))
        assert said(talk.until("response.done")) == "You said What is the weather in Paris?."


def test_manual_turns(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.update(**MANUAL)
        talk.say(speech())
        talk.send("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared")
        talk.send("input_audio_buffer.commit")
        assert talk.until("error")["error"]["code"] == "input_audio_buffer_commit_empty"
        talk.say(speech(1.5, 0.0))
        talk.send("input_audio_buffer.commit")
        item_id = talk.until("input_audio_buffer.committed")["item_id"]
        talk.send("response.create")
        assert said(talk.until("response.done")) == "You said hello world."
        assert not talk.all("input_audio_buffer.speech_started")
        assert bundle.transcriber.heard[-1] == pytest.approx(1.5, abs=0.04)
        talk.send("conversation.item.retrieve", item_id=item_id)
        item = talk.until("conversation.item.retrieved")["item"]
        assert item["content"] == [{"type": "input_audio", "transcript": "hello world"}]


def test_a_transcription_session_makes_no_responses(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.send("session.update", session={"type": "transcription", "audio": {"input": {"transcription": {}}}})
        session = talk.until("session.updated")["session"]
        assert session["type"] == "transcription"
        talk.say(speech())
        done = talk.until("conversation.item.input_audio_transcription.completed")
        assert (done["transcript"], done["usage"]["type"]) == ("hello world", "duration")
        talk.send("response.create")
        assert talk.until("error")["error"]["type"] == "invalid_request_error"
        talk.quiet(0.2)
        assert not talk.all("response.created")


def test_silence_after_an_answer_makes_the_agent_speak_up(server: Live, bundle: Any) -> None:
    detection = {"type": "server_vad", "idle_timeout_ms": 300}
    with client(server.url) as talk:
        talk.update(audio={"input": {"turn_detection": detection}})
        talk.say(speech())
        talk.until("response.done")
        timeout = talk.until("input_audio_buffer.timeout_triggered")
        assert timeout["audio_end_ms"] >= timeout["audio_start_ms"]
        talk.until("response.done")


# ---------------------------------------------------------------- text and items


def create(talk: Client, text: str, **fields: Any) -> dict[str, Any]:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **fields}
    talk.send("conversation.item.create", item=item)
    return talk.until("conversation.item.done", "error")


def test_a_written_turn(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.update(**TEXT, instructions="Be brief.")
        create(talk, "Hi there")
        talk.send("response.create", response={"max_output_tokens": 7})
        done = talk.until("response.done")
        assert done["response"]["output"][0]["content"] == [{"type": "output_text", "text": "You said Hi there."}]
        assert done["response"]["output_modalities"] == ["text"]
        assert (
            done["response"]["max_output_tokens"]
            == talk.all("response.created")[-1]["response"]["max_output_tokens"]
            == 7
        )
        assert "response.output_text.done" in talk.types()
        assert not talk.all("response.output_audio.delta")
        assert bundle.responder.prompts[-1] == [Message("system", "Be brief."), Message("user", "Hi there")]
        assert bundle.responder.samplings[-1].max_tokens == 7


def test_items_are_inserted_deleted_and_found(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        first = create(talk, "one")["item"]["id"]
        assert create(talk, "two", id="mine")["item"]["id"] == "mine"
        item = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "zero"}]}
        talk.send("conversation.item.create", item=item, previous_item_id="root")
        assert talk.until("conversation.item.added")["previous_item_id"] is None
        talk.send("conversation.item.delete", item_id=first)
        talk.until("conversation.item.deleted")
        for wrong in ({"item_id": first}, {"item_id": "none"}):
            talk.send("conversation.item.retrieve", **wrong, event_id="e7")
            error = talk.until("error")["error"]
            assert (error["code"], error["event_id"]) == ("item_not_found", "e7")
        assert create(talk, "again", id="mine")["type"] == "error"
        talk.send("response.create", response=TEXT)
        talk.until("response.done")
        assert [m.content for m in bundle.responder.prompts[-1]][1:] == ["zero", "two"]


def test_audio_in_an_item_is_heard(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        content = [{"type": "input_audio", "audio": pcm(speech(0.8, 0.0))}]
        talk.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        talk.send("response.create")
        assert said(talk.until("response.done")) == "You said hello world."
        assert bundle.transcriber.heard[-1] == pytest.approx(0.8, abs=0.01)


def test_out_of_band_responses_leave_no_trace(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        create(talk, "secret")
        asked = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Classify."}]}]
        options = {"conversation": "none", "input": asked, "metadata": {"topic": "x"}, **TEXT}
        talk.events.clear()
        talk.send("response.create", response=options)
        done = talk.until("response.done")
        assert said(done) == "You said Classify.."
        assert done["response"]["conversation_id"] is None
        assert done["response"]["metadata"] == {"topic": "x"}
        assert not talk.all("conversation.item.added")
        assert "secret" not in str(bundle.responder.prompts[-1])
        talk.send("response.create", response=TEXT)
        talk.until("response.done")
        assert [m.content for m in bundle.responder.prompts[-1]][1:] == ["secret"]


# ---------------------------------------------------------------- what stock clients rely on


def test_any_model_name_is_taken(server: Live, bundle: Any) -> None:
    with client(server.url, "/v1/realtime?model=one") as talk:
        assert talk.events[0]["session"]["model"] == "one"
        assert talk.update(model="two")["session"]["model"] == "two"


def test_metadata_comes_back_with_the_response_that_it_asked_for(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        talk.send("response.create", response={"metadata": {"client_event_id": "c1"}})
        assert talk.until("response.created")["response"]["metadata"] == {"client_event_id": "c1"}
        assert talk.until("response.done")["response"]["metadata"] == {"client_event_id": "c1"}


def test_ids_of_the_client_are_kept(server: Live, bundle: Any) -> None:
    with client(server.url) as talk:
        hexadecimal = "0af3c1d2e4b5968778695a4b3c2d1e0f"
        assert create(talk, "hello", id=hexadecimal)["item"]["id"] == hexadecimal


def test_neither_a_subprotocol_nor_compression_is_forced_on_a_client(server: Live, bundle: Any) -> None:
    url = f"{server.url.replace('http', 'ws', 1)}/v1/realtime"
    with connect(url) as plain, connect(url, subprotocols=["realtime", "other"]) as browser:  # type: ignore[list-item]
        assert plain.protocol.extensions == []
        assert (plain.subprotocol, browser.subprotocol) == (None, "realtime")


# ---------------------------------------------------------------- tools


def test_a_tool_of_the_client(server: Live, bundle: Any) -> None:
    bundle.responder.answer = calls_weather
    with client(server.url) as talk:
        talk.update(tools=[WEATHER])
        talk.say(speech())
        done = talk.until("response.done")
        message, call = done["response"]["output"]
        assert message["content"][0]["transcript"] == "Let me see. "
        assert (call["name"], call["arguments"]) == ("weather", '{"city": "Paris"}')
        arguments = talk.all("response.function_call_arguments.done")[0]
        assert (arguments["call_id"], arguments["output_index"]) == (call["call_id"], 1)
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        talk.send("conversation.item.create", item=output)
        talk.send("response.create")
        assert said(talk.until("response.done")) == "It is sunny."
        talk.send("conversation.item.create", item=output)
        assert talk.until("error")["error"]["code"] == "call_answered"


# ---------------------------------------------------------------- interruption


def test_barge_in(server: Live, bundle: Any) -> None:
    bundle.responder.answer = lambda messages, tools: ["word " * 50]
    with client(server.url, "/v1/realtime?extensions=1") as talk:
        talk.say(speech())
        item_id = talk.until("response.output_audio.delta")["item_id"]
        talk.until("response.done")
        talk.events.clear()
        bundle.transcriber.lines = ["please stop that now"]
        talk.say(speech(1.2))
        heard = talk.until("stepaudio.item.heard")
        assert heard["item_id"] == item_id
        assert heard["by"] == "playback"
        assert heard["text"].split() == ["word"] * len(heard["text"].split())
        talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=300)
        truncated = talk.until("conversation.item.truncated")
        assert (truncated["item_id"], truncated["audio_end_ms"]) == (item_id, 300)
        talk.send("conversation.item.retrieve", item_id=item_id)
        item = talk.until("conversation.item.retrieved")["item"]
        assert item["content"][0]["transcript"].split() == ["word"] * 3
        assert item["status"] == "incomplete"


def test_a_response_that_is_interrupted_is_cancelled(server: Live, bundle: Any) -> None:
    go_on = Event()
    bundle.responder.answer = lambda messages, tools: ["One two three. Four five six. ", go_on, "Seven."]
    with client(server.url) as talk:
        talk.say(speech())
        talk.until("response.output_audio.delta")
        bundle.transcriber.lines = ["please stop that now"]
        talk.say(speech(1.2))
        done = talk.until("response.done")
        assert done["response"]["status"] == "cancelled"
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        go_on.set()
        assert talk.until("response.done")["response"]["status"] == "completed"
        assert "Seven" not in str(bundle.responder.prompts[-1])
    until(server.idle)


def test_cancel_and_its_races(server: Live, bundle: Any) -> None:
    never = Event()
    bundle.responder.answer = lambda messages, tools: ["One two three. Four ", never]
    with client(server.url) as talk:
        talk.send("response.cancel")
        assert talk.until("error")["error"]["code"] == "response_cancel_not_active"
        talk.send("response.create")
        talk.until("response.output_audio.delta")
        talk.send("response.create")
        assert talk.until("error")["error"]["code"] == "conversation_already_has_active_response"
        item_id = talk.all("response.output_item.added")[0]["item"]["id"]
        talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=60_000)
        assert talk.until("error")["error"]["code"] == "item_truncate_invalid_audio_end_ms"
        talk.send("response.cancel")
        done = talk.until("response.done")
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        talk.send("output_audio_buffer.clear")
        bundle.responder.answer = lambda messages, tools: ["Fine."]
        talk.send("response.create")
        assert said(talk.until("response.done")) == "Fine."
    until(server.idle)


# ---------------------------------------------------------------- speculation, as the client sees it


def test_extensions_tell_of_speculation_and_latency(server: Live, bundle: Any) -> None:
    with client(server.url, "/v1/realtime?extensions=1") as talk:
        talk.say(speech(1.0, 0.35))  # the pause is there, the end is not yet
        talk.until("stepaudio.transcript.partial")
        talk.quiet(0.2)
        talk.say(np.zeros(RATE // 2, np.float32))
        talk.until("response.done")
        (outcome,) = talk.all("stepaudio.speculation")
        assert outcome["committed"]
        assert outcome["lead"] > 0
        (timed,) = talk.all("stepaudio.turn.timed")
        assert timed["speculated"]
        talk.update(stepaudio={"speculation": False, "events": True})
        talk.events.clear()
        talk.say(speech(1.2))
        talk.until("response.done")
        assert not talk.all("stepaudio.speculation")
        assert talk.all("stepaudio.state.changed")
