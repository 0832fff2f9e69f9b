"""Transcribe and answer with a Step-Audio chat model, which hears audio tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

from stepaudio.errors import AudioError, BackendError, InputError
from stepaudio.lm import toolcalls
from stepaudio.lm.generate import CHAT, SamplingParams
from stepaudio.lm.grammar import TextGrammar
from stepaudio.lm.prompts import Turn
from stepaudio.lm.text import TextStream
from stepaudio.speech.reading import script
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
from stepaudio.speech.step_audio.model import RATE, Quantization, StepAudioModel
from stepaudio.speech.toolcalls import CallError, Toolbox

_WORDS_PER_SECOND = 8
_ROLES = {"system": "system", "user": "human", "assistant": "assistant", "tool": toolcalls.RESULT_ROLE}


class StepAudioTranscriber:
    """A `Transcriber` over Step-Audio-Chat. It tells no times and no probabilities: `confidence` is 1 for any text."""

    rate = RATE
    max_seconds = 30.0

    def __init__(
        self,
        model: Path | str,
        tokenizer: Path | str,
        *,
        wording: Path | str | None = None,
        languages: Sequence[str] = ("zh", "en"),
        device: str = "cpu",
        quantize: Quantization | None = None,
        server: str | None = None,
    ) -> None:
        self.languages = tuple(languages)
        self._lm = StepAudioModel.open(model, tokenizer, wording, device=device, quantize=quantize, server=server)

    def transcribe(
        self,
        samples: Samples,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
        cancel: Event | None = None,
    ) -> Transcript:
        """See `Transcriber.transcribe`. The model takes no prompt and hears languages by itself; both are ignored
        but for the language's name in the result, and no words are timed."""
        if language is not None and language not in self.languages:
            raise InputError(f"the language {language!r} is not one of {', '.join(self.languages)}", param="language")
        seconds = len(samples) / RATE
        if seconds > self.max_seconds:
            raise InputError(f"{seconds:.0f} s of audio are more than the {self.max_seconds:g} s that one call takes")
        params = SamplingParams(max_tokens=int(_WORDS_PER_SECOND * seconds) + 16, temperature=0, guard_repetition=False)
        grammar = TextGrammar(self._lm.text.vocabulary)
        ids = self._lm.prompts.transcribe(self._lm.hear(samples))
        reply = self._lm.engine.generate(ids, params, grammar=grammar, cancel=cancel)
        text = self._lm.text.decode(reply.tokens).strip()
        spoken = language or script(text, self.languages) or self.languages[0]
        return Transcript(text, spoken, seconds, confidence=1.0 if text else 0.0)

    def close(self) -> None:
        self._lm.close()


class StepAudioResponder:
    """A `HearingResponder` over Step-Audio-Chat: text history in, text out; a turn with `audio` is heard, not read,
    unless it is too short for a single audio token."""

    hears_seconds = 30.0

    def __init__(
        self,
        model: Path | str,
        tokenizer: Path | str,
        *,
        wording: Path | str | None = None,
        device: str = "cpu",
        quantize: Quantization | None = None,
        server: str | None = None,
    ) -> None:
        self._lm = StepAudioModel.open(model, tokenizer, wording, device=device, quantize=quantize, server=server)
        self.context_tokens = self._lm.context_tokens

    def respond(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        sampling: Sampling | None = None,
        cancel: Event | None = None,
    ) -> Iterator[ReplyEvent]:
        """See `Responder.respond`. Raises BackendError for a call that is not valid for its tool's schema."""
        toolbox = Toolbox(tools, tool_choice)
        sampling = sampling or Sampling()
        ids = self._prompt(messages, tools if tool_choice != "none" else ())
        if len(ids) + 1 > self.context_tokens:
            raise InputError(f"the history takes {len(ids)} tokens, the model has {self.context_tokens}; shorten it")
        params = replace(
            CHAT,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        generation = self._lm.engine.submit(ids, params, grammar=TextGrammar(self._lm.text.vocabulary), cancel=cancel)
        stream, parser = TextStream(self._lm.text), toolcalls.ToolCallParser()
        reply = _Reply(toolbox, sampling.stop)
        for id in generation:
            for piece in parser.push(stream.push([id])):
                yield from reply.push(piece)
            if reply.stopped:
                generation.cancel()
                break
        else:
            for piece in [*parser.push(stream.flush()), *parser.flush()]:
                yield from reply.push(piece)
        yield from reply.flush()
        cut = generation.reply is not None and generation.reply.reason == "length"
        yield Finish(
            "tool_calls" if reply.called else "length" if cut else "stop",
            len(ids),
            generation.cached,
            len(generation.tokens),
        )

    def warm(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, words: str = "", cancel: Event | None = None
    ) -> None:
        """See `Responder.warm`. The words are left out: the turn will come as audio."""
        self._lm.engine.generate(self._prompt(messages, tools), SamplingParams(max_tokens=1), cancel=cancel)

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        return len(self._prompt(messages, tools))

    def close(self) -> None:
        self._lm.close()

    def _prompt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        declared = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools]
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        return self._lm.prompts.chat([self._turn(message, names) for message in messages], declared)

    def _turn(self, message: Message, names: dict[str, str]) -> Turn:
        content = message.content
        if message.audio is not None:
            with suppress(AudioError):
                return Turn("human", [self._lm.hear(message.audio)])
        if message.role == "tool":
            content = toolcalls.render_result(names.get(message.tool_call_id or "", "function"), content)
        for call in message.tool_calls:
            content += toolcalls.render_call(call.name, json.dumps(dict(call.arguments), ensure_ascii=False))
        return Turn(_ROLES[message.role], [content])


class _Reply:
    """Text and calls of a reply as they are written, up to the first stop string."""

    def __init__(self, toolbox: Toolbox, stop: Sequence[str]) -> None:
        self._toolbox = toolbox
        self._stop = [text for text in stop if text]
        self._held = ""  # could be the beginning of a stop string
        self._name = self._arguments = ""
        self.called = self.stopped = False

    def push(self, piece: toolcalls.Piece) -> Iterator[TextDelta | ToolCall]:
        match piece:
            case toolcalls.Text(text):
                yield from self._text(text)
            case toolcalls.CallStart(name):
                self._name, self._arguments = name.strip(), ""
            case toolcalls.CallArguments(text):
                self._arguments += text
            case toolcalls.CallEnd():
                yield from self.flush()
                yield self._call()

    def flush(self) -> Iterator[TextDelta]:
        if self._held and not self.stopped:
            yield TextDelta(self._held)
        self._held = ""

    def _text(self, text: str) -> Iterator[TextDelta]:
        if self.stopped:
            return
        self._held += text
        found = [place for place in map(self._held.find, self._stop) if place >= 0]
        self.stopped = bool(found)
        length = len(self._held)
        reach = max((len(stop) for stop in self._stop), default=1) - 1
        held = next((n for n in range(min(reach, length), 0, -1) if self._may_stop(self._held[length - n :])), 0)
        end = min(found) if found else length - held
        if end:
            yield TextDelta(self._held[:end])
        self._held = self._held[end:]

    def _may_stop(self, ending: str) -> bool:
        return any(stop.startswith(ending) for stop in self._stop)

    def _call(self) -> ToolCall:
        if self._name not in self._toolbox.tools:
            raise BackendError(f"the model called {self._name!r}, which is none of the tools")
        try:
            call = self._toolbox.check(self._name, self._arguments)
        except CallError as error:
            raise BackendError(str(error)) from error
        self.called = True
        return call
