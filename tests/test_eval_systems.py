"""Systems under test: a folder, codecs, and endpoints over REST and the Realtime protocol, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eval_fixtures import RATE, sound
from realtime_fixtures import TalkBundle
from serve_fixtures.live import Live, live
from stepaudio.audio.encode import encode, write
from stepaudio.errors import BackendError, InputError, NotFoundError
from stepaudio.eval.items import Clip, Request, Turn
from stepaudio.eval.metrics.signal import si_sdr
from stepaudio.eval.systems import open_system
from stepaudio.eval.systems.rest import split_model
from stepaudio.speech.roles import Tool, ToolCall

CLIP = Clip(encode(sound(1.0), RATE, "wav"))


# ---------------------------------------------------------------- a folder


def test_a_folder_with_a_list(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", sound(), RATE)
    rows = [
        {"id": "en/1", "text": "one", "audio": "a.wav", "seconds": 0.2},
        {"id": "en/2", "replies": [{"text": "x"}, {"text": "y", "calls": [{"name": "f", "arguments": {"a": 1}}]}]},
        {"id": "en/3", "error": "out of memory"},
        {"id": "en/4", "text": "four", "audio": "lost.wav"},
    ]
    (tmp_path / "outputs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    system = open_system(str(tmp_path))
    (one,) = system.run(Request("en/1", "say", "en"))
    assert (one.text, one.seconds) == ("one", 0.2)
    assert one.audio is not None
    assert np.allclose(one.audio.samples, sound(), atol=1e-4)
    first, second = system.run(Request("en/2", "converse", "en"))
    assert (first.text, second.text, second.calls[0].arguments) == ("x", "y", {"a": 1})
    with pytest.raises(BackendError, match="out of memory"):
        system.run(Request("en/3", "say", "en"))
    for name in ("en/4", "en/5"):
        with pytest.raises(NotFoundError):
            system.run(Request(name, "say", "en"))


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    write(tmp_path / "en/001.flac", sound(), RATE)
    (tmp_path / "en/002.txt").write_text("hello\n", encoding="utf-8")
    system = open_system(str(tmp_path))
    assert system.run(Request("en/001", "say", "en"))[0].audio is not None
    assert system.run(Request("en/002", "transcribe", "en"))[0].text == "hello"
    with pytest.raises(InputError, match="outside"):
        system.run(Request("../../etc/passwd", "transcribe", "en"))
    before = system.fingerprint
    (tmp_path / "en/003.txt").write_text("more", encoding="utf-8")
    assert open_system(str(tmp_path)).fingerprint != before


def test_a_list_that_cannot_be_read_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "outputs.jsonl").write_text('{"id": "1"}\n{"text": "no id"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        open_system(str(tmp_path))


# ---------------------------------------------------------------- codecs


def test_codecs_keep_what_they_should() -> None:
    speech = sound(2.0, 300.0) * np.linspace(0.2, 1.0, 2 * RATE).astype(np.float32)
    request = Request("x", "resynthesise", "en", clip=Clip(encode(speech, RATE, "wav")))
    quality = {}
    for name in ("g711", "opus-12k", "opus-64k"):
        (reply,) = open_system(f"codec:{name}").run(request)
        assert reply.audio is not None
        quality[name] = si_sdr(speech, reply.audio.at(RATE))
    assert quality["g711"] > 20
    assert quality["opus-64k"] > quality["opus-12k"] > 3
    with pytest.raises(InputError, match="opus-12k"):
        open_system("codec:mp3")


# ---------------------------------------------------------------- endpoints


@pytest.fixture
def server() -> Iterator[Live]:
    with live(TalkBundle()) as running:
        yield running


def conversation(**fields: object) -> Request:
    other = Clip(encode(sound(1.2), RATE, "wav"))  # the server remembers what it has heard
    turns = (Turn("first", CLIP), Turn("second", other))
    return Request("x", "converse", "en", turns=turns, **fields)  # type: ignore[arg-type]


def test_rest_transcribes_and_speaks(server: Live) -> None:
    system = open_system(f"{server.url}/v1")
    assert system.run(Request("x", "transcribe", "en", clip=CLIP))[0].text == "hello world"
    (spoken,) = system.run(Request("x", "say", "en", "three short words"))
    assert spoken.audio is not None
    assert spoken.audio.seconds == pytest.approx(0.3, abs=0.01)
    assert spoken.first is not None
    assert spoken.seconds is not None
    assert spoken.first <= spoken.seconds
    system.close()


def test_rest_holds_a_conversation(server: Live) -> None:
    server.bundle.transcriber.lines = ["hello world", "goodbye"]
    system = open_system(f"{server.url}/v1")
    first, second = system.run(conversation(instructions="Be brief."))
    assert (first.text, second.text) == ("You said hello world.", "You said goodbye.")
    assert first.audio is not None
    last = server.bundle.responder.prompts[-1]
    assert [message.role for message in last] == ["system", "user", "assistant", "user"]
    assert "Be brief." in last[0].content
    system.close()


def test_rest_reports_calls_and_refusals(server: Live) -> None:
    server.bundle.responder.answer = lambda messages, tools: [ToolCall("1", "f", {"city": "Rome"})] if tools else ["no"]
    system = open_system(f"{server.url}/v1")
    request = Request("x", "converse", "en", turns=(Turn("go", CLIP),), tools=(Tool("f"),))
    assert dict(system.run(request)[0].calls[0].arguments) == {"city": "Rome"}
    with pytest.raises(BackendError, match="400"):
        system.run(Request("x", "say", "en", ""))
    system.close()
    gone = open_system("http://127.0.0.1:9/v1")
    with pytest.raises(BackendError, match=r"127\.0\.0\.1:9"):
        gone.run(Request("x", "say", "en", "hello"))


def test_realtime_holds_a_conversation(server: Live) -> None:
    server.bundle.transcriber.lines = ["hello world", "goodbye"]
    system = open_system(f"{server.url.replace('http', 'ws')}/v1")
    first, second = system.run(conversation(instructions="Be brief."))
    assert (first.text, second.text) == ("You said hello world.", "You said goodbye.")
    assert first.audio is not None
    assert first.first is not None
    assert first.audio.seconds == pytest.approx(0.4, abs=0.1)
    assert "Be brief." in server.bundle.responder.prompts[-1][0].content


def test_realtime_reports_calls_and_failures(server: Live) -> None:
    server.bundle.responder.answer = lambda messages, tools: [ToolCall("1", "f", {"city": "Rome"})] if tools else ["no"]
    system = open_system(f"{server.url.replace('http', 'ws')}/v1")
    request = Request("x", "converse", "en", turns=(Turn("go", CLIP),), tools=(Tool("f"),))
    (reply,) = system.run(request)
    assert [(call.name, dict(call.arguments)) for call in reply.calls] == [("f", {"city": "Rome"})]
    server.bundle.responder.answer = lambda messages, tools: [BackendError("the model broke")]
    with pytest.raises(BackendError):
        system.run(Request("x", "converse", "en", turns=(Turn("go", CLIP),)))
    with pytest.raises(InputError, match="cannot say"):
        system.run(Request("x", "say", "en", "hello"))


# ---------------------------------------------------------------- names


def test_a_model_is_named_behind_the_address() -> None:
    assert split_model("http://host:1/v1/#gpt-x") == ("http://host:1/v1", "gpt-x")
    assert split_model("ws://host/v1")[1] == "gpt-audio"
    with pytest.raises(InputError, match="no address"):
        split_model("http:///v1")


def test_an_unknown_system_is_an_unknown_bundle() -> None:
    with pytest.raises(NotFoundError, match="no bundle"):
        open_system("smal")
    with pytest.raises(InputError, match="name a system"):
        open_system("")
