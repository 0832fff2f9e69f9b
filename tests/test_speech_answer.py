"""One spoken turn: order, cancellation, latency, and the whole of it with real weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from serve_fixtures.fakes import ToneSpeaker, Work
from stepaudio.errors import AudioError, BackendError, Cancelled, InputError, TextError
from stepaudio.speech.answer import Answered, AnswerEvent, Called, Heard, Said, Wrote, answer
from stepaudio.speech.prompts import spoken
from stepaudio.speech.roles import (
    Finish,
    Message,
    ReplyEvent,
    Samples,
    Sampling,
    TextDelta,
    Tool,
    ToolCall,
    Transcript,
)

QUESTION = np.zeros(16_000, np.float32)
CALL = ToolCall("c1", "get_weather", {"city": "Rome"})


class Listener:
    """Hears what it is given."""

    rate = 16_000
    languages = ("en", "zh")
    max_seconds = 30.0

    def __init__(self, text: str = "Tell me.", language: str = "en") -> None:
        self.transcript = Transcript(text, language, 1.0)

    def transcribe(self, samples: Samples, **options: object) -> Transcript:
        return self.transcript

    def close(self) -> None: ...


class Script:
    """Replies with the events it is given; between two it waits at `gate`, when there is one."""

    context_tokens = 100

    def __init__(self, *events: ReplyEvent | Exception, gate: threading.Semaphore | None = None) -> None:
        self.events = events
        self.gate = gate
        self.messages: list[Message] = []
        self.tools: Sequence[Tool] = ()
        self.sent = 0
        self.stopped = threading.Event()

    def respond(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        sampling: Sampling | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[ReplyEvent]:
        assert cancel is not None
        self.messages, self.tools = list(messages), tools
        try:
            for event in self.events:
                while self.gate is not None and not self.gate.acquire(timeout=0.01):
                    if cancel.is_set():
                        raise Cancelled("script")
                if isinstance(event, Exception):
                    raise event
                self.sent += 1
                yield event
        finally:
            self.stopped.set()

    def warm(self, messages, tools=(), *, words="", cancel=None):
        """Reads nothing ahead."""

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        return len(messages)

    def close(self) -> None: ...


class HearingScript(Script):
    """One that hears."""

    hears_seconds = 30.0


def script(text: str, *more: ReplyEvent) -> Script:
    words = [TextDelta(f"{word} ") for word in text.split()]
    return Script(*words, *more, Finish("stop", 3, 2, len(words)))


def run(responder: Script, question: Samples | str = QUESTION, **options: object) -> list[AnswerEvent]:
    speaker = ToneSpeaker(Work())
    return list(answer(Listener(), responder, speaker, question, **options))  # type: ignore[arg-type]


def test_a_turn_in_order() -> None:
    events = run(script("Hello there. How are you today?"))
    assert isinstance(events[0], Heard)
    done = events[-1]
    assert isinstance(done, Answered)
    wrote = "".join(event.text for event in events if isinstance(event, Wrote))
    said = "".join(event.speech.text for event in events if isinstance(event, Said))
    assert wrote == done.text == "Hello there. How are you today? "
    assert said == wrote.replace(" ", "")  # the fake speaker speaks word by word
    assert done.finish == Finish("stop", 3, 2, 6)
    latency = done.latency
    steps = [latency.transcribe, latency.first_token, latency.first_clause, latency.first_audio]
    assert None not in steps
    assert steps == sorted(steps, key=float)  # type: ignore[arg-type]


def test_every_piece_is_written_before_it_is_said() -> None:
    wrote = said = ""
    for event in run(script("One, two. " * 30)):
        if isinstance(event, Wrote):
            wrote += event.text
        elif isinstance(event, Said):
            said += event.speech.text
            assert wrote.replace(" ", "").startswith(said)
    assert said == "One,two." * 30


def test_the_first_clause_is_heard_before_the_text_is_complete() -> None:
    gate = threading.Semaphore(4)
    words = [TextDelta(f"{word} ") for word in ["Yes,", "I", "can.", "And", "so", "on."]]
    responder = Script(*words, Finish("stop"), gate=gate)
    events = answer(Listener(), responder, ToneSpeaker(Work()), QUESTION)
    next(event for event in events if isinstance(event, Said))
    assert responder.sent < 6
    gate.release(10)
    assert isinstance(list(events)[-1], Answered)


def test_text_is_written_on_while_a_clause_is_spoken() -> None:
    speaker = ToneSpeaker(Work(pace=0.05))
    responder = script("Yes. " + "word " * 40)
    events = answer(Listener(), responder, speaker, QUESTION)
    next(event for event in events if isinstance(event, Said))
    assert responder.stopped.wait(5)
    list(events)


def test_a_written_question_has_no_transcript() -> None:
    responder = script("Fine.")
    events = run(responder, "How are you?")
    assert not any(isinstance(event, Heard) for event in events)
    assert responder.messages[-1] == Message("user", "How are you?")
    done = events[-1]
    assert isinstance(done, Answered)
    assert done.latency.transcribe is None


def test_what_the_model_is_told() -> None:
    history = [Message("user", "Hi."), Message("assistant", "Hello.")]
    responder = script("Yes.")
    run(responder, history=history, instructions="You sell tea.")
    told = [Message("system", spoken("You sell tea.")), *history, Message("user", "Tell me.")]
    assert responder.messages == told
    assert told[0].content.startswith(spoken()[:40])
    run(responder, history=[Message("system", "Only mine."), *history], instructions="Unused.")
    assert responder.messages[0] == Message("system", "Only mine.")
    tool = Tool("get_weather")
    run(responder, tools=[tool])
    assert responder.tools == [tool]
    assert responder.messages[0].content == spoken(tools=True)


def test_a_model_that_hears_is_given_the_question_as_audio() -> None:
    history = [Message("user", "Hi."), Message("assistant", "Hello.")]
    reader, hearer = script("Yes."), HearingScript(TextDelta("Yes."), Finish("stop"))
    for responder in (reader, hearer):
        run(responder, history=history)
        assert [message.audio for message in responder.messages[:-1]] == [None, None, None]
    assert reader.messages[-1].audio is None
    np.testing.assert_array_equal(hearer.messages[-1].audio, QUESTION)
    run(hearer, question="Typed.")
    assert hearer.messages[-1].audio is None


def test_the_voice_follows_the_language_that_was_heard() -> None:
    used: list[str] = []

    class Noting(ToneSpeaker):
        def speak(self, clause: str, *, voice: str, **options: object) -> Iterator[object]:  # type: ignore[override]
            used.append(voice)
            return super().speak(clause, voice=voice)

    for language, voice in (("zh", "zhong"), ("en", "tone"), ("fr", "tone")):
        list(answer(Listener("12", language), script("12 3."), Noting(Work()), QUESTION))  # type: ignore[arg-type]
        assert used.pop() == voice


def test_a_tool_call_without_words_is_not_spoken() -> None:
    events = run(Script(CALL, Finish("tool_calls", 5, 0, 9)))
    assert [type(event) for event in events] == [Heard, Called, Answered]
    done = events[-1]
    assert isinstance(done, Answered)
    assert done.tool_calls == (CALL,)
    assert (done.text, done.latency.first_audio) == ("", None)


def test_words_before_a_tool_call_are_spoken() -> None:
    events = run(script("One moment.", CALL))
    assert any(isinstance(event, Said) for event in events)
    assert any(isinstance(event, Called) for event in events)


def test_silence_and_empty_text_are_refused() -> None:
    with pytest.raises(AudioError, match="no speech"):
        list(answer(Listener(" "), script("x"), ToneSpeaker(Work()), QUESTION))
    with pytest.raises(TextError, match="empty"):
        run(script("x"), "  ")


@pytest.mark.parametrize("error", [BackendError("the model broke"), InputError("too long", param="messages")])
def test_an_error_of_the_model_comes_through(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run(Script(TextDelta("Yes, "), error))


def test_an_error_of_the_speaker_stops_the_model() -> None:
    responder = Script(*[TextDelta("unspeakable words. ")] * 1000, Finish("stop"), gate=threading.Semaphore(5))
    with pytest.raises(TextError):
        run(responder)
    assert responder.stopped.is_set()


def test_cancelling_ends_the_turn_and_both_threads() -> None:
    cancel = threading.Event()
    responder = Script(*[TextDelta("word, ")] * 1000, Finish("stop"), gate=threading.Semaphore(20))
    events = answer(Listener(), responder, ToneSpeaker(Work()), QUESTION, cancel=cancel)
    next(event for event in events if isinstance(event, Said))
    cancel.set()
    with pytest.raises(Cancelled):
        list(events)
    assert responder.stopped.is_set()


def test_closing_ends_the_turn_and_both_threads() -> None:
    before = threading.active_count()
    responder = Script(*[TextDelta("word, ")] * 1000, Finish("stop"))
    events = answer(Listener(), responder, ToneSpeaker(Work()), QUESTION)
    next(event for event in events if isinstance(event, Said))
    events.close()  # type: ignore[attr-defined]
    assert responder.stopped.is_set()
    assert threading.active_count() == before


def test_a_slow_reader_slows_the_model() -> None:
    responder = Script(*[TextDelta("word ")] * 5000, Finish("stop"))
    events = answer(Listener(), responder, ToneSpeaker(Work()), QUESTION)
    next(events)
    next(events)
    time.sleep(0.3)
    assert responder.sent < 500
    events.close()  # type: ignore[attr-defined]


@pytest.mark.weights
def test_a_recorded_question_is_answered_aloud() -> None:
    import stepaudio

    bundle = stepaudio.load("tiny")
    events = list(bundle.answer(Path(__file__).parents[1] / "examples" / "question-en.flac"))
    done = events[-1]
    assert isinstance(events[0], Heard)
    assert isinstance(done, Answered)
    assert done.text
    assert sum(event.speech.samples.size for event in events if isinstance(event, Said)) > bundle.speaker.rate / 2
