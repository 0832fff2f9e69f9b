"""One turn of a spoken conversation: hear the question, write the answer, speak it while it is being written."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from stepaudio.audio.resample import resample
from stepaudio.errors import AudioError, TextError
from stepaudio.speech.prompts import spoken, with_audio
from stepaudio.speech.roles import (
    Finish,
    Message,
    Responder,
    Samples,
    Sampling,
    Speaker,
    Speech,
    TextDelta,
    Tool,
    ToolCall,
    Transcriber,
    Transcript,
)
from stepaudio.speech.say import say
from stepaudio.speech.threads import pump, speak_while_writing


@dataclass(frozen=True, slots=True)
class Heard:
    """What the user said."""

    transcript: Transcript


@dataclass(frozen=True, slots=True)
class Wrote:
    """The next piece of the answer's text, as soon as the model has written it."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """The next piece of the answer's audio and the text it speaks."""

    speech: Speech


@dataclass(frozen=True, slots=True)
class Called:
    """A tool that the model wants run before it goes on; its arguments are valid."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from the end of the user's speech (the call of `answer`) to each step; None for one not reached.

    The question is transcribed; the first text of the answer is there; its first clause is complete; its first audio
    can be played.
    """

    transcribe: float | None = None
    first_token: float | None = None
    first_clause: float | None = None
    first_audio: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The last event: the whole answer, what it cost and how long its parts took."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    latency: Latency
    finish: Finish


AnswerEvent = Heard | Wrote | Said | Called | Answered


def answer(
    transcriber: Transcriber,
    responder: Responder,
    speaker: Speaker,
    question: Samples | str,
    *,
    history: Sequence[Message] = (),
    instructions: str | None = None,
    tools: Sequence[Tool] = (),
    voice: str | None = None,
    speed: float = 1.0,
    sampling: Sampling | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[AnswerEvent]:
    """Answer a question, samples [T] at the transcriber's rate or text, aloud.

    Yields `Heard` (for audio), then `Wrote`, `Called` and `Said` as they come, and `Answered` at last. The texts of
    `Wrote` joined are the answer; every piece is written before it is said. Without `voice` the answer is read by
    the default voice of its language. `instructions` are added to the spoken style; a system message at the head of
    `history` replaces both. When tools were called, run them, append their results to the history, and ask again.

    Raises AudioError when there is no speech in the question, TextError when it is empty or no voice can read the
    answer, Cancelled, and what the three roles raise.
    """
    started = time.perf_counter()
    latency = Latency()
    if isinstance(question, str):
        if not question.strip():
            raise TextError("the question is empty", param="text")
        asked, language = question, None
    else:
        heard = transcriber.transcribe(question, cancel=cancel)
        if not heard.text.strip():
            raise AudioError("no speech was found in the question")
        latency = replace(latency, transcribe=time.perf_counter() - started)
        yield Heard(heard)
        asked = heard.text
        language = heard.language if speaker.default_voice(heard.language) else None
    messages: Sequence[Message] = [*_with_system(history, instructions, tools), Message("user", asked)]
    if not isinstance(question, str):
        messages = with_audio(messages, responder, resample(question, transcriber.rate, 16_000))

    def write(stop: threading.Event) -> Iterator[TextDelta | ToolCall | Finish]:
        return responder.respond(messages, tools=tools, sampling=sampling, cancel=stop)

    def read(text: Iterator[str], stop: threading.Event) -> Iterator[Speech]:
        return say(speaker, text, voice=voice, language=language, speed=speed, cancel=stop)

    turn = _Turn(write, read, started, latency)
    # Two threads and two bounded queues: the model writes on while a clause is spoken, a slow reader slows both.
    with contextlib.closing(pump(turn.run, cancel=cancel, buffer=64)) as events:
        yield from events


def _with_system(history: Sequence[Message], instructions: str | None, tools: Sequence[Tool]) -> Sequence[Message]:
    if history and history[0].role == "system":
        return history
    return [Message("system", spoken(instructions, tools=bool(tools))), *history]


class _Turn:
    """Writing in one thread, speaking in another, and the clock that both are timed by."""

    def __init__(
        self,
        write: Callable[[threading.Event], Iterator[TextDelta | ToolCall | Finish]],
        read: Callable[[Iterator[str], threading.Event], Iterator[Speech]],
        started: float,
        latency: Latency,
    ) -> None:
        self._write = write
        self._read = read
        self._started = started
        self._latency = latency
        self._text = ""
        self._calls: list[ToolCall] = []
        self._finish = Finish("stop")
        self._handed_over = 0.0

    def run(self, put: Callable[[AnswerEvent], None], stop: threading.Event) -> None:
        """The speaking thread: put every event, the audio in time with the text."""
        spoken = speak_while_writing(self._writing(put), lambda text: self._read(self._timed(text), stop), stop)
        with contextlib.closing(spoken):
            for speech in spoken:
                if self._latency.first_audio is None:
                    self._latency = replace(self._latency, first_clause=self._handed_over, first_audio=self._seconds())
                put(Said(speech))
        put(Answered(self._text, tuple(self._calls), self._latency, self._finish))

    def _writing(self, put: Callable[[AnswerEvent], None]) -> Callable[[Callable[[str], None], threading.Event], None]:
        """The work of the writing thread: text goes out at once, and to the speaking thread."""

        def work(hand_over: Callable[[str], None], stop: threading.Event) -> None:
            for event in self._write(stop):
                match event:
                    case TextDelta(text):
                        if self._latency.first_token is None:
                            self._latency = replace(self._latency, first_token=self._seconds())
                        self._text += text
                        put(Wrote(text))
                        hand_over(text)
                    case ToolCall():
                        self._calls.append(event)
                        put(Called(event))
                    case Finish():
                        self._finish = event

        return work

    def _timed(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces, noting when the latest was handed over: the one that completes a clause is the last before
        its audio."""
        for piece in pieces:
            self._handed_over = self._seconds()
            yield piece

    def _seconds(self) -> float:
        return time.perf_counter() - self._started
