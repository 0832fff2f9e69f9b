"""What the core tells, as server events of the protocol, in the documented order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from stepaudio.agent import commands as cmd
from stepaudio.agent import notices as note
from stepaudio.agent.context import CallItem, MessageItem, OutputItem
from stepaudio.serve.realtime.config import SessionConfig, shown_tokens
from stepaudio.serve.realtime.formats import AudioEncoder
from stepaudio.serve.realtime.items import item_json
from stepaudio.speech.roles import Finish

Json = dict[str, Any]
AUDIO_DELTA = "response.output_audio.delta"


@dataclass
class _Response:
    """A response that is being told."""

    shown: Json
    spoken: bool
    in_history: bool
    previous: dict[str, str | None] = field(default_factory=dict)
    """What each of its items follows in the history."""
    audio: AudioEncoder | None = None
    audio_index: int = 0


@dataclass(frozen=True)
class _CallHere:
    """A call that is run here and has no result yet."""

    item: CallItem
    place: Json
    previous: str | None


class Encoder:
    """Notices in, server events out; `config` is the session's, kept up to date by its owner. `rate` is the agent's
    sample rate, None where its audio does not go out as events."""

    def __init__(
        self, config: SessionConfig, rate: int | None, conversation_id: str, new_id: Callable[[str], str]
    ) -> None:
        self.config = config
        self._rate = rate
        self.conversation_id = conversation_id
        self._new_id = new_id
        self._responses: dict[str, _Response] = {}
        self._calls_here: dict[str, _CallHere] = {}
        self._results: dict[str, str] = {}
        """Results of calls that are run here have no item in the protocol: the call's stands for theirs."""

    def encode(self, output: note.Output) -> Iterator[Json]:
        """The events that tell of it, none for what the protocol has no word for."""
        for event in self._events(output):
            if (previous := event.get("previous_item_id")) in self._results:
                event["previous_item_id"] = self._results[previous]
            yield self.event(**event)

    def event(self, type: str, **fields: Any) -> Json:
        """An event with an id."""
        return {"type": type, "event_id": self._new_id("event"), **fields}

    def _events(self, output: note.Output) -> Iterator[Json]:
        match output:
            case cmd.Play():
                yield from self._audio(output)
            case note.ReplyTextAdded():
                yield from self._text(output)
            case note.ReplyStarted():
                yield from self._started(output)
            case note.ReplyItemAdded():
                yield from self._item_added(output)
            case note.ReplyItemDone(item=MessageItem() as item):
                yield from self._message_done(output, item)
            case note.ReplyItemDone(item=CallItem() as item) if item.server is not None:
                yield from self._call_here(output, item)
            case note.ReplyItemDone(item=CallItem() as item):
                yield from self._call_done(output, item)
            case note.ItemAdded(item=OutputItem() as item) if item.call_id in self._calls_here:
                yield from self._call_here_done(item)
            case note.ReplyDone():
                yield from self._done(output)
            case note.TranscriptDone() | note.TranscriptFailed():
                if self.config.tells_transcripts:
                    yield from _transcript(output)
            case _:
                yield from self._input(output)
        if self.config.extras.get("events"):
            yield from _extension(output)

    # ------------------------------------------------------------ the user's side

    def _input(self, output: note.Output) -> Iterator[Json]:
        match output:
            case note.SpeechStarted(item_id, start):
                yield {
                    "type": "input_audio_buffer.speech_started",
                    "item_id": item_id,
                    "audio_start_ms": _ms(start),
                }
            case note.SpeechStopped(item_id, end):
                yield {"type": "input_audio_buffer.speech_stopped", "item_id": item_id, "audio_end_ms": _ms(end)}
            case note.InputCommitted(item_id, previous):
                yield {"type": "input_audio_buffer.committed", "item_id": item_id, "previous_item_id": previous}
            case note.InputCleared():
                yield {"type": "input_audio_buffer.cleared"}
            case note.InputTimeout(item_id, start, end):
                yield {
                    "type": "input_audio_buffer.timeout_triggered",
                    "item_id": item_id,
                    "audio_start_ms": _ms(start),
                    "audio_end_ms": _ms(end),
                }
            case note.ItemAdded(item, previous):
                shown = item_json(item)
                yield {"type": "conversation.item.added", "item": shown, "previous_item_id": previous}
                yield {"type": "conversation.item.done", "item": shown, "previous_item_id": previous}
            case note.ItemDeleted(item_id) if item_id in self._results:
                del self._results[item_id]
            case note.ItemDeleted(item_id):
                yield {"type": "conversation.item.deleted", "item_id": item_id}
            case note.ItemTruncated(item_id, seconds, _, by) if by == "client" or self._rate is None:
                yield {
                    "type": "conversation.item.truncated",
                    "item_id": item_id,
                    "content_index": 0,
                    "audio_end_ms": _ms(seconds),
                }

    # ------------------------------------------------------------ the agent's side

    def _started(self, notice: note.ReplyStarted) -> Iterator[Json]:
        config = self.config
        shown: Json = {
            "id": notice.reply_id,
            "object": "realtime.response",
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": self.conversation_id if notice.in_history else None,
            "output_modalities": ["audio"] if notice.speak else ["text"],
            "max_output_tokens": shown_tokens(notice.max_tokens),
            "audio": {"output": {"format": config.output["format"], "voice": config.shown_voice(notice.voice)}},
            "metadata": dict(notice.metadata) or None,
            "usage": None,
        }
        self._responses[notice.reply_id] = _Response(shown, notice.speak, notice.in_history)
        yield {"type": "response.created", "response": shown}

    def _item_added(self, notice: note.ReplyItemAdded) -> Iterator[Json]:
        response, item = self._responses[notice.reply_id], notice.item
        shown = item_json(item, spoken=response.spoken)
        if "status" in shown:
            shown["status"] = "in_progress"
        if isinstance(item, MessageItem):
            shown["content"] = []
            if response.spoken and self._rate is not None:
                response.audio = AudioEncoder(self.config.output["format"], self._rate)
                response.audio_index = notice.index
        else:
            shown["arguments"] = ""
        place = {"response_id": notice.reply_id, "output_index": notice.index}
        yield {"type": "response.output_item.added", **place, "item": shown}
        if response.in_history:
            yield {"type": "conversation.item.added", "item": shown, "previous_item_id": notice.previous_item_id}
            response.previous[item.id] = notice.previous_item_id
        if isinstance(item, MessageItem):
            yield {
                "type": "response.content_part.added",
                **_place(notice.reply_id, item.id, notice.index),
                "part": _part("", response.spoken),
            }

    def _text(self, notice: note.ReplyTextAdded) -> Iterator[Json]:
        spoken = self._responses[notice.reply_id].spoken
        name = "output_audio_transcript" if spoken else "output_text"
        place = _place(notice.reply_id, notice.item_id, notice.index)
        yield {"type": f"response.{name}.delta", **place, "delta": notice.text}

    def _audio(self, play: cmd.Play) -> Iterator[Json]:
        response = self._responses[play.reply_id]
        assert response.audio is not None
        yield from self._deltas(response, play.reply_id, play.item_id, response.audio.push(play.speech.samples))

    @staticmethod
    def _deltas(response: _Response, reply_id: str, item_id: str, pieces: Iterator[str]) -> Iterator[Json]:
        place = _place(reply_id, item_id, response.audio_index)
        for piece in pieces:
            yield {"type": AUDIO_DELTA, **place, "delta": piece}

    def _message_done(self, notice: note.ReplyItemDone, item: MessageItem) -> Iterator[Json]:
        response, place = self._responses[notice.reply_id], _place(notice.reply_id, item.id, notice.index)
        text = item.text or ""
        if response.spoken:
            if response.audio is not None and item.status == "completed":
                yield from self._deltas(response, notice.reply_id, item.id, response.audio.flush())
            yield {"type": "response.output_audio.done", **place}
            yield {"type": "response.output_audio_transcript.done", **place, "transcript": text}
        else:
            yield {"type": "response.output_text.done", **place, "text": text}
        yield {"type": "response.content_part.done", **place, "part": _part(text, response.spoken)}
        yield from self._item_done(notice)

    def _call_done(self, notice: note.ReplyItemDone, item: CallItem) -> Iterator[Json]:
        arguments = json.dumps(dict(item.call.arguments), ensure_ascii=False)
        place = {"response_id": notice.reply_id, "item_id": item.id, "output_index": notice.index}
        place["call_id"] = item.call.id
        yield {"type": "response.function_call_arguments.delta", **place, "delta": arguments}
        yield {
            "type": "response.function_call_arguments.done",
            **place,
            "name": item.call.name,
            "arguments": arguments,
        }
        yield from self._item_done(notice)

    def _call_here(self, notice: note.ReplyItemDone, item: CallItem) -> Iterator[Json]:
        """A call that is run here. The response ends without its result, which may take its time."""
        response = self._responses[notice.reply_id]
        shown = item_json(item)
        place = {"item_id": item.id, "output_index": notice.index}
        part = {"response_id": notice.reply_id, **place}
        self._calls_here[item.call.id] = _CallHere(item, place, response.previous.get(item.id))
        yield {"type": "response.mcp_call_arguments.delta", **part, "delta": shown["arguments"]}
        yield {"type": "response.mcp_call_arguments.done", **part, "arguments": shown["arguments"]}
        yield {"type": "response.mcp_call.in_progress", **place}
        yield {
            "type": "response.output_item.done",
            "response_id": notice.reply_id,
            "output_index": notice.index,
            "item": shown,
        }

    def _call_here_done(self, result: OutputItem) -> Iterator[Json]:
        call = self._calls_here.pop(result.call_id)
        self._results[result.id] = call.item.id
        yield {"type": f"response.mcp_call.{'failed' if result.failed else 'completed'}", **call.place}
        shown = item_json(call.item, result=result)
        yield {"type": "conversation.item.done", "item": shown, "previous_item_id": call.previous}

    def _item_done(self, notice: note.ReplyItemDone) -> Iterator[Json]:
        response = self._responses[notice.reply_id]
        shown = item_json(notice.item, spoken=response.spoken)
        if response.in_history:
            previous = response.previous[notice.item.id]
            yield {"type": "conversation.item.done", "item": shown, "previous_item_id": previous}
        yield {
            "type": "response.output_item.done",
            "response_id": notice.reply_id,
            "output_index": notice.index,
            "item": shown,
        }

    def _done(self, notice: note.ReplyDone) -> Iterator[Json]:
        response = self._responses.pop(notice.reply_id)
        details: Json = {"type": notice.status}
        if notice.status == "failed":
            details["error"] = {"type": "server_error", "code": notice.reason, "message": notice.error}
        elif notice.reason:
            details["reason"] = notice.reason
        shown = {
            **response.shown,
            "status": notice.status,
            "status_details": None if notice.status == "completed" else details,
            "output": [item_json(item, spoken=response.spoken) for item in notice.items],
            "usage": _usage(notice.usage),
        }
        yield {"type": "response.done", "response": shown}


def _place(reply_id: str, item_id: str, index: int) -> Json:
    return {"response_id": reply_id, "item_id": item_id, "output_index": index, "content_index": 0}


def _part(text: str, spoken: bool) -> Json:
    return {"type": "audio", "transcript": text} if spoken else {"type": "text", "text": text}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _transcript(notice: note.TranscriptDone | note.TranscriptFailed) -> Iterator[Json]:
    name = "conversation.item.input_audio_transcription"
    place = {"item_id": notice.item_id, "content_index": 0}
    if isinstance(notice, note.TranscriptFailed):
        error = {"type": "server_error", "code": "transcription_failed", "message": notice.message, "param": None}
        yield {"type": f"{name}.failed", **place, "error": error}
        return
    if notice.text:
        yield {"type": f"{name}.delta", **place, "delta": notice.text}
    usage = {"type": "duration", "seconds": round(notice.seconds, 3)}
    yield {"type": f"{name}.completed", **place, "transcript": notice.text, "usage": usage}


def _usage(finish: Finish) -> Json:
    """Tokens of the language model. Speech is text to it on both sides, so there are no audio tokens."""
    cached = {"text_tokens": finish.cached_tokens, "audio_tokens": 0, "image_tokens": 0}
    return {
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
        "input_tokens": finish.prompt_tokens,
        "output_tokens": finish.completion_tokens,
        "input_token_details": {
            "text_tokens": finish.prompt_tokens,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": finish.cached_tokens,
            "cached_tokens_details": cached,
        },
        "output_token_details": {"text_tokens": finish.completion_tokens, "audio_tokens": 0},
    }


# ---------------------------------------------------------------- what the protocol has no word for


_EXTENSIONS: dict[type, str] = {
    note.StateChanged: "state.changed",
    note.SpeechPaused: "speech.paused",
    note.SpeechResumed: "speech.resumed",
    note.Backchannel: "backchannel",
    note.TranscriptPartial: "transcript.partial",
    note.ItemTruncated: "item.heard",
    note.Speculated: "speculation",
    note.TurnTimed: "turn.timed",
}
"""Notices that go out as they are, as `stepaudio.NAME`, to clients that ask for them; times are in seconds."""


def _extension(output: note.Output) -> Iterator[Json]:
    name = _EXTENSIONS.get(type(output))
    if name is not None:
        fields = asdict(output)
        if isinstance(output, note.StateChanged):
            fields["state"] = output.state.value
        yield {"type": f"stepaudio.{name}", **fields}
