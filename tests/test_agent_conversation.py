"""Whole conversations in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.context import CallItem, ContextConfig, MessageItem, OutputItem, estimate_tokens
from stepaudio.agent.errors import RequestError
from stepaudio.agent.settings import ReplyOptions, Settings, SpeculationConfig
from stepaudio.agent.tools import ToolSpec
from stepaudio.agent.turn import WINDOW, TurnConfig
from stepaudio.speech.roles import Message, Tool, ToolCall
from virtual_time import Delays, Said, World

NO_SPECULATION = SpeculationConfig(enabled=False)
QUESTION = [Said(0.5, 2.1, "What is the weather in Paris?")]


def sunny(messages: tuple[Message, ...]) -> list[str | ToolCall]:
    return ["It is sunny today, ", "with a light wind from the west."]


def asks(name: str, *then: str):
    """A model that calls the tool once, then says `then`."""

    def answer(messages: tuple[Message, ...]) -> list[str | ToolCall]:
        if messages[-1].role == "tool":
            return list(then)
        return ["Let me see. ", ToolCall("x", name, {"city": "Paris"})]

    return answer


def settings(**changes: object) -> Settings:
    return replace(Settings(instructions="Be brief."), **changes)


# ---------------------------------------------------------------- latency


@pytest.mark.parametrize("endpoint", [0.5, 0.7, 1.2])
@pytest.mark.parametrize("delays", [Delays(0.2, 0.25, 0.05), Delays(0.1, 0.1, 0.3), Delays(0.6, 0.5, 0.2)])
def test_speculation_saves_what_theory_says(endpoint: float, delays: Delays) -> None:
    turn = TurnConfig.server_vad(silence_duration=endpoint)
    with_it = World(QUESTION, sunny, settings(turn=turn), delays).run(8)
    without = World(QUESTION, sunny, settings(turn=turn, speculation=NO_SPECULATION), delays).run(8)
    models = delays.stt + delays.ttft + delays.tts
    assert first_audio(without) == pytest.approx(endpoint + models, abs=2 * WINDOW)
    # The transcript is asked for at the first silent window, the reply at the pause or when the transcript is there.
    prepared = max(turn.pause, WINDOW + delays.stt) + delays.ttft + delays.tts
    assert first_audio(with_it) == pytest.approx(max(endpoint, prepared), abs=2 * WINDOW)
    assert with_it.history() == without.history()


def first_audio(world: World) -> float:
    """Seconds from the end of the user's speech to the first audio, on the listener's clock."""
    time, _ = world.first(cmd.Play)
    timed = world.all(note.TurnTimed)[0]
    assert timed.first_audio == pytest.approx(time - QUESTION[0].end, abs=2 * WINDOW)
    return time - QUESTION[0].end


def test_a_finished_sentence_is_answered_sooner_than_an_open_one() -> None:
    ends = {}
    for text in ("What is the weather in Paris?", "What is the weather in"):
        world = World([Said(0.5, 2.1, text)], sunny, settings(turn=TurnConfig.semantic_vad())).run(12)
        ends[text], _ = world.first(note.SpeechStopped)
    quick, slow = ends.values()
    assert quick - 2.1 < 0.8
    assert slow - 2.1 > 2.5


# ---------------------------------------------------------------- while the user speaks


def test_words_are_known_and_read_before_the_turn_is_over() -> None:
    world = World([Said(0.5, 2.5, "What is"), Said(2.6, 3.6, "the weather in Paris?")], sunny, settings()).run(8)
    begun, _ = world.first(note.SpeechStarted)
    partials = [(time, output.text) for time, output in world.log if isinstance(output, note.TranscriptPartial)]
    warmed = [(time, output.words) for time, output in world.log if isinstance(output, cmd.Warm)]
    assert partials[0][0] < 2.5
    assert partials[0][1] == "What is"
    assert warmed[0] == (begun, "")
    assert (partials[0][0], "What") in warmed
    assert world.history()[1] == ("user", "What is the weather in Paris?")


def test_new_instructions_are_read_before_anybody_speaks() -> None:
    world = World([Said(5.0, 6.5, "What is the weather?")], sunny, settings())
    polite = settings(instructions="Be polite.")
    world.at(0.5, ev.Configure(settings()))  # what the session began with has not been read either
    world.at(1.0, ev.Configure(polite))
    world.at(2.0, ev.Configure(replace(polite, voice="other")))
    world.at(5.5, ev.Configure(settings(instructions="Be rude.")))
    world.run(5.2)
    warmed = [(time, each.words, each.messages[0].content) for time, each in world.log if isinstance(each, cmd.Warm)]
    assert warmed[:2] == [(0.5, "", "Be brief."), (1.0, "", "Be polite.")]
    assert [time > 5.0 for time, *_ in warmed[2:]] == [True]
    before = len(world.all(cmd.Warm))
    world.run(5.55)  # in the turn its own words come first
    assert len(world.all(cmd.Warm)) == before


def test_a_transcript_of_all_that_was_said_is_not_made_twice() -> None:
    world = World(QUESTION, sunny, settings()).run(8)
    assert world.all(cmd.Overhear)
    assert world.all(cmd.Transcribe) == []
    assert world.history()[1] == ("user", QUESTION[0].text)


def test_a_transcript_without_the_end_is_not_waited_for() -> None:
    slow = Delays(stt=0.7)
    world = World([Said(0.5, 1.8, "What is the weather in Paris?")], sunny, settings(), delays=slow).run(8)
    early, late = world.all(cmd.Overhear)
    assert early.end < 1.8 < late.end < 1.9
    cancelled = [output.job for output in world.all(cmd.CancelTranscribe)]
    assert cancelled == [early.job]
    assert world.all(cmd.Transcribe) == []
    assert world.history()[1] == ("user", "What is the weather in Paris?")


@pytest.mark.parametrize(("tail", "replies"), [("", 1), ("in Paris?", 2)])
def test_a_reply_to_nearly_all_that_was_said_is_prepared_while_the_whole_is_transcribed(
    tail: str, replies: int
) -> None:
    said = [Said(0.5, 2.0, "What is the weather"), Said(2.03, 2.1, tail)]
    world = World(said, sunny, settings(), Delays(stt=0.3)).run(8)
    whole = " ".join(part.text for part in said).strip()
    (transcribed,) = [time for time, output in world.log if isinstance(output, cmd.Transcribe)]
    first, _ = world.first(cmd.StartReply)
    assert first < transcribed + 0.3  # before the whole is known
    assert len(world.all(cmd.StartReply)) == replies
    assert [notice.text for notice in world.all(note.TranscriptDone)] == [whole]
    assert world.history()[1] == ("user", whole)


def test_nearly_all_that_was_said_is_kept_when_the_whole_cannot_be_transcribed() -> None:
    class Failing(World):
        def _carry_out(self, output: note.Output, now: float) -> None:
            if isinstance(output, cmd.Transcribe):
                self.at(now + 2.0, ev.TranscribeFailed(output.job, "The model failed."), output.job)
            else:
                super()._carry_out(output, now)

    said = [Said(0.5, 2.0, "What is the weather?"), Said(2.03, 2.1, "")]
    world = Failing(said, sunny, settings(), Delays(stt=0.3)).run(10)
    assert len(world.all(cmd.Transcribe)) == 1
    assert world.all(note.TranscriptFailed) == []
    assert [role for role, _ in world.history()[1:3]] == ["user", "assistant"]
    assert world.history()[1] == ("user", "What is the weather?")


@pytest.mark.parametrize("after", [0.1, 2.0])
def test_what_gave_way_to_others_after_the_pause_is_asked_for_again(after: float) -> None:
    """The user still pauses, or the turn is over."""

    class Busy(World):
        def _carry_out(self, output: note.Output, now: float) -> None:
            if isinstance(output, cmd.Overhear) and output.end > 2.1:
                self.at(now + after, ev.TranscribeFailed(output.job, "Others are waiting to be heard."), output.job)
            else:
                super()._carry_out(output, now)

    world = Busy(QUESTION, sunny, settings()).run(10)
    assert len(world.all(cmd.Transcribe)) == 1
    assert world.history()[1] == ("user", QUESTION[0].text)
    assert world.history()[2][0] == "assistant"


def test_a_busy_transcriber_is_asked_again_at_the_pause() -> None:
    class Busy(World):
        def _carry_out(self, output: note.Output, now: float) -> None:
            if isinstance(output, cmd.Overhear):
                self.at(now, ev.TranscribeFailed(output.job, "Others are waiting to be heard."), output.job)
            else:
                super()._carry_out(output, now)

    world = Busy(QUESTION, sunny, settings()).run(8)
    assert len(world.all(cmd.Transcribe)) == 1
    assert world.history()[1] == ("user", QUESTION[0].text)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.9, 2.5, 3.0), (None, 2.5, 3.0), (0.01, 3.2, 5.0)])
def test_the_responder_hears_whether_a_sentence_is_over(probability: float | None, least: float, most: float) -> None:
    """The recogniser ends every pause with a full stop; the language model may expect more."""

    class Judging(World):
        def _carry_out(self, output: note.Output, now: float) -> None:
            if isinstance(output, cmd.Warm) and output.job is not None:
                assert output.words == "The train leaves at seven"
                self.at(now + 0.05, ev.Scored(output.job, probability), output.job)
            super()._carry_out(output, now)

    said = [Said(0.5, 2.1, "The train leaves at seven.")]
    ended, _ = Judging(said, sunny, settings(turn=TurnConfig.semantic_vad())).run(12).first(note.SpeechStopped)
    assert least < ended < most


def test_without_speculation_nothing_is_done_ahead() -> None:
    world = World(QUESTION, sunny, settings(speculation=NO_SPECULATION)).run(8)
    assert world.all(cmd.Overhear) == []
    assert [warm for warm in world.all(cmd.Warm) if warm.job is None] == []


# ---------------------------------------------------------------- speculation


def test_a_speculation_is_dropped_when_the_user_goes_on() -> None:
    said = [Said(0.5, 2.0, "What is the weather"), Said(2.6, 4.0, "in Paris on Monday?")]
    world = World(said, sunny, settings(turn=TurnConfig.server_vad(silence_duration=0.8))).run(10)
    first, second = world.all(note.Speculated)
    assert (first.committed, first.reason) == (False, "resumed")
    assert second.committed
    assert len(world.all(note.ReplyStarted)) == 1
    assert world.history()[1] == ("user", "What is the weather in Paris on Monday?")


@pytest.mark.parametrize("more", ["um", "Hmm.", ""])
def test_a_filler_keeps_the_speculation(more: str) -> None:
    said = [Said(0.5, 2.0, "What is the weather?"), Said(2.6, 3.0, more)]
    world = World(said, sunny, settings(turn=TurnConfig.server_vad(silence_duration=0.8))).run(10)
    (outcome,) = world.all(note.Speculated)
    assert outcome.committed
    assert world.all(cmd.PauseReply) or world.first(cmd.Play)[0] > 3.0
    assert len(world.all(cmd.StartReply)) == 1


def test_work_on_a_speculation_waits_while_the_user_makes_a_sound() -> None:
    said = [Said(0.5, 2.0, "What is the weather?"), Said(2.8, 3.1, "um")]
    turn = TurnConfig.server_vad(silence_duration=1.0)
    world = World(said, sunny, settings(turn=turn), Delays(ttft=2.5)).run(10)
    (pause, _), (resume, _) = world.first(cmd.PauseReply), world.first(cmd.ResumeReply)
    assert 2.8 < pause < 3.1 < resume < 3.6
    assert [outcome.committed for outcome in world.all(note.Speculated)] == [True]
    assert world.history()[-1] == ("assistant", "".join(sunny(())))


def test_a_full_ring_waits_for_the_commit_even_when_a_filler_is_over() -> None:
    said = [Said(0.5, 2.0, "What is the weather?"), Said(2.9, 3.2, "um")]
    config = SpeculationConfig(seconds=1.0)
    turn = TurnConfig.server_vad(silence_duration=1.0)
    world = World(said, sunny, settings(turn=turn, speculation=config)).run(10)
    assert len(world.all(cmd.PauseReply)) == 1
    assert not world.all(cmd.ResumeReply)
    assert world.history()[-1] == ("assistant", "".join(sunny(())))


def test_a_turn_has_a_few_attempts_only() -> None:
    said = [Said(0.5 + i, 1.0 + i, f"word {i}") for i in range(6)]
    turn = TurnConfig.server_vad(silence_duration=0.8)
    config = SpeculationConfig(attempts=2)
    world = World(said, sunny, settings(turn=turn, speculation=config), Delays(stt=0.1)).run(12)
    assert [start.speculative for start in world.all(cmd.StartReply)] == [True, True, False]


def test_audio_beyond_the_ring_waits_for_the_commit() -> None:
    config = SpeculationConfig(seconds=2.0)
    turn = TurnConfig.server_vad(silence_duration=1.5)
    long = World(QUESTION, lambda m: ["one two three four "] * 6, settings(turn=turn, speculation=config)).run(12)
    assert len(long.all(cmd.PauseReply)) == 1
    assert sum(len(p.speech.samples) for p in long.all(cmd.Play)) == 172_800


def test_read_only_tools_run_inside_the_speculation_and_others_at_commit() -> None:
    turn = TurnConfig.server_vad(silence_duration=1.5)
    for read_only in (True, False):
        tools = (ToolSpec(Tool("weather", read_only=read_only)),)
        world = World(QUESTION, asks("weather", "It is sunny."), settings(turn=turn, tools=tools)).run(10)
        commit, _ = world.first(note.SpeechStopped)
        ran, _ = world.first(cmd.RunTool)
        assert (ran < commit) == read_only
        assert len(world.all(cmd.RunTool)) == 1
        assert [role for role, _ in world.history()] == ["system", "user", "assistant", "tool", "assistant"]
        scratch = World(
            QUESTION,
            asks("weather", "It is sunny."),
            settings(turn=turn, tools=tools, speculation=NO_SPECULATION),
        ).run(10)
        assert scratch.history() == world.history()
        if read_only:  # the answer to the tool's result was ready, too
            assert world.first(cmd.Play)[0] == commit
            assert len([t for t, _ in world.log if t == commit and isinstance(_, note.ReplyStarted)]) == 2


def test_a_discarded_speculation_cancels_its_tool_and_the_next_one_asks_again() -> None:
    said = [Said(0.5, 2.0, "What is the weather"), Said(2.8, 4.0, "in Paris on Monday?")]
    tools = (ToolSpec(Tool("weather", read_only=True)),)
    turn = TurnConfig.server_vad(silence_duration=1.2)
    world = World(
        said, asks("weather", "Sunny."), settings(turn=turn, tools=tools), Delays(tool=5.0), obedient=False
    ).run(20)
    assert len(world.all(cmd.CancelTool)) == 1
    assert len(world.all(cmd.RunTool)) == 2
    assert [role for role, _ in world.history()] == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("asked", [1.0, 2.3], ids=["while the user speaks", "while a reply is prepared"])
@pytest.mark.parametrize("speculation", [SpeculationConfig(), NO_SPECULATION], ids=["speculation", "none"])
def test_the_reply_that_the_client_asks_for_during_a_turn_is_the_one_it_gets(
    asked: float, speculation: SpeculationConfig
) -> None:
    turn = TurnConfig.server_vad(silence_duration=0.8)
    world = World(QUESTION, sunny, settings(turn=turn, speculation=speculation))
    world.at(asked, ev.CreateReply(ReplyOptions(instructions="Be kind.", metadata={"mine": "yes"})))
    world.run(9)
    (started,) = world.all(note.ReplyStarted)
    assert started.metadata == {"mine": "yes"}
    (start,) = [start for start in world.all(cmd.StartReply) if not start.speculative]
    assert start.messages[0].content == "Be kind."
    assert world.history()[1:] == [("user", QUESTION[0].text), ("assistant", "".join(sunny(())))]


def test_load_stops_speculations_but_not_replies() -> None:
    world = World(QUESTION, sunny, settings())
    world.at(0.1, ev.Load(1.0))
    world.run(8)
    assert not world.all(note.Speculated)
    assert len(world.all(note.ReplyDone)) == 1


def test_a_history_without_end_is_refused_and_the_conversation_goes_on() -> None:
    world = World(QUESTION, sunny, settings())
    for number in range(4):
        world.at(0.1, ev.CreateItem(MessageItem(f"long{number}", "user", "word " * 50_000)))
    with pytest.raises(RequestError) as refused:
        world.run(0.2).controller.handle(ev.CreateItem(MessageItem("more", "user", "word " * 1)), 0.2)
    assert refused.value.code == "conversation_full"
    world.at(0.2, ev.DeleteItem("long0"))
    world.at(0.3, ev.CreateItem(MessageItem("more", "user", "a word")))
    world.run(9)
    assert world.history()[-1] == ("assistant", "".join(sunny(())))
    assert "more" in world.controller.context


def test_replies_outside_the_conversation_are_a_few_at_once() -> None:
    world = World([], sunny, settings())
    aside = ev.CreateReply(ReplyOptions(in_history=False, speak=False))
    for _ in range(8):
        world.controller.handle(aside, 0.1)
    with pytest.raises(RequestError) as refused:
        world.controller.handle(aside, 0.2)
    assert refused.value.code == "too_many_responses"
    started = list(world.controller._replies._publisher.live)
    world.controller.handle(ev.StopReply(started[0]), 0.3)
    world.controller.handle(aside, 0.4)
    world.controller.handle(ev.CreateReply(), 0.5)  # the conversation's own is not among them


# ---------------------------------------------------------------- barge-in and backchannels


@pytest.mark.parametrize("question", [True, False])
@pytest.mark.parametrize(("said", "until"), [(0.45, 0.15), (0.15, -0.05)], ids=["before it is over", "across its end"])
def test_a_short_answer_into_the_end_of_a_question_is_no_murmur(question: bool, said: float, until: float) -> None:
    """The user is quick to say "yes", and says it while the last word is being spoken."""

    def ask(messages: tuple[Message, ...]) -> list[str | ToolCall]:
        if messages[-1].content == "Yes.":
            return ["It is done."]
        return ["Shall I book a table for two?" if question else "I will book a table for two."]

    end = World(QUESTION, ask, settings()).run(8).first(cmd.Play)[0] + 7 * 0.3
    world = World([*QUESTION, Said(end - said, end - until, "Yes.")], ask, settings()).run(12)
    answered = ("assistant", "It is done.") in world.history()
    assert answered == (question or until < 0)
    assert len(world.all(note.Backchannel)) == (not answered)
    assert world.all(note.ItemTruncated) == []


@pytest.mark.parametrize("obedient", [True, False])
def test_after_a_barge_in_history_ends_with_the_last_word_heard(obedient: bool) -> None:
    said = [*QUESTION, Said(5.0, 6.5, "No, I mean tomorrow.")]
    world = World(said, sunny, settings(), obedient=obedient).run(12)
    start, _ = world.first(cmd.Play)
    stop, _ = world.first(cmd.StopPlayback)
    heard = [word for i, word in enumerate(" ".join(sunny(())).split()) if start + (i + 0.5) * 0.3 <= stop]
    assert world.history()[2] == ("assistant", " ".join(heard))
    assert 5.0 < stop < 6.0
    (cut,) = world.all(note.ItemTruncated)
    assert cut.seconds == pytest.approx(stop - start)


def test_a_barge_in_into_a_reply_that_is_still_being_made() -> None:
    """What was sent but not heard is not in the history either."""
    said = [*QUESTION, Said(5.0, 7.0, "No, I mean tomorrow.")]
    world = World(said, lambda m: ["one two three four "] * 20, settings(), Delays(tts=0.5)).run(10)
    (start, _), (stop, _) = world.first(cmd.Play), world.first(cmd.StopPlayback)
    cancelled = world.all(note.ReplyDone)[0]
    words = ("one two three four " * 20).split()
    heard = [word for i, word in enumerate(words) if start + (i + 0.5) * 0.3 <= stop]
    sent = sum(time <= stop for time, output in world.log if isinstance(output, cmd.Play)) * 4
    assert len(heard) < sent < 80
    assert cancelled.status == "cancelled"
    assert cancelled.items[0].text == world.history()[2][1] == " ".join(heard)


@pytest.mark.parametrize("transport", ["elapsed", "media clock", "truncate"])
def test_every_transport_gives_the_same_heard_prefix(transport: str) -> None:
    """The listener's buffer holds 0.9 s: it has heard three words less than the time alone would say."""
    late = 0.9
    said = [*QUESTION, Said(4.5, 6.0, "No, I mean tomorrow.")]
    plain = World(said, sunny, settings()).run(9)
    (started, play), (stop, _) = plain.first(cmd.Play), plain.first(cmd.StopPlayback)
    world = World(said, sunny, settings())
    if transport == "elapsed":
        world.controller.playback.lag = late
    elif transport == "media clock":
        for i in range(20):
            world.at(started + late + i / 10, ev.Played(play.item_id, i / 10))
    else:
        world.at(stop + 0.2, ev.TruncateItem(play.item_id, stop - started - late))
    world.run(7)
    heard = [w for i, w in enumerate("".join(sunny(())).split()) if (i + 0.5) * 0.3 <= stop - started - late]
    assert 3 <= len(heard) <= 8
    assert world.controller.context.get(play.item_id).text == " ".join(heard)


def test_a_truncation_that_does_not_fit_is_refused() -> None:
    world = World(QUESTION, sunny, settings()).run(8)
    (item,) = [item for item in world.controller.context.items if item.reply_id]
    for event, code in (
        (ev.TruncateItem(item.id, 60.0), "item_truncate_invalid_audio_end_ms"),
        (ev.TruncateItem("item_1", 1.0), "item_truncate_invalid_item_id"),
        (ev.TruncateItem("nobody", 1.0), "item_not_found"),
        (ev.StopReply(), "response_cancel_not_active"),
        (ev.CommitInput(), "input_audio_buffer_commit_empty"),
    ):
        with pytest.raises(RequestError) as refused:
            world.controller.handle(event, world.now)
        assert refused.value.code == code
    assert world.history()[-1] == ("assistant", "".join(sunny(())))


def test_audio_that_is_truncated_while_it_is_made_ends_its_reply() -> None:
    world = World(QUESTION, sunny, settings(speculation=NO_SPECULATION), Delays(tts=1.0)).run(4.0)
    item_id = world.all(cmd.Play)[0].item_id
    world.at(4.0, ev.TruncateItem(item_id, 0.7))
    world.run(10)
    assert len(world.all(cmd.Play)) == 1
    assert world.all(note.ReplyDone)[0].reason == "client_cancelled"
    assert world.history()[-1] == ("assistant", "It is")


@pytest.mark.parametrize("sound", ["Mm-hm.", "Right.", "yeah, okay", "嗯", "对", "Mom.", "你。"])
@pytest.mark.parametrize("stt", [0.2, 1.2])
def test_a_backchannel_is_no_turn(sound: str, stt: float) -> None:
    """With a slow transcriber the sound is long over when its words are known."""
    world = World([*QUESTION, Said(4.4, 4.8, sound)], sunny, settings(), Delays(stt=stt)).run(12)
    assert [notice.text for notice in world.all(note.Backchannel)] == [sound]
    assert not world.all(cmd.StopPlayback)
    assert len(world.all(note.SpeechStarted)) == 1
    assert len(world.history()) == 3


@pytest.mark.parametrize(
    ("sound", "lasts", "murmur"),
    [("Okay.", 0.9, True), ("Okay.", 1.05, True), ("Okay.", 1.3, False), ("But", 0.9, False)],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_a_murmur_may_be_drawn_out(sound: str, lasts: float, murmur: bool, enabled: bool) -> None:
    said = [*QUESTION, Said(4.4, 4.4 + lasts, sound)]
    world = World(said, sunny, settings(speculation=SpeculationConfig(enabled=enabled))).run(12)
    assert [notice.text for notice in world.all(note.Backchannel)] == [sound] * murmur
    assert len(world.all(cmd.StopPlayback)) == (not murmur)


def test_nobody_is_told_the_words_of_a_murmur() -> None:
    world = World([*QUESTION, Said(4.4, 5.3, "Okay.")], sunny, settings()).run(12)
    assert "Okay." not in [notice.text for notice in world.all(note.TranscriptPartial)]


def test_other_speech_interrupts_after_as_long_as_ever() -> None:
    world = World([*QUESTION, Said(4.4, 6.5, "But what about tomorrow?")], sunny, settings()).run(12)
    stop, _ = world.first(cmd.StopPlayback)
    assert stop - 4.4 == pytest.approx(settings().turn.interrupt_after, abs=2 * WINDOW)


def test_one_short_word_can_interrupt() -> None:
    world = World([*QUESTION, Said(4.4, 4.8, "Stop!")], sunny, settings()).run(12)
    assert not world.all(note.Backchannel)
    assert len(world.all(cmd.StopPlayback)) == 1


def test_the_same_word_is_an_answer_when_the_agent_is_silent() -> None:
    world = World([*QUESTION, Said(8.0, 8.4, "Right.")], sunny, settings()).run(14)
    assert not world.all(note.Backchannel)
    assert [role for role, _ in world.history()] == ["system", "user", "assistant", "user", "assistant"]


def test_without_interruption_the_next_reply_follows_the_first() -> None:
    said = [*QUESTION, Said(4.0, 5.5, "And tomorrow, please?")]
    turn = TurnConfig(interrupt_response=False)
    world = World(said, sunny, settings(turn=turn)).run(16)
    assert not world.all(cmd.StopPlayback)
    assert [role for role, _ in world.history()] == ["system", "user", "assistant", "user", "assistant"]


def test_a_cough_does_not_lose_the_reply() -> None:
    said = [*QUESTION, Said(2.75, 2.95, "")]
    slow = Delays(stt=0.2, ttft=1.0)
    world = World(said, sunny, settings(turn=TurnConfig.server_vad(silence_duration=0.5)), slow).run(12)
    assert len(world.all(note.SpeechStarted)) == 2
    assert world.history()[-1][0] == "assistant"
    assert [done.status for done in world.all(note.ReplyDone)] == ["cancelled", "completed"]


# ---------------------------------------------------------------- tools


def test_a_late_result_becomes_a_turn_of_its_own() -> None:
    tools = (ToolSpec(Tool("weather")),)
    said = [*QUESTION, Said(5.0, 6.0, "Thank you very much.")]

    def answer(messages: tuple[Message, ...]) -> list[str | ToolCall]:
        if messages[-1].role == "tool":
            return ["Paris is sunny."]
        if messages[-1].content.startswith("Thank"):
            return ["You are welcome."]
        return ["One moment. ", ToolCall("x", "weather", {})]

    world = World(said, answer, settings(tools=tools), Delays(tool=7.0)).run(20)
    assert world.history()[1:] == [
        ("user", "What is the weather in Paris?"),
        ("assistant", "One moment. "),
        ("user", "Thank you very much."),
        ("assistant", "You are welcome."),
        ("assistant", " weather{}"),
        ("tool", "done"),
        ("assistant", "Paris is sunny."),
    ]
    thanked = next(s for s in world.all(cmd.StartReply) if s.messages[-1].content.startswith("Thank"))
    assert thanked.messages[3].content.startswith("The tool is still running")


def test_an_interruption_neither_loses_nor_repeats_a_result() -> None:
    tools = (ToolSpec(Tool("weather")),)
    said = [*QUESTION, Said(3.3, 5.0, "Make it quick, will you?")]
    world = World(
        said,
        asks("weather", "It is sunny."),
        settings(tools=tools),
        Delays(tool=1.5),
        run_tool=lambda c: "21 degrees",
    ).run(15)
    assert len(world.all(cmd.RunTool)) >= 1
    results = [text for role, text in world.history() if role == "tool"]
    assert results.count("21 degrees") == len(world.all(cmd.RunTool)) == len(results)


def test_a_tool_that_takes_too_long_is_told_to_the_model() -> None:
    tools = (ToolSpec(Tool("weather"), timeout=1.0),)
    world = World(QUESTION, asks("weather", "I cannot reach the service."), settings(tools=tools), Delays(tool=60)).run(
        12
    )
    assert len(world.all(cmd.CancelTool)) == 1
    assert world.history()[-2] == ("tool", '{"error": "The tool did not answer in time."}')
    assert world.history()[-1] == ("assistant", "I cannot reach the service.")


def test_the_clients_own_result_for_a_tool_of_ours_stands() -> None:
    tools = (ToolSpec(Tool("weather")),)
    world = World(QUESTION, asks("weather", "It is sunny."), settings(tools=tools), Delays(tool=3.0))
    world.run(4)
    (run,) = world.all(cmd.RunTool)
    world.at(4.0, ev.CreateItem(OutputItem("mine", run.call.id, "snow")))
    world.run(15)
    assert [text for role, text in world.history() if role == "tool"] == ["snow"]
    assert world.history()[-1] == ("assistant", "It is sunny.")


@pytest.mark.parametrize("read_only", [True, False])
def test_a_model_that_only_calls_tools_is_stopped(read_only: bool) -> None:
    def again(messages: tuple[Message, ...]) -> list[str | ToolCall]:
        return [ToolCall("x", "weather", {})]

    tools = (ToolSpec(Tool("weather", read_only=read_only)),)
    turn = TurnConfig.server_vad(silence_duration=2.0)
    world = World(QUESTION, again, settings(tools=tools, tool_rounds=3, turn=turn), Delays(tool=0.1)).run(20)
    starts = world.all(cmd.StartReply)
    assert [start.tool_choice for start in starts] == ["auto", "auto", "auto", "none"]
    roles = [message.role for message in starts[-1].messages]
    assert roles == ["system", "user", *["assistant", "tool"] * 3]


def test_the_acoustic_scorer_is_asked_and_heard() -> None:
    ends = []
    for probability in (0.99, 0.01):
        turn = TurnConfig.semantic_vad()
        world = World(QUESTION, sunny, settings(acoustic=True, turn=turn)).run(2.6)
        (score,) = world.all(cmd.Score)
        world = World(QUESTION, sunny, settings(acoustic=True, turn=turn))
        world.at(2.4, ev.Scored(score.job, probability))
        ends.append(world.run(12).first(note.SpeechStopped)[0])
    assert ends[0] + 0.3 < ends[1]


def test_a_filler_bridges_a_slow_tool() -> None:
    tools = (ToolSpec(Tool("weather")),)

    def answer(messages: tuple[Message, ...]) -> list[str | ToolCall]:
        return ["Sunny."] if messages[-1].role == "tool" else [ToolCall("x", "weather", {})]

    config = settings(tools=tools, fillers=("One moment.",), filler_after=1.0)
    world = World(QUESTION, answer, config, Delays(tool=4.0)).run(15)
    spoken = [notice.text for notice in world.all(note.ReplyTextAdded)]
    assert spoken == ["One moment.", "Sunny."]


def test_client_side_tools_wait_for_the_client() -> None:
    tools = (ToolSpec(Tool("weather"), client_side=True),)
    world = World(QUESTION, asks("weather", "It is sunny."), settings(tools=tools)).run(6)
    assert not world.all(cmd.RunTool)
    (done,) = world.all(note.ReplyDone)
    call = done.items[-1].call
    assert len(world.all(cmd.StartReply)) == 1
    world.at(6.0, ev.CreateItem(OutputItem("mine", call.id, "21")))
    world.at(6.0, ev.CreateReply(ReplyOptions(metadata={"k": "v"})))
    world.said = []
    world.run(12)
    assert world.all(note.ReplyStarted)[-1].metadata == {"k": "v"}
    assert world.history()[-1] == ("assistant", "It is sunny.")


# ---------------------------------------------------------------- manual turns, idle, late transcripts


def test_manual_turns_are_the_clients() -> None:
    world = World(QUESTION, sunny, settings(turn=None))
    world.at(3.0, ev.CommitInput())
    world.at(3.0, ev.CreateReply())
    world.run(8)
    assert not world.all(note.SpeechStarted)
    assert [role for role, _ in world.history()] == ["system", "user", "assistant"]
    assert world.first(cmd.StartReply)[0] == pytest.approx(3.2)  # it waited for the transcript


def test_the_agent_speaks_up_after_a_long_silence() -> None:
    turn = TurnConfig.server_vad(idle_timeout=5.0)
    world = World(QUESTION, sunny, settings(turn=turn)).run(14)
    silent = next(t for t, o in world.log if o == note.StateChanged(note.State.SILENCE))
    assert [t for t, o in world.log if isinstance(o, note.InputTimeout)] == [pytest.approx(silent + 5)]
    assert [done.status for done in world.all(note.ReplyDone)] == ["completed", "completed"]


def test_the_idle_time_runs_only_after_the_agent_has_spoken() -> None:
    turn = TurnConfig.server_vad(idle_timeout=2.0)
    assert not World([], sunny, settings(turn=turn)).run(10).all(note.InputTimeout)
    assert (
        not World([Said(0.5, 9.0, "A very long question.")], sunny, settings(turn=turn)).run(10).all(note.InputTimeout)
    )


def test_a_late_transcript_finds_its_turn() -> None:
    said = [Said(0.5, 1.5, "My name is Ann."), Said(2.5, 3.5, "What is my name?")]
    turn = TurnConfig.server_vad(silence_duration=0.5)
    world = World(said, sunny, settings(turn=turn), Delays(stt=2.5)).run(15)
    assert [text for role, text in world.history() if role == "user"] == [
        "My name is Ann.",
        "What is my name?",
    ]
    last = world.all(cmd.StartReply)[-1].messages
    assert [m.content for m in last if m.role == "user"] == ["My name is Ann.", "What is my name?"]


def test_a_transcriber_that_never_answers_holds_up_a_few_turns_only() -> None:
    said = [Said(2.0 * i, 2.0 * i + 0.6, "Hello?") for i in range(12)]
    world = World(said, sunny, settings(turn=TurnConfig.server_vad()), Delays(stt=1000)).run(26)
    assert len(world.all(note.TranscriptFailed)) == 12 - 8
    assert all(isinstance(item, MessageItem) for item in world.controller.context.items)


def test_a_turns_audio_begins_before_its_first_sound_but_behind_the_last_turn() -> None:
    said = [Said(1.0, 2.0, "Hello?"), Said(2.6, 3.2, "Are you there?")]
    turn = TurnConfig.server_vad(silence_duration=0.4, prefix_padding=0.8)
    world = World(said, sunny, settings(turn=turn, speculation=NO_SPECULATION)).run(5)
    starts = [notice.start for notice in world.all(note.SpeechStarted)]
    assert starts == pytest.approx([0.2, 2.0], abs=WINDOW)
    finals = {t.item_id: t for t in world.all(cmd.Transcribe)}
    assert [t.start for t in finals.values()] == starts
    assert all(t.end <= world.controller.position for t in finals.values())
    assert world.controller.keep_from == pytest.approx(world.controller.position - 0.8 - 0.096 - WINDOW)


def test_the_client_may_end_a_turn_that_is_still_spoken() -> None:
    world = World(QUESTION, sunny, settings())
    world.at(1.5, ev.CommitInput())
    world.run(1.6)
    (final,) = world.all(cmd.Transcribe)
    assert final.final
    assert final.end == pytest.approx(1.5, abs=2 * WINDOW)
    world.run(10)
    assert len(world.all(note.InputCommitted)) == 2  # the rest of the sentence is a turn of its own
    assert world.all(note.SpeechStarted)[1].start >= final.end - WINDOW


def test_taking_the_input_back_leaves_nothing() -> None:
    world = World(QUESTION, sunny, settings(turn=TurnConfig.server_vad(silence_duration=1.5)))
    world.at(3.0, ev.ClearInput())
    world.run(8)
    assert [outcome.reason for outcome in world.all(note.Speculated)] == ["cleared"]
    assert len(world.controller.context) == 0
    assert world.controller.state is note.State.SILENCE


def test_new_instructions_discard_what_was_prepared_with_the_old() -> None:
    turn = TurnConfig.server_vad(silence_duration=1.5)
    world = World(QUESTION, sunny, settings(turn=turn))
    world.at(3.0, ev.Configure(settings(turn=turn, instructions="Be rude.")))
    world.at(3.0, ev.Configure(settings(turn=turn, instructions="Be rude.")))
    world.run(8)
    assert [outcome.reason for outcome in world.all(note.Speculated)] == ["history"]
    assert world.all(cmd.StartReply)[-1].messages[0].content == "Be rude."


def test_history_is_summarised_in_the_background() -> None:
    said = [Said(10.0 * i + 0.5, 10.0 * i + 2.0, f"Tell me a long story about number {i}, please.") for i in range(6)]
    long = settings(context=ContextConfig(budget=160), turn=TurnConfig.server_vad(silence_duration=1.0))
    world = World(said, lambda m: ["and so on " * 8], long, Delays(summary=9.6)).run(62)
    assert world.all(cmd.Summarise)
    assert "They talked." in world.history()[0][1]
    assert len([item for item in world.controller.context.items if isinstance(item, MessageItem)]) == 12
    assert len(world.history()) < 13
    assert all(outcome.committed for outcome in world.all(note.Speculated))  # a summary waits for them
    for start in world.all(cmd.StartReply):
        assert sum(estimate_tokens(m.content) for m in start.messages) <= 160


def test_a_reply_that_the_client_asked_for_waits_for_the_floor_and_survives_a_barge_in() -> None:
    turn = TurnConfig.server_vad(create_response=False)
    said = [Said(1.0, 2.0, "Hello there."), Said(2.9, 3.8, "One more thing.")]
    world = World(said, sunny, settings(turn=turn), Delays(stt=1.0))
    world.at(2.6, ev.CreateReply(ReplyOptions(metadata={"n": 1})))  # the first transcript is not known yet
    world.run(12)
    (started,) = world.all(note.ReplyStarted)
    assert started.metadata == {"n": 1}
    messages = world.all(cmd.StartReply)[0].messages
    assert [m.content for m in messages] == ["Be brief.", "Hello there.", "One more thing."]


def test_deleting_a_call_cancels_its_tool() -> None:
    tools = (ToolSpec(Tool("weather")),)
    world = World(QUESTION, asks("weather", "Sunny."), settings(tools=tools), Delays(tool=5.0), obedient=False).run(4)
    call_item = next(n.item for n in world.all(note.ReplyItemDone) if isinstance(n.item, CallItem))
    world.at(4.0, ev.DeleteItem(call_item.id))
    world.run(15)
    assert len(world.all(cmd.CancelTool)) == 1
    assert world.history()[-1] == ("assistant", "Let me see. ")


def test_the_other_results_of_a_reply_count_when_one_of_its_calls_is_deleted() -> None:
    tools = (ToolSpec(Tool("weather")), ToolSpec(Tool("traffic")))

    def answer(messages: tuple[Message, ...]) -> list[str | ToolCall]:
        return ["Sunny."] if messages[-1].role == "tool" else [ToolCall(n, n, {}) for n in ("weather", "traffic")]

    world = World(QUESTION, answer, settings(tools=tools), Delays(tool=4.0)).run(4)
    traffic = world.all(note.ReplyItemDone)[1].item
    world.at(4.0, ev.DeleteItem(traffic.id))
    world.run(15)
    assert world.history()[-1] == ("assistant", "Sunny.")


def test_text_only_replies_are_over_when_they_are_written() -> None:
    world = World(QUESTION, sunny, settings(speak=False)).run(8)
    assert not world.all(cmd.Play)
    assert world.all(note.ReplyDone)[0].items[0].text == "".join(sunny(()))
    assert world.controller.state is note.State.SILENCE


def test_a_failed_model_ends_one_reply_and_not_the_conversation() -> None:
    said = [*QUESTION, Said(5.0, 6.0, "Are you still there?")]
    world = World(said, sunny, settings(speculation=NO_SPECULATION))
    world.run(2.5)
    reply_id = world.controller._new_id("x")  # not a reply: must be ignored
    world.at(2.5, ev.ReplyFailed(reply_id, "gone"))
    world.run(2.9)
    started = world.all(cmd.StartReply)[0]
    world.at(2.9, ev.ReplyFailed(started.reply_id, "The model has crashed."))
    world.run(12)
    statuses = [(done.status, done.error) for done in world.all(note.ReplyDone)]
    assert statuses == [("failed", "The model has crashed."), ("completed", "")]


@pytest.mark.parametrize("end", [ev.ReplyFailed("", "The model has crashed."), ev.StopReply()])
def test_of_a_reply_that_breaks_off_history_keeps_what_was_sent(end: ev.Event) -> None:
    """Two clauses of text, the audio of one: the second was never spoken, whatever the listener does."""
    world = World(QUESTION, sunny, settings(speculation=NO_SPECULATION), Delays(tts=1.0))
    world.run(4.0)
    (start,) = world.all(cmd.StartReply)
    assert len(world.all(cmd.Play)) == 1
    world.at(4.0, replace(end, reply_id=start.reply_id))
    world.run(12)
    assert [text for _, text in world.history()] == ["Be brief.", QUESTION[0].text, "It is sunny today,"]
    (done,) = world.all(note.ReplyDone)
    assert done.items[0].text == "It is sunny today,"
    assert done.items[0].status == "incomplete"
    assert len(world.all(cmd.Play)) == 1


def test_states_follow_the_paper() -> None:
    said = [
        Said(0.5, 2.0, "What is the weather"),
        Said(2.4, 4.0, "in Paris on Monday?"),
        Said(6.5, 8, "Stop that."),
    ]
    world = World(said, sunny, settings()).run(20)
    states = [notice.state.value for notice in world.all(note.StateChanged)]
    assert states == [
        "user_speaking", "user_paused", "user_speaking", "user_paused", "bot_replying",
        "user_speaking", "user_paused", "bot_replying", "silence",
    ]  # fmt: skip


def test_an_out_of_band_reply_leaves_no_trace() -> None:
    world = World([], sunny, settings())
    question = (MessageItem("q", "user", "Classify this."),)
    world.at(1.0, ev.CreateReply(ReplyOptions(input=question, in_history=False, speak=False)))
    world.run(3)
    (start,) = world.all(cmd.StartReply)
    assert [m.content for m in start.messages] == ["Be brief.", "Classify this."]
    assert len(world.controller.context) == 0
    assert world.all(note.ReplyDone)[0].status == "completed"


def test_a_barge_in_leaves_written_out_of_band_replies_alone() -> None:
    world = World([Said(1.2, 2.0, "Hello there.")], sunny, settings(), Delays(ttft=1.0))
    world.at(1.0, ev.CreateReply(ReplyOptions(in_history=False, speak=False)))
    world.at(1.0, ev.CreateReply())
    world.run(8)
    statuses = {done.reply_id: done.status for done in world.all(note.ReplyDone)}
    aside, cancelled, answer = [start.reply_id for start in world.all(cmd.StartReply)]
    assert (statuses[aside], statuses[cancelled], statuses[answer]) == ("completed", "cancelled", "completed")
