"""The actor around the core: commands on real threads, failures, priorities, time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from realtime_fixtures import ScriptedResponder, TalkBundle, speech
from released_models import write_chat, write_tokenizer
from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.context import MessageItem, OutputItem
from stepaudio.agent.ring import InputRing
from stepaudio.agent.scheduler import Lane, Scheduler, Urgency
from stepaudio.agent.session import RATE, InputFullError, Session
from stepaudio.agent.settings import Settings, SpeculationConfig
from stepaudio.agent.tools import FunctionTools
from stepaudio.agent.turn import TurnConfig
from stepaudio.errors import BackendError
from stepaudio.speech.roles import Message, ReplyEvent, Sampling, ToolCall
from stepaudio.speech.step_audio.listener import StepAudioResponder

PATIENCE = 10
QUIET = Settings(turn=TurnConfig.server_vad(silence_duration=0.4))


class Talk:
    """A session, and everything that it told."""

    def __init__(self, bundle: TalkBundle, settings: Settings, **options: Any) -> None:
        self.told: list[note.Output] = []
        self.changed = asyncio.Event()
        scheduler = options.pop("scheduler", None) or Scheduler(hearing=2, replying=2)
        self.session = Session(bundle, scheduler, self.tell, settings=settings, **options)

    def tell(self, output: note.Output) -> None:
        self.told.append(output)
        self.changed.set()

    def all(self, kind: type) -> list[Any]:
        return [output for output in self.told if isinstance(output, kind)]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.changed.clear()
                await asyncio.wait([asyncio.create_task(self.changed.wait())], timeout=0.01)

    async def say(self, seconds: float = 1.0, silence: float = 0.7) -> None:
        samples = speech(seconds, silence, RATE)
        for start in range(0, len(samples), 1600):
            self.session.hear(samples[start : start + 1600])
            await asyncio.sleep(0)

    @property
    def done(self) -> list[note.ReplyDone]:
        return self.all(note.ReplyDone)


class NotingResponder(StepAudioResponder):
    """A miniature of the released chat model that keeps what it is asked."""

    def __init__(self, model: Path, tokenizer: Path) -> None:
        super().__init__(model, tokenizer)
        self.prompts: list[list[Message]] = []

    def respond(self, messages: Sequence[Message], **options: Any) -> Iterator[ReplyEvent]:
        self.prompts.append(list(messages))
        return super().respond(messages, **options)


@asynccontextmanager
async def talking(bundle: TalkBundle, settings: Settings = QUIET, **options: Any) -> AsyncIterator[Talk]:
    talk = Talk(bundle, settings, **options)
    try:
        yield talk
    finally:
        await talk.session.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


# ---------------------------------------------------------------- a conversation


def test_a_turn_is_heard_answered_and_spoken() -> None:
    async def check() -> None:
        bundle = TalkBundle()
        async with talking(bundle) as talk:
            await talk.say()
            await talk.until(lambda: talk.done)
            assert talk.done[0].status == "completed"
            played = np.concatenate([play.speech.samples for play in talk.all(cmd.Play)])
            assert len(played) == 4 * 2400
            # What is transcribed is the speech and the pause that showed that it was over. (What was overheard before
            # is shorter, and may come to its thread later.)
            assert 1.0 <= max(bundle.transcriber.heard) <= 1.3
            assert not any(isinstance(output, cmd.StartReply | cmd.Transcribe) for output in talk.told)

    run(check())


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotingResponder]:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("chat")
    responder = NotingResponder(write_chat(home / "chat"), write_tokenizer(home / "tokenizer"))
    yield responder
    responder.close()


@pytest.mark.parametrize("speculate", [True, False])
def test_a_responder_that_hears_gets_the_turn_as_audio(hearing: NotingResponder, speculate: bool) -> None:
    settings = replace(
        QUIET, sampling=Sampling(max_tokens=4), speculation=SpeculationConfig(enabled=speculate, least=0.0)
    )

    async def check() -> None:
        bundle = TalkBundle()
        bundle.transcriber.lines = ["hello world", "and again"]
        bundle.responder = hearing  # type: ignore[assignment]
        async with talking(bundle, settings) as talk:
            for turn, text in enumerate(bundle.transcriber.lines, start=1):
                hearing.prompts.clear()
                await talk.say()
                await talk.until(lambda turn=turn: len(talk.done) == turn)
                *earlier, asked = hearing.prompts[-1]
                assert (asked.content, len(earlier) > 0) == (text, turn > 1)
                assert asked.audio is not None
                assert 1.0 <= len(asked.audio) / RATE <= 1.6  # with what is padded before it
                assert np.sqrt(np.mean(asked.audio[RATE // 4 : RATE // 2] ** 2)) > 0.01
                assert all(message.audio is None for message in earlier)
                # The prompt that the model ran on has it as audio, behind the earlier turns as text.
                ids, sound = hearing._prompt([*earlier, asked], ()), hearing._lm.hear(asked.audio)
                assert any(ids[i : i + len(sound)] == sound for i in range(len(ids)))
            hearing.prompts.clear()
            talk.session.create_item(ev.CreateItem(MessageItem("typed", "user", "a typed line")), None)
            talk.session.handle(ev.CreateReply())
            await talk.until(lambda: len(talk.done) == 3)
            assert all(message.audio is None for message in hearing.prompts[-1])

    run(check())


def test_a_responder_that_reads_gets_no_audio() -> None:
    async def check() -> None:
        bundle = TalkBundle()
        async with talking(bundle) as talk:
            await talk.say()
            await talk.until(lambda: talk.done)
            assert all(message.audio is None for prompt in bundle.responder.prompts for message in prompt)

    run(check())


def test_however_the_audio_is_cut_the_same_is_told() -> None:
    async def told(step: int) -> list[str]:
        async with talking(TalkBundle(), replace(QUIET, speculation=SpeculationConfig(enabled=False))) as talk:
            samples = speech(1.0, 0.7, RATE)
            for start in range(0, len(samples), step):
                talk.session.hear(samples[start : start + step])
            await talk.until(lambda: talk.done)
            return [
                str(o) for o in talk.told if isinstance(o, note.SpeechStarted | note.SpeechPaused | note.SpeechStopped)
            ]

    async def check() -> None:
        whole = [text.split("_")[0] + text.partition(",")[2] for text in await told(10**6)]
        for step in (100, 512, 3000):
            assert [text.split("_")[0] + text.partition(",")[2] for text in await told(step)] == whole

    run(check())


def test_an_idle_session_has_no_thread_task_or_timer() -> None:
    async def check() -> None:
        before = {*threading.enumerate(), *asyncio.all_tasks()}  # threads of other tests may end meanwhile
        async with talking(TalkBundle()) as talk:
            for _ in range(20):
                talk.session.hear(np.zeros(1600, np.float32))
            assert {*threading.enumerate(), *asyncio.all_tasks()} <= before
            assert talk.session._timer is None
            assert len(talk.session._ring) < RATE

    run(check())


def test_the_timer_follows_the_injected_clock() -> None:
    async def check() -> None:
        now = 100.0
        async with talking(TalkBundle(), clock=lambda: now) as talk:
            await talk.say()
            await talk.until(lambda: talk.done)
            assert talk.session.controller.state is note.State.BOT_REPLYING  # its audio is still being heard
            now += 60.0
            talk.session._tick()
            assert talk.session.controller.state is note.State.SILENCE

    run(check())


# ---------------------------------------------------------------- failures


def test_a_stalled_model_ends_its_reply_and_nothing_else() -> None:
    async def check() -> None:
        bundle, stall = TalkBundle(), threading.Event()
        bundle.responder.answer = lambda messages, tools: ["One two three. Four", stall]
        async with talking(bundle, patience=0.3) as talk:
            await talk.say()
            await talk.until(lambda: talk.done)
            assert (talk.done[0].status, talk.done[0].reason) == ("failed", "timeout")
            stall.set()
            bundle.responder.answer = lambda messages, tools: ["Fine."]
            talk.session.handle(ev.CreateReply())
            await talk.until(lambda: len(talk.done) == 2)
            assert talk.done[1].status == "completed"

    run(check())


def test_a_stalled_transcriber_fails_its_turn() -> None:
    async def check() -> None:
        bundle = TalkBundle(pace=30.0)
        async with talking(bundle, patience=0.2) as talk:
            await talk.say()
            await talk.until(lambda: talk.all(note.TranscriptFailed))
            bundle.work.pace = 0.0
            await talk.say(1.2)
            await talk.until(lambda: talk.done)
            assert talk.done[0].status == "completed"

    run(check())


def test_a_failing_speculation_is_made_again_from_scratch() -> None:
    async def check() -> None:
        bundle = TalkBundle()
        answers: list[Any] = [[BackendError("no")], ["Yes."]]
        bundle.responder.answer = lambda messages, tools: answers.pop(0)
        async with talking(bundle) as talk:
            await talk.say(1.0, 0.3)
            await talk.until(lambda: talk.all(note.Speculated))
            talk.session.hear(np.zeros(RATE // 2, np.float32))
            await talk.until(lambda: talk.done)
            assert talk.done[0].status == "completed"

    run(check())


def test_replies_wait_for_a_listener_that_does_not_keep_up() -> None:
    async def check() -> None:
        bundle, room = TalkBundle(), asyncio.Event()
        bundle.responder.answer = lambda messages, tools: ["many words " * 200]
        async with talking(bundle, room=room) as talk:
            talk.session.handle(ev.CreateReply())
            await talk.until(lambda: len(talk.all(cmd.Play)) > 5)
            room.clear()
            await asyncio.sleep(0.05)
            told = len(talk.told)
            await asyncio.sleep(0.2)
            assert len(talk.told) == told
            assert not talk.done
            room.set()
            await talk.until(lambda: talk.done)

    run(check())


def test_close_stops_all_work() -> None:
    async def check() -> None:
        bundle = TalkBundle(pace=0.05)
        bundle.responder.answer = lambda messages, tools: ["word "] * 1000
        async with talking(bundle) as talk:
            talk.session.handle(ev.CreateReply())
            await talk.until(lambda: talk.all(cmd.Play))
        assert bundle.work.running == 0
        talk.session.handle(ev.CreateReply())
        assert bundle.work.running == 0

    run(check())


def test_input_beyond_the_limit_is_refused_whole() -> None:
    async def check() -> None:
        async with talking(TalkBundle(), Settings(turn=None), input_seconds=1.0) as talk:
            for _ in range(10):
                talk.session.hear(np.zeros(RATE // 10, np.float32))
            with pytest.raises(InputFullError):
                talk.session.hear(np.zeros(1, np.float32))
            assert talk.session.controller.position == pytest.approx(1.0, abs=0.04)
            talk.session.handle(ev.ClearInput())
            talk.session.hear(np.zeros(RATE // 2, np.float32))

    run(check())


@pytest.mark.parametrize("more", [0, 100])
def test_input_at_the_limit_can_still_be_committed(more: int) -> None:
    async def check() -> None:
        async with talking(TalkBundle(), Settings(turn=None), input_seconds=1.0) as talk:
            talk.session.hear(np.zeros(RATE - more, np.float32))
            with pytest.raises(InputFullError):
                talk.session.hear(np.zeros(more + 1, np.float32))
            talk.session.hear_last(np.zeros(more + 1, np.float32))
            talk.session.handle(ev.CommitInput())
            await talk.until(lambda: talk.all(note.TranscriptDone))
            assert talk.all(note.TranscriptDone)[0].seconds >= 1.0

    run(check())


# ---------------------------------------------------------------- tools


def weather(city: str) -> str:
    """The weather."""
    if city == "Atlantis":
        raise ValueError("no such city")
    return f"sunny in {city}"


async def slow_weather(city: str) -> dict[str, str]:
    """The weather, in its own time."""
    await asyncio.sleep(0.05)
    return {"sky": city}


@pytest.mark.parametrize(
    ("tool", "city", "output"),
    [
        ("weather", "Paris", "sunny in Paris"),
        ("slow_weather", "Rome", '{"sky": "Rome"}'),
        ("weather", "Atlantis", '{"error": "no such city"}'),
    ],
)
def test_python_tools(tool: str, city: str, output: str) -> None:
    async def check() -> None:
        tools = FunctionTools()
        tools.add(weather)
        tools.add(slow_weather)
        bundle = TalkBundle()
        bundle.responder.answer = lambda messages, _: (
            [ToolCall("x", tool, {"city": city})] if messages[-1].role == "user" else ["There you are."]
        )
        settings = replace(QUIET, tools=tuple(tools.specs()))
        async with talking(bundle, settings, tools=tools) as talk:
            await talk.say()
            await talk.until(lambda: len(talk.done) == 2)
            results = [item for item in talk.session.controller.context.items if isinstance(item, OutputItem)]
            assert [item.output for item in results] == [output]

    run(check())


def test_a_tool_that_hangs_is_given_up() -> None:
    async def check() -> None:
        hang = threading.Event()
        tools = FunctionTools()
        tools.add(_waiting(hang), name="hang", timeout=0.2)
        bundle = TalkBundle()
        bundle.responder.answer = lambda messages, _: (
            [ToolCall("x", "hang", {})] if messages[-1].role == "user" else ["It takes too long."]
        )
        async with talking(bundle, replace(QUIET, tools=tuple(tools.specs())), tools=tools) as talk:
            await talk.say()
            await talk.until(lambda: len(talk.done) == 2)
            assert "in time" in str(talk.session.controller.context.items)
        hang.set()

    run(check())


def _waiting(event: threading.Event) -> Callable[[], str]:
    def hang() -> str:
        event.wait(20)
        return "late"

    return hang


# ---------------------------------------------------------------- priorities


def test_the_awaited_go_first_and_speculation_makes_room() -> None:
    async def check() -> None:
        lane, order = Lane(1), list[str]()
        gone = asyncio.Event()

        async def work(name: str, urgency: Urgency) -> None:
            async with lane.ticket(urgency):
                order.append(name)

        async def speculate() -> None:
            async with lane.ticket(Urgency.SPECULATIVE, give_up=gone.set):
                await gone.wait()

        speculation = asyncio.create_task(speculate())
        await asyncio.sleep(0)
        background = asyncio.create_task(work("background", Urgency.BACKGROUND))
        await asyncio.sleep(0.01)
        assert not gone.is_set()
        late = asyncio.create_task(work("awaited", Urgency.AWAITED))
        await asyncio.gather(speculation, background, late)
        assert order == ["awaited", "background"]
        assert lane.pressure == 0

    run(check())


def test_a_committed_speculation_is_not_asked_to_leave() -> None:
    async def check() -> None:
        lane, asked = Lane(1), list[int]()
        speculation = lane.ticket(Urgency.SPECULATIVE, give_up=lambda: asked.append(1))
        async with speculation:
            speculation.hurry()
            waiting = asyncio.create_task(_enter(lane.ticket(Urgency.AWAITED)))
            await asyncio.sleep(0.01)
            assert not asked
            assert not waiting.done()
        await waiting

    run(check())


def test_whoever_stops_waiting_blocks_nobody() -> None:
    async def check() -> None:
        lane = Lane(1)
        async with lane.ticket(Urgency.AWAITED):
            waiting = asyncio.create_task(_enter(lane.ticket(Urgency.AWAITED)))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(_enter(lane.ticket(Urgency.BACKGROUND)), 1)

    run(check())


async def _enter(ticket: Any) -> None:
    async with ticket:
        pass


def test_a_reply_of_another_session_takes_the_place_of_a_speculation() -> None:
    async def check() -> None:
        bundle, never = TalkBundle(), threading.Event()
        scheduler = Scheduler(hearing=1, replying=1)
        bundle.responder.answer = lambda messages, tools: ["One two three. Four", never]
        async with talking(bundle, scheduler=scheduler) as one, talking(bundle, scheduler=scheduler) as two:
            await one.say(1.0, 0.3)
            await one.until(lambda: bundle.work.running)
            bundle.responder.answer = lambda messages, tools: ["Fine."]
            two.session.handle(ev.CreateItem(MessageItem("x", "user", "hi")))
            two.session.handle(ev.CreateReply())
            await two.until(lambda: two.done)
            assert two.done[0].status == "completed"
            assert [outcome.reason for outcome in one.all(note.Speculated)] == ["throttled"]
            one.session.hear(np.zeros(RATE // 2, np.float32))
            await one.until(lambda: one.done)

    run(check())


@pytest.mark.parametrize("waited_for", [False, True])
def test_nobody_is_overheard_while_another_waits_for_a_reply_to_begin(waited_for: bool) -> None:
    async def check() -> None:
        bundle, go = TalkBundle(), threading.Event()
        bundle.responder.answer = lambda messages, tools: [go, "Fine."]
        scheduler = Scheduler(hearing=2, replying=2)
        async with talking(bundle, scheduler=scheduler) as one, talking(bundle, scheduler=scheduler) as two:
            if waited_for:
                one.session.handle(ev.CreateItem(MessageItem("x", "user", "hi")))
                one.session.handle(ev.CreateReply())
                await one.until(lambda: bundle.work.running)
            await two.say(1.2, silence=0.0)
            if not waited_for:
                await two.until(lambda: bundle.transcriber.heard)
            await two.say(0.8)
            await two.until(lambda: two.all(note.TranscriptDone))
            assert (len(bundle.transcriber.heard) == 1) == waited_for
            go.set()
            await two.until(lambda: two.done)

    run(check())


def test_a_reply_that_finds_no_place_in_time_is_refused() -> None:
    async def check() -> None:
        bundle, never = TalkBundle(), threading.Event()
        scheduler = Scheduler(hearing=1, replying=1, patience=0.2)
        bundle.responder.answer = lambda messages, tools: ["One two three. Four", never]
        async with talking(bundle, scheduler=scheduler) as one, talking(bundle, scheduler=scheduler) as two:
            for talk in (one, two):
                talk.session.handle(ev.CreateItem(MessageItem("x", "user", "hi")))
                talk.session.handle(ev.CreateReply())
            await two.until(lambda: two.done)
            assert (two.done[0].status, two.done[0].reason) == ("failed", "server_busy")
            assert not one.done
            never.set()
            await one.until(lambda: one.done)
            assert one.done[0].status == "completed"
            bundle.responder.answer = lambda messages, tools: ["Fine."]
            two.session.handle(ev.CreateReply())
            await two.until(lambda: len(two.done) == 2)
            assert two.done[1].status == "completed"

    run(check())


def test_a_reply_with_audio_to_spare_lets_another_begin() -> None:
    """One place for two replies of ten sentences: the second begins long before the first has been spoken."""

    async def check() -> None:
        bundle = TalkBundle()
        scheduler = Scheduler(hearing=1, replying=1)
        long = " ".join(["One two three four five six seven eight nine ten eleven twelve."] * 6)
        bundle.responder.answer = lambda messages, tools: [long]
        async with talking(bundle, scheduler=scheduler) as one, talking(bundle, scheduler=scheduler) as two:
            for talk in (one, two):
                talk.session.handle(ev.CreateItem(MessageItem("x", "user", "hi")))
                talk.session.handle(ev.CreateReply())
            await two.until(lambda: two.all(cmd.Play))
            assert not one.done
            two.session.handle(ev.StopReply())
            await one.until(lambda: one.done)
            assert one.done[0].status == "completed"
            assert sum(len(play.speech.samples) for play in one.all(cmd.Play)) == 6 * 12 * 2400

    run(check())


def test_a_reply_with_audio_to_spare_leaves_the_cores_to_one_that_has_not_begun() -> None:
    """There is a place for each of the two, and one pair of hands."""

    async def check() -> None:
        bundle, start = TalkBundle(), threading.Event()
        scheduler = Scheduler(hearing=1, replying=2)
        sentence = "One two three four five six seven eight nine ten eleven twelve. "
        answers = [[start, "Fine."], [6 * sentence]]
        bundle.responder.answer = lambda messages, tools: answers.pop(0)
        async with talking(bundle, scheduler=scheduler) as late, talking(bundle, scheduler=scheduler) as early:
            for talk in (late, early):
                talk.session.handle(ev.CreateItem(MessageItem("x", "user", "hi")))
                talk.session.handle(ev.CreateReply())
                await talk.until(lambda: len(answers) < 2)
            await early.until(lambda: early.all(cmd.Play))
            await asyncio.sleep(0.4)
            assert 20 <= len(early.all(cmd.Play)) <= 36  # two seconds, and what was heard meanwhile, of seven
            start.set()
            await late.until(lambda: late.done)
            await early.until(lambda: early.done)
            assert sum(len(play.speech.samples) for play in early.all(cmd.Play)) == 6 * 12 * 2400

    run(check())


@pytest.mark.parametrize("why", ["others wait", "its listener does not keep up"])
def test_a_reply_that_stands_aside_has_not_failed(why: str) -> None:
    """It has said enough for a while that is longer than a model may be silent."""

    async def check() -> None:
        bundle, room, more, never = TalkBundle(), asyncio.Event(), threading.Event(), threading.Event()
        scheduler = Scheduler(hearing=1, replying=1)
        sentence = "One two three four five six seven eight nine ten eleven twelve. "
        answers = [[2 * sentence, more, 2 * sentence], ["Fine.", never]]
        bundle.responder.answer = lambda messages, tools: answers.pop(0)
        async with (
            talking(bundle, room=room, scheduler=scheduler, patience=0.4) as one,
            talking(bundle, scheduler=scheduler) as two,
        ):
            for talk in (one, two):
                talk.session.handle(ev.CreateItem(MessageItem("x", "user", "hi")))
            one.session.handle(ev.CreateReply())
            await one.until(lambda: one.all(cmd.Play))
            if why == "others wait":
                two.session.handle(ev.CreateReply())
            else:
                room.clear()
            more.set()
            await asyncio.sleep(1.0)
            assert not one.done
            two.session.handle(ev.ClearOutput())
            room.set()
            await one.until(lambda: one.done)
            assert one.done[0].status == "completed"
            assert sum(len(play.speech.samples) for play in one.all(cmd.Play)) == 4 * 12 * 2400

    run(check())


def test_a_ticket_that_was_hurried_is_not_refused_once_it_works() -> None:
    async def check() -> None:
        lane = Lane(1, patience=0.05)
        gone, back = asyncio.Event(), asyncio.Event()
        ticket = lane.ticket(Urgency.SPECULATIVE)
        first = lane.ticket(Urgency.AWAITED)
        async with first:
            working = asyncio.create_task(_stand_aside(ticket, gone, back))
            await asyncio.sleep(0)
            ticket.hurry()
            ticket.hurry()
        await gone.wait()
        async with lane.ticket(Urgency.AWAITED):
            back.set()
            await asyncio.sleep(0.2)  # longer than it may wait for its first place
            assert not working.done()
        await working

    run(check())


def test_a_ticket_that_was_hurried_before_it_asked_for_its_place_gets_one() -> None:
    async def check() -> None:
        lane = Lane(1, patience=0.05)
        ticket = lane.ticket(Urgency.SPECULATIVE)
        ticket.hurry()
        await asyncio.sleep(0.1)
        await _enter(ticket)
        assert lane.free

    run(check())


async def _stand_aside(ticket: Any, gone: asyncio.Event, back: asyncio.Event) -> None:
    async with ticket:
        gone.set()
        await ticket.stand_aside(back.wait())


# ---------------------------------------------------------------- reading ahead


class Reader(ScriptedResponder):
    """Reads ahead, and takes its time to stop."""

    def __init__(self, bundle: TalkBundle) -> None:
        super().__init__(bundle.work)
        self.asked: list[str] = []
        self.reading = threading.Event()
        self.go_on = threading.Event()
        self.fail = False

    def warm(self, messages, tools=(), *, words="", cancel=None):
        self.asked.append(words)
        if self.fail:
            raise RuntimeError("out of memory")
        if not words:
            self.reading.set()
            self.go_on.wait(PATIENCE)
        return 0.9


def test_what_is_asked_while_the_last_reading_ends_is_read_too() -> None:
    async def check() -> None:
        bundle = TalkBundle()
        bundle.responder = reader = Reader(bundle)
        async with talking(bundle) as talk:
            told = talk.session.controller.handle
            scored: list[ev.Event] = []

            def noting(event: ev.Event, now: float) -> list[note.Output]:
                scored.extend([event] if isinstance(event, ev.Scored) else [])
                return told(event, now)

            talk.session.controller.handle = noting  # type: ignore[method-assign]
            talk.session._carry_out(cmd.Warm((), (), ""))
            await talk.until(reader.reading.is_set)
            talk.session._reading.stop()
            talk.session._carry_out(cmd.Warm((), (), "how are", "job"))
            reader.go_on.set()
            await talk.until(lambda: scored)
            assert scored == [ev.Scored("job", 0.9)]

    run(check())


def test_a_speculation_waits_for_the_answer_that_is_asked_with_it() -> None:
    async def check() -> None:
        bundle = TalkBundle()
        bundle.responder = reader = Reader(bundle)
        reader.go_on.set()
        settings = replace(QUIET, turn=TurnConfig.semantic_vad())
        async with talking(bundle, settings) as talk:
            scored: list[float | None] = []
            told = talk.session.controller.handle

            def noting(event: ev.Event, now: float) -> list[note.Output]:
                scored.extend([event.probability] if isinstance(event, ev.Scored) else [])
                return told(event, now)

            talk.session.controller.handle = noting  # type: ignore[method-assign]
            await talk.say(1.0, 0.3)
            await talk.until(lambda: bundle.responder.prompts)
            assert scored == [0.9]

    run(check())


def test_a_reading_that_fails_is_told_to_the_log_and_the_turn_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        bundle = TalkBundle()
        bundle.responder = reader = Reader(bundle)
        reader.fail = True
        async with talking(bundle, replace(QUIET, turn=TurnConfig.semantic_vad())) as talk:
            await talk.say(1.0, 2.5)
            await talk.until(lambda: talk.done)
            assert reader.asked
            assert talk.done[0].status == "completed"

    run(check())
    assert "out of memory" in caplog.text
    assert "never retrieved" not in caplog.text


# ---------------------------------------------------------------- items with audio


def test_the_audio_of_an_item_that_is_deleted_at_once_is_not_kept() -> None:
    async def check() -> None:
        async with talking(TalkBundle()) as talk:
            for number in range(3):
                item = MessageItem(f"item{number}", "user", None)
                talk.session.create_item(ev.CreateItem(item), np.zeros(RATE, np.float32))
                talk.session.handle(ev.DeleteItem(item.id))
            await asyncio.sleep(0.05)
            kept = [value for value in vars(talk.session).values() if isinstance(value, dict) and value]
            assert kept == []

    run(check())


# ---------------------------------------------------------------- the ring


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 200)), max_size=20),
    st.integers(0, 400),
    st.integers(0, 400),
)
def test_the_ring_holds_what_was_not_forgotten(steps: list[tuple[int, int]], start: int, end: int) -> None:
    ring, whole = InputRing(), np.zeros(0, np.float32)
    kept = 0
    for size, before in steps:
        block = np.arange(len(whole), len(whole) + size, dtype=np.float32)
        whole = np.concatenate([whole, block])
        ring.push(block)
        ring.forget(before)
        kept = max(kept, before)
    assert ring.start <= max(kept, 0)
    assert ring.end == len(whole)
    assert len(ring) == ring.end - ring.start
    np.testing.assert_array_equal(ring.read(start, end), whole[max(start, ring.start) : max(end, ring.start)])
