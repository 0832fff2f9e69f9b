"""The blocking work behind one reply: a text is written, or given, and spoken while it is being written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

from stepaudio.agent import commands as cmd
from stepaudio.agent import events as ev
from stepaudio.audio.vad import SileroVad
from stepaudio.errors import TextError
from stepaudio.speech.roles import Finish, Responder, Speaker, Speech, TextDelta, ToolCall, Transcriber, TurnScorer
from stepaudio.speech.say import say
from stepaudio.speech.threads import pump, speak_while_writing

_AHEAD = 256
"""Pieces of text that may wait to be spoken, and events to be read."""


class Models(Protocol):
    """The roles that a conversation needs; a `Bundle` has them."""

    @property
    def vad(self) -> SileroVad: ...
    @property
    def transcriber(self) -> Transcriber: ...
    @property
    def responder(self) -> Responder: ...
    @property
    def speaker(self) -> Speaker: ...
    @property
    def turn_scorer(self) -> TurnScorer: ...


def make_reply(
    models: Models,
    start: cmd.StartReply,
    *,
    language: str | None,
    go: threading.Event,
    aloud: threading.Event,
    cancel: threading.Event,
) -> Iterator[ev.ReplyEvent]:
    """The events of a reply, from its first text to `ReplyFinished`. The work waits while `go` is not set; while
    `aloud` is not, the text is written on, but nothing more is spoken.

    `language` (ISO 639-1) decides how to read what its script does not tell. Raises what the models raise.
    """
    work = _Work(models, start, language, go, aloud)
    if not start.speak:
        yield from work.write(cancel)
        return
    with contextlib.closing(pump(work.speak, cancel=cancel, buffer=_AHEAD)) as events:
        yield from events


class _Work:
    def __init__(
        self,
        models: Models,
        start: cmd.StartReply,
        language: str | None,
        go: threading.Event,
        aloud: threading.Event,
    ) -> None:
        self._models = models
        self._start = start
        self._language = language
        self._go = go
        self._aloud = aloud

    def write(self, cancel: threading.Event) -> Iterator[ev.ReplyEvent]:
        """The text and the calls, as they are written."""
        start = self._start
        if start.text is not None:
            yield ev.ReplyText(start.reply_id, start.text)
            yield ev.ReplyFinished(start.reply_id, Finish("stop"))
            return
        events = self._models.responder.respond(
            start.messages, tools=start.tools, tool_choice=start.tool_choice, sampling=start.sampling, cancel=cancel
        )
        with _closing(events):
            for event in events:
                _wait(self._go, cancel)
                match event:
                    case TextDelta(text):
                        yield ev.ReplyText(start.reply_id, text)
                    case ToolCall():
                        yield ev.ReplyCall(start.reply_id, event)
                    case Finish():
                        yield ev.ReplyFinished(start.reply_id, event)

    def speak(self, put: Callable[[ev.ReplyEvent], None], stop: threading.Event) -> None:
        """The speaking thread. The text is put by a thread of its own, so that the model writes on meanwhile."""
        start, speaker = self._start, self._models.speaker
        finished: list[ev.ReplyEvent] = []

        def write(hand_over: Callable[[str], None], stop: threading.Event) -> None:
            for event in self.write(stop):
                if isinstance(event, ev.ReplyFinished):
                    finished.append(event)
                    continue
                put(event)
                if isinstance(event, ev.ReplyText):
                    hand_over(event.text)

        def read(text: Iterator[str]) -> Iterator[Speech]:
            known = self._language if self._language and speaker.default_voice(self._language) else None
            return say(speaker, text, voice=start.voice, language=known, speed=start.speed, cancel=stop)

        with contextlib.closing(speak_while_writing(write, read, stop, buffer=_AHEAD)) as spoken:
            self._put_speech(spoken, put, stop)
        for event in finished:
            put(event)

    def _put_speech(
        self, spoken: Iterator[Speech], put: Callable[[ev.ReplyEvent], None], stop: threading.Event
    ) -> None:
        heard = False
        try:
            for speech in spoken:
                _wait(self._go, stop)
                put(ev.ReplySpeech(self._start.reply_id, speech))
                heard = True
                _wait(self._aloud, stop)
        except TextError:
            if heard or self._start.voice is not None:
                raise
            # Nothing but signs: the text stays, and is not heard.


def _wait(go: threading.Event, stop: threading.Event) -> None:
    """Wait for one of the two."""
    while not go.wait(0.05) and not stop.is_set():
        pass


@contextlib.contextmanager
def _closing(items: Iterator[Any]) -> Iterator[None]:
    """Close a generator in the thread that reads it, at once: it may hold a model's slot."""
    try:
        yield
    finally:
        if isinstance(items, Generator):
            items.close()
