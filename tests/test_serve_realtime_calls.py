"""Calls over WebRTC, with aiortc as the client: a spoken question, an interruption, and calls that go wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import av
import httpx
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from openai import AsyncOpenAI

from realtime_fixtures import TalkBundle, check, speech, within
from serve_fixtures.live import Live, live, until
from stepaudio import load
from stepaudio.agent.controller import Controller
from stepaudio.audio.pcm import Samples, to_int16
from stepaudio.serve.realtime import webrtc

RATE = 48_000
FRAME = 960
PATIENCE = 60
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen. " * 3


class Microphone(MediaStreamTrack):
    """Sends what it is told to say in real time, and silence before and after."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.waiting = np.zeros(0, np.float32)
        self._began = time.monotonic()
        self._pts = 0

    def say(self, samples: Samples) -> None:
        """Samples at 48 kHz."""
        self.waiting = np.concatenate([self.waiting, samples])

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        await asyncio.sleep(max(0.0, self._began + self._pts / RATE - time.monotonic()))
        part, self.waiting = self.waiting[:FRAME], self.waiting[FRAME:]
        samples = to_int16(np.concatenate([part, np.zeros(FRAME - len(part), np.float32)]))
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._pts, Fraction(1, RATE)
        self._pts += FRAME
        return frame


class Caller:
    """One end of a call. Every event is checked against OpenAI's types."""

    def __init__(self) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.microphone = Microphone()
        self.peer.addTrack(self.microphone)
        self.channel = self.peer.createDataChannel("oai-events")
        self.channel.on("message", self._on_message)
        self.peer.on("track", self._on_track)
        self.events: list[dict[str, Any]] = []
        self.heard: list[Samples] = []
        self.location = ""
        self._changed = asyncio.Event()
        self._read = 0
        self._recording: asyncio.Task[None] | None = None

    async def offer(self) -> str:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return self.peer.localDescription.sdp

    async def accept(self, answer: httpx.Response) -> None:
        assert answer.status_code == 201, answer.text
        assert answer.headers["content-type"].startswith("application/sdp")
        self.location = answer.headers["location"]
        await self.peer.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))

    def send(self, type: str, **fields: Any) -> None:
        self.channel.send(json.dumps({"type": type, **fields}))

    async def until(self, *types: str) -> dict[str, Any]:
        """The next event of one of these types."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self._read < len(self.events):
                    self._read += 1
                    if self.events[self._read - 1]["type"] in types:
                        return self.events[self._read - 1]
                self._changed.clear()
                await self._changed.wait()

    def all(self, *types: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] in types]

    @property
    def sound(self) -> Samples:
        return np.concatenate([np.zeros(0, np.float32), *self.heard])

    def _on_message(self, message: str) -> None:
        event = json.loads(message)
        if not event["type"].startswith(("stepaudio.", "output_audio_buffer.")):
            check(event)
        self.events.append(event)
        self._changed.set()

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._recording = asyncio.create_task(self._record(track))

    async def _record(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame: Any = await track.recv()
                self.heard.append(frame.to_ndarray().reshape(-1, 2)[:, 0].astype(np.float32) / 32768)
        except MediaStreamError:
            return


@asynccontextmanager
async def calling(server: Live, path: str = "/v1/realtime/calls?model=fake&extensions=1") -> AsyncIterator[Caller]:
    caller = Caller()
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
        offer = await caller.offer()
        await caller.accept(await http.post(path, content=offer, headers={"Content-Type": "application/sdp"}))
    try:
        await caller.until("conversation.created")
        yield caller
    finally:
        await caller.peer.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(TalkBundle()) as running:
        yield running


def run(work: Any) -> None:
    asyncio.run(within(2 * PATIENCE, work))


def no_calls(server: Live) -> None:
    until(lambda: server.app.state.realtime.sessions == 0, seconds=PATIENCE)
    assert not server.app.state.realtime.calls


# ---------------------------------------------------------------- conversations


def test_a_spoken_question_gets_a_spoken_answer(server: Live) -> None:
    async def conversation() -> None:
        async with calling(server) as caller:
            caller.microphone.say(speech(1.0, 1.0, RATE))
            done = await caller.until("response.done")
            assert done["response"]["output"][0]["content"][0]["transcript"] == "You said hello world."
            await caller.until("output_audio_buffer.stopped")
            kinds = [event["type"] for event in caller.events]
            assert kinds.index("output_audio_buffer.started") < kinds.index("output_audio_buffer.stopped")
            assert kinds.index("response.done") < kinds.index("output_audio_buffer.stopped")
            assert not caller.all("response.output_audio.delta")
            assert len(caller.all("response.output_audio.done")) == 1
            await asyncio.sleep(0.3)
            assert np.abs(caller.sound).max() > 0.2

    server.bundle.responder.answer = TalkBundle().responder.answer
    run(conversation())
    no_calls(server)


def test_an_interruption_keeps_what_was_heard(server: Live) -> None:
    async def conversation() -> None:
        server.bundle.responder.answer = lambda messages, tools: [LONG]
        async with calling(server) as caller:
            caller.microphone.say(speech(1.0, 1.0, RATE))
            await caller.until("output_audio_buffer.started")
            await asyncio.sleep(1.5)
            server.bundle.responder.answer = lambda messages, tools: ["Fine."]
            caller.microphone.say(speech(1.5, 1.0, RATE))
            await caller.until("input_audio_buffer.speech_started")
            cleared = await caller.until("output_audio_buffer.cleared")
            heard = sum(map(len, caller.heard)) / RATE
            truncated = await caller.until("conversation.item.truncated")
            kept = await caller.until("stepaudio.item.heard")
            assert kept["item_id"] == truncated["item_id"]
            assert cleared["response_id"] == caller.all("output_audio_buffer.started")[0]["response_id"]
            # What the server says was heard is what has come here, but for what is on its way or in the jitter buffer.
            assert abs(truncated["audio_end_ms"] / 1000 - heard) < 0.5
            assert LONG.startswith(kept["text"])
            assert 0 < len(kept["text"]) < len(LONG) / 2
            await caller.until("output_audio_buffer.stopped")
            prompt = server.bundle.responder.prompts[-1]
            assert [m.content for m in prompt if m.role == "assistant"] == [kept["text"]]

    run(conversation())
    no_calls(server)


def test_the_client_asks_for_silence(server: Live) -> None:
    async def conversation() -> None:
        server.bundle.responder.answer = lambda messages, tools: [LONG]
        async with calling(server) as caller:
            caller.send("response.create")
            started = await caller.until("output_audio_buffer.started")
            caller.send("output_audio_buffer.clear")
            cleared = await caller.until("output_audio_buffer.cleared")
            assert cleared["response_id"] == started["response_id"]
            await caller.until("conversation.item.truncated")
            await asyncio.sleep(0.3)
            before = len(caller.heard)
            await asyncio.sleep(0.5)
            assert len(caller.heard) == before
            caller.send("response.create")
            await caller.until("output_audio_buffer.started")

    run(conversation())
    no_calls(server)


def test_a_microphone_that_falls_silent_ends_the_turn(server: Live) -> None:
    """A muted browser may stop sending packets: time goes on all the same."""

    async def conversation() -> None:
        server.bundle.responder.answer = lambda messages, tools: ["Fine."]
        async with calling(server) as caller:
            caller.microphone.say(speech(1.0, 0.0, RATE))
            await caller.until("input_audio_buffer.speech_started")
            while len(caller.microphone.waiting):
                await asyncio.sleep(0.02)
            caller.peer.getSenders()[0].replaceTrack(None)
            await caller.until("response.done")

    run(conversation())
    no_calls(server)


# ---------------------------------------------------------------- ways in and out


def test_a_form_with_a_session_and_an_ephemeral_key() -> None:
    async def conversation(server: Live) -> None:
        keyed = {"Authorization": "Bearer k1"}
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
            made = await http.post("/v1/realtime/client_secrets", json={}, headers=keyed)
            ephemeral = {"Authorization": f"Bearer {made.json()['value']}"}
            caller = Caller()
            offer = await caller.offer()
            refused = await http.post("/v1/realtime/calls", files={"sdp": (None, offer)})
            assert refused.status_code == 401
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key=made.json()["value"])
            answer = await client.realtime.calls.create(
                sdp=offer, session={"type": "realtime", "instructions": "Be brief."}
            )
            await caller.accept(answer.response)  # type: ignore[arg-type]
            assert (await caller.until("session.created"))["session"]["instructions"] == "Be brief."
            assert (await http.post(f"{caller.location}/hangup", headers=ephemeral)).status_code == 200
            await asyncio.to_thread(no_calls, server)
            assert (await http.post(f"{caller.location}/hangup", headers=keyed)).status_code == 404
            await caller.peer.close()

    with live(TalkBundle(), api_keys=("k1",)) as server:
        run(conversation(server))


def test_offers_that_cannot_be_used(server: Live) -> None:
    async def offers() -> list[str]:
        mute, film = RTCPeerConnection(), RTCPeerConnection()
        mute.createDataChannel("oai-events")
        film.addTransceiver("audio")
        film.addTransceiver("video")
        made = [(await peer.createOffer()).sdp for peer in (mute, film)]
        await mute.close()
        await film.close()
        return made

    texts = ["", "hello", "v=0\r\nm=audio x", "x" * (1 << 19), *asyncio.run(offers())]
    for text in texts:
        answer = httpx.post(
            f"{server.url}/v1/realtime/calls", content=text, headers={"Content-Type": "application/sdp"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_offer"), text
    form = {"sdp": (None, texts[-1]), "session": (None, "[1]")}
    assert httpx.post(f"{server.url}/v1/realtime/calls", files=form).json()["error"]["param"] == "session"
    form["session"] = (None, '{"nonsense": 1}')
    assert httpx.post(f"{server.url}/v1/realtime/calls", files=form).json()["error"]["param"] == "session.nonsense"
    foreign = {"Origin": "https://evil.example", "Content-Type": "application/sdp"}
    assert httpx.post(f"{server.url}/v1/realtime/calls", content="x", headers=foreign).status_code == 403
    no_calls(server)


def test_limits() -> None:
    async def full(server: Live) -> None:
        async with calling(server):
            other = Caller()
            async with httpx.AsyncClient(base_url=server.url) as http:
                offer = await other.offer()
                answer = await http.post(
                    "/v1/realtime/calls", content=offer, headers={"Content-Type": "application/sdp"}
                )
            await other.peer.close()
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "server_busy")

    async def long(server: Live) -> None:
        async with calling(server) as caller:
            assert (await caller.until("error"))["error"]["code"] == "session_expired"
            await asyncio.to_thread(no_calls, server)

    with live(TalkBundle(), max_sessions=1, max_session_seconds=1.5) as server:
        run(full(server))
        no_calls(server)
        run(long(server))


def test_a_call_that_is_never_taken_up_gives_its_place_back(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "CONNECT_SECONDS", 0.5)

    async def conversation() -> None:
        caller = Caller()
        offer = await caller.offer()
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
            answer = await http.post("/v1/realtime/calls", content=offer, headers={"Content-Type": "application/sdp"})
        assert answer.status_code == 201
        await caller.peer.close()
        await asyncio.to_thread(no_calls, server)

    run(conversation())


def test_bad_events_and_a_flood_of_them(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "_MOST_WAITING", 100_000)

    async def conversation() -> None:
        async with calling(server) as caller:
            caller.channel.send("{")
            assert (await caller.until("error"))["error"]["code"] == "invalid_event"
            caller.send("no.such.event", event_id="mine")
            assert (await caller.until("error"))["error"]["event_id"] == "mine"
            caller.channel.send("[" + "1," * 60_000 + "1]")
            await asyncio.to_thread(no_calls, server)

    run(conversation())


def test_a_failure_of_the_server_is_told_before_it_hangs_up(
    server: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Controller, *_: Any) -> Any:
        raise ZeroDivisionError("nobody thought of this")

    async def conversation() -> None:
        async with calling(server) as caller:
            monkeypatch.setattr(Controller, "handle", fail)
            error = (await caller.until("error"))["error"]
            assert (error["type"], error["code"]) == ("server_error", "internal_error")
            await asyncio.to_thread(no_calls, server)
            monkeypatch.undo()

    run(conversation())
    assert "nobody thought of this" in caplog.text


def test_a_stopping_server_hangs_up() -> None:
    async def conversation(server: Live) -> None:
        async with calling(server) as caller:
            server.server.should_exit = True
            await asyncio.to_thread(no_calls, server)
            async with asyncio.timeout(PATIENCE):
                while caller.peer.connectionState != "closed" and caller.channel.readyState != "closed":
                    await asyncio.sleep(0.05)

    with live(TalkBundle()) as server:
        run(conversation(server))


# ---------------------------------------------------------------- with real models


@pytest.mark.weights
def test_a_call_with_real_models() -> None:
    """The client speaks with the voice of the bundle itself, and interrupts the answer."""
    from stepaudio.audio.resample import resample

    async def conversation(server: Live, question: Samples, interruption: Samples) -> None:
        async with calling(server) as caller:
            listens = {"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
            caller.send("session.update", session=listens)
            caller.microphone.say(question)
            started = await caller.until("output_audio_buffer.started")
            await asyncio.sleep(1.0)
            caller.microphone.say(interruption)
            cut = await caller.until("output_audio_buffer.cleared", "output_audio_buffer.stopped")
            assert cut["response_id"] == started["response_id"]
            replied = ("response.done", "output_audio_buffer.started")  # a short reply is done before it is heard
            while min(len(caller.all(name)) for name in replied) < 2:
                await caller.until(*replied)
            done = "conversation.item.input_audio_transcription.completed"
            assert "france" in caller.all(done)[0]["transcript"].lower()
            assert all(event["response"]["output"] for event in caller.all("response.done"))
            assert np.abs(caller.sound).max() > 0.05

    with load("tiny") as bundle, live(bundle) as server:
        voices = [
            resample(np.concatenate([part.samples for part in bundle.say(text)]), bundle.speaker.rate, RATE)
            for text in ("Please tell me a long story about the city of Paris in France.", "Stop. What is your name?")
        ]
        asyncio.run(within(400, conversation(server, *voices)))
