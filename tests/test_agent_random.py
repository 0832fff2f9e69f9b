"""Random conversations: whatever happens in whatever order, the promises of `docs/live.md` hold (see `Watch`).

The driver picks one event after another, at controller level: it knows what is open (jobs, replies, tools) and answers
it early, late, twice or never, while the user talks, the client asks for things and the clock runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.context import ContextConfig, MessageItem, OutputItem
from stepaudio.agent.controller import Controller
from stepaudio.agent.errors import RequestError
from stepaudio.agent.settings import ReplyOptions, Settings, SpeculationConfig
from stepaudio.agent.tools import ToolSpec
from stepaudio.agent.turn import WINDOW, TurnConfig
from stepaudio.speech.roles import Finish, Tool, ToolCall
from virtual_time import RATE, Watch, speech

_TRANSCRIPTS = (
    "What is the weather going to be like tomorrow?",
    "what is the weather going to be like tomorrow um",
    "Um.",
    "",
    "mm-hm",
    "And in Paris?",
    "my number is",
)
_TOOLS = (
    ToolSpec(Tool("look", read_only=True), timeout=1.0),
    ToolSpec(Tool("book"), timeout=2.0),
    ToolSpec(Tool("ask"), client_side=True),
)
_CONFIGS = (
    Settings(tools=_TOOLS, turn=TurnConfig(pause=0.1, floor=0.13, ceiling=0.4, min_speech=0.064)),
    Settings(tools=_TOOLS, turn=TurnConfig.server_vad(silence_duration=0.13, idle_timeout=2.0), acoustic=True),
    Settings(
        tools=_TOOLS,
        turn=TurnConfig(pause=0.1, floor=0.13, ceiling=0.3, min_speech=0.064, interrupt_response=False),
        fillers=("One moment.",),
        filler_after=0.3,
        parallel_tools=1,
    ),
    Settings(
        tools=_TOOLS,
        turn=TurnConfig(pause=0.1, floor=0.13, ceiling=0.3, min_speech=0.064, interrupt_after=0.0),
        speculation=SpeculationConfig(seconds=0.5, filler=0.1),
        context=ContextConfig(budget=64, summarise_at=0.6, keep=0.2),
    ),
    Settings(tools=_TOOLS, turn=None),
    Settings(tools=_TOOLS, turn=TurnConfig(pause=0.1, floor=0.13, ceiling=0.3), speak=False),
    Settings(tools=_TOOLS, turn=TurnConfig(pause=0.1, floor=0.13, ceiling=0.3, create_response=False)),
)


class Driver:
    """One random conversation. `open_*` are the ids that an answer may still be sent for; some stay in for ever."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.controller = Controller(rng.choice(_CONFIGS), rate=RATE)
        self.watch = Watch(self.controller)
        self.now = 0.0
        self.open: dict[str, list[str]] = {"text": [], "score": [], "reply": [], "tool": [], "summary": []}
        self.said = 0
        self.phrase = _TRANSCRIPTS[0]
        self.seen: set[type] = set()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            for step in self.rng.choices(_STEPS, _WEIGHTS, k=4):
                step(self)
        self.watch.history()

    def send(self, event: ev.Event) -> None:
        try:
            outputs = self.watch.handle(event, self.now)
        except RequestError:
            return
        for output in outputs:
            self.seen.add(type(output))
            match output:
                case cmd.Transcribe(job) | cmd.Overhear(job):
                    self.open["text"].append(job)
                case cmd.Score(job) | cmd.Warm(job=str(job)):
                    self.open["score"].append(job)
                case cmd.StartReply(reply_id):
                    self.open["reply"].append(reply_id)
                case cmd.RunTool(call):
                    self.open["tool"].append(call.id)
                case cmd.Summarise(job):
                    self.open["summary"].append(job)

    def pick(self, kind: str) -> str:
        """An id of the kind, the newest most often; sometimes it is done with, sometimes it comes again."""
        ids = self.open[kind]
        if not ids:
            return "nobody"
        index = -1 if self.rng.random() < 0.7 else self.rng.randrange(len(ids))
        return ids.pop(index) if self.rng.random() < 0.5 else ids[index]

    # ------------------------------------------------------------ what may happen

    def talk(self) -> None:
        for probability in (0.95,) * self.rng.choice((1, 3, 8, 20)):
            self.window(probability)

    def hush(self) -> None:
        for probability in (0.05,) * self.rng.choice((1, 4, 6, 14)):
            self.window(probability)

    def hesitate(self) -> None:
        """Pauses around a filler, with the words known at each."""
        self.phrase = self.rng.choice((_TRANSCRIPTS[0], "mm-hm"))
        for windows, probability in ((5, 0.95), (4, 0.05), (3, 0.95), (5, 0.05)):
            for _ in range(windows):
                self.window(probability)
            if probability < 0.5 and self.open["text"]:
                self.send(ev.Transcribed(self.open["text"][-1], self.phrase, "en"))

    def window(self, probability: float) -> None:
        self.now += WINDOW
        self.send(ev.Window(probability))

    def wait(self) -> None:
        wake = self.controller.wake_at
        self.now = max(self.now, wake) if wake is not None and self.rng.random() < 0.5 else self.now + 0.2
        self.send(ev.Tick())

    def transcript(self) -> None:
        if self.rng.random() < 0.1:
            self.send(ev.TranscribeFailed(self.pick("text"), "broken"))
        else:
            if self.rng.random() < 0.4:
                self.phrase = self.rng.choice(_TRANSCRIPTS)
            self.send(ev.Transcribed(self.pick("text"), self.phrase, "en"))

    def score(self) -> None:
        self.send(ev.Scored(self.pick("score"), self.rng.random()))

    def reply_text(self) -> None:
        reply_id = self.pick("reply")
        self.said += 1
        text = f"word{self.said} and more than a few others "
        self.send(ev.ReplyText(reply_id, text))
        if self.rng.random() < 0.8:
            self.send(ev.ReplySpeech(reply_id, speech(text, self.rng.choice((0.05, 0.3, 1.5)))))
        self.open["reply"].append(reply_id)

    def reply_call(self) -> None:
        name = self.rng.choice(("look", "book", "ask", "unknown"))
        self.send(ev.ReplyCall(self.pick("reply"), ToolCall("same", name, {})))

    def reply_end(self) -> None:
        if self.rng.random() < 0.15:
            self.send(ev.ReplyFailed(self.pick("reply"), "broken"))
        else:
            reason = self.rng.choice(("stop", "length", "tool_calls"))
            self.send(ev.ReplyFinished(self.pick("reply"), Finish(reason, 1, 0, 1)))

    def tool(self) -> None:
        if self.rng.random() < 0.2:
            self.send(ev.ToolFailed(self.pick("tool"), "broken"))
        else:
            self.send(ev.ToolFinished(self.pick("tool"), "42"))

    def summary(self) -> None:
        job = self.pick("summary")
        self.send(ev.SummariseFailed(job) if self.rng.random() < 0.2 else ev.Summarised(job, "Much was said."))

    def position(self) -> None:
        self.send(ev.Played(self.item(), self.rng.random() * 2))

    def item(self) -> str:
        ids = [item.id for item in self.controller.context.items]
        return self.rng.choice(ids) if ids else "nobody"

    def request(self) -> None:
        rng = self.rng
        self.said += 1
        calls = [i.call.id for i in self.controller.context.items if hasattr(i, "call")]
        self.send(
            rng.choice(
                (
                    ev.CommitInput(),
                    ev.ClearInput(),
                    ev.CreateReply(),
                    ev.CreateReply(ReplyOptions(in_history=False, speak=rng.random() < 0.5)),
                    ev.StopReply(),
                    ev.ClearOutput(),
                    ev.Say("Hello there."),
                    ev.CreateItem(
                        MessageItem(f"mine{self.said}", "user", rng.choice(("hi", None))), rng.choice((None, "root"))
                    ),
                    ev.CreateItem(OutputItem(f"mine{self.said}", rng.choice([*calls, "nobody"]), "7")),
                    ev.DeleteItem(self.item()),
                    ev.TruncateItem(self.item(), rng.random()),
                    ev.Load(rng.random() * 1.2),
                    ev.Configure(rng.choice(_CONFIGS)),
                )
            )
        )


_WEIGHTED: dict[Callable[[Driver], None], int] = {
    Driver.talk: 4,
    Driver.hesitate: 1,
    Driver.hush: 5,
    Driver.wait: 3,
    Driver.transcript: 5,
    Driver.score: 1,
    Driver.reply_text: 6,
    Driver.reply_call: 2,
    Driver.reply_end: 3,
    Driver.tool: 2,
    Driver.summary: 1,
    Driver.position: 1,
    Driver.request: 2,
}
_STEPS, _WEIGHTS = list(_WEIGHTED), list(_WEIGHTED.values())


@pytest.mark.parametrize("seeds", [range(1500)], ids=str)
def test_random_conversations(seeds: range) -> None:
    for seed in seeds:
        converse(seed)


@pytest.mark.slow
def test_ten_thousand_random_conversations() -> None:
    for seed in range(10_000):
        converse(seed)


def converse(seed: int) -> Driver:
    driver = Driver(random.Random(seed))
    try:
        driver.run(12)
    except Exception as error:
        raise AssertionError(f"conversation {seed}") from error
    return driver


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_any_conversation(rng: random.Random, steps: int) -> None:
    Driver(rng).run(steps)


def test_the_driver_gets_everywhere() -> None:
    """A driver that never commits or interrupts would prove nothing."""
    seen: set[type] = set()
    committed = 0
    for seed in range(400):
        driver = converse(seed)
        seen |= driver.seen
        committed += driver.controller.statistics.committed
    assert set(get_args(note.Output)) - seen == set()
    assert committed > 40
