"""The throttle and the ring of a speculation; whole speculations are in test_agent_conversation.py."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent.context import MessageItem
from stepaudio.agent.settings import ReplyOptions, SpeculationConfig
from stepaudio.agent.speculation import MOST_EVENTS, Reply, Speculation, Statistics, Throttle
from stepaudio.errors import InputError
from stepaudio.speech.roles import Finish, Sampling, ToolCall
from virtual_time import RATE, speech


def test_an_idle_machine_tries_everything_and_a_full_one_nothing() -> None:
    throttle = Throttle(calm=0.5)
    assert throttle.allows(0.0)
    throttle.observe(0.75)
    assert not throttle.allows(0.49)
    assert throttle.allows(0.5)
    throttle.observe(1.0)
    assert throttle.closed
    assert not throttle.allows(1.0)


def test_pressure_rises_at_once_and_falls_slowly() -> None:
    throttle = Throttle()
    throttle.observe(1.0)
    throttle.observe(0.0)
    assert throttle.pressure == 0.5
    throttle.observe(0.8)
    assert throttle.pressure == 0.8


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 2))
def test_more_likely_ends_are_tried_first(a: float, b: float, pressure: float) -> None:
    throttle = Throttle()
    throttle.observe(pressure)
    if a <= b and throttle.allows(a):
        assert throttle.allows(b)


def make(limit: float = 10.0) -> Speculation:
    start = cmd.StartReply("r1", (), (), "auto", Sampling(), True, None, 1.0, True)
    return Speculation(Reply(start, ReplyOptions(), {}), MessageItem("u", "user", "Hello?"), 3, 1.0, limit)


def test_the_ring_is_bounded_in_seconds_and_events() -> None:
    speculation = make(limit=1.0)
    speculation.hold(ev.ReplySpeech("r1", speech("a", 1.0)), RATE)
    assert speculation.full
    assert not speculation.overflowed
    speculation.hold(ev.ReplySpeech("r1", speech("a", 1.0)), RATE)
    assert speculation.overflowed
    chatty = make()
    for _ in range(MOST_EVENTS):
        chatty.hold(ev.ReplyText("r1", "a"), RATE)
    assert chatty.overflowed


def test_it_answers_its_words_in_its_version_of_the_history() -> None:
    speculation = make()
    assert speculation.answers("hello, um", 3)
    assert not speculation.answers("hello there", 3)
    assert not speculation.answers("Hello?", 4)


def test_the_past_of_the_next_reply_holds_calls_and_results() -> None:
    speculation = make()
    speculation.hold(ev.ReplyText("r1", "Let me see."), RATE)
    speculation.hold(ev.ReplyCall("r1", ToolCall("c", "look", {})), RATE)
    speculation.hold(ev.ReplyFinished("r1", Finish("tool_calls")), RATE)
    assert not speculation.due
    speculation.hold(ev.ToolFinished("c", "42"), RATE)
    assert speculation.due
    assert [type(item).__name__ for item in speculation.past()] == [
        "MessageItem", "MessageItem", "CallItem", "OutputItem",
    ]  # fmt: skip


def test_the_commit_rate_counts_what_is_settled() -> None:
    statistics = Statistics(started=4, committed=1)
    statistics.discarded["changed"] += 1
    assert statistics.commit_rate == 0.5
    assert Statistics().commit_rate == 0.0


@pytest.mark.parametrize("bad", [{"attempts": 0}, {"seconds": 0.0}, {"filler": -1.0}, {"calm": 1.0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SpeculationConfig(**bad)  # type: ignore[arg-type]
