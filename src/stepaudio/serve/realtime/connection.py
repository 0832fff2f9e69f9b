"""One client of the protocol: its events act on a session, what the session tells becomes events for it.

No I/O: `receive` takes a message as JSON, `send` is called with every answer. A message that does not fit is answered
with an `error` event that names it, and the session goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from stepaudio.agent import commands as cmd
from stepaudio.agent import context
from stepaudio.agent import events as ev
from stepaudio.agent import notices as note
from stepaudio.agent.errors import RequestError
from stepaudio.agent.replying import Models
from stepaudio.agent.scheduler import Scheduler
from stepaudio.agent.session import RATE, Session
from stepaudio.agent.settings import ReplyOptions, Settings
from stepaudio.agent.tools import ToolProvider
from stepaudio.audio.pcm import Samples
from stepaudio.errors import StepAudioError
from stepaudio.serve.realtime import config as of
from stepaudio.serve.realtime import schema
from stepaudio.serve.realtime.config import SessionConfig
from stepaudio.serve.realtime.encode import Encoder, Json
from stepaudio.serve.realtime.formats import AudioDecoder
from stepaudio.serve.realtime.items import item_json, parse_item
from stepaudio.serve.realtime.session_tools import SessionTools
from stepaudio.serve.realtime.wire import parse_json

log = logging.getLogger("stepaudio.serve")

_SLICE = RATE // 4
"""Samples that are looked at in one go before others get their turn."""


def new_id(kind: str) -> str:
    """An id that nobody guesses and no other session has."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def failed(task: asyncio.Task[None]) -> bool:
    """Whether a task of a connection, which is done, ended by what nobody has thought of; the log is told."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("A realtime session failed", exc_info=error)
    return error is not None


class Media(Protocol):
    """What plays the agent's audio where that does not go out as events. It knows when audio is heard, and says so by
    `Played`."""

    def play(self, play: cmd.Play) -> None:
        """Behind what is there already."""

    def finish(self, reply_id: str) -> None:
        """There will be no more audio of this reply."""


class Connection:
    """A session and its client.

    `send` is called on the event loop with each event, as JSON; `drop_audio` when audio that was sent and has not
    left yet is not wanted any more. With `media` the audio goes there. Replies wait until there is `room` for what
    they produce.
    """

    def __init__(
        self,
        models: Models,
        scheduler: Scheduler,
        config: SessionConfig,
        send: Callable[[Json], None],
        *,
        room: asyncio.Event,
        drop_audio: Callable[[], None],
        media: Media | None = None,
        tools: ToolProvider | None = None,
        seconds: float = 3600.0,
    ) -> None:
        self.id = new_id("sess")
        self.config = config
        self.expires_at = int(time.time() + seconds)
        self._send = send
        self._drop_audio = drop_audio
        self._media = media
        self._tools = SessionTools(tools, tell=self.tell, refuse=self.refuse, changed=self._configure, new_id=new_id)
        rate = models.speaker.rate if media is None else None
        self._encoder = Encoder(config, rate, new_id("conv"), new_id)
        self._decoder = AudioDecoder(config.input["format"], RATE)
        self.session = Session(
            models, scheduler, self._tell, settings=self._settings(), tools=self._tools, new_id=new_id, room=room
        )

    def open(self) -> None:
        """Greet the client."""
        self.tell("session.created", session=self._shown())
        self.tell(
            "conversation.created",
            conversation={"id": self._encoder.conversation_id, "object": "realtime.conversation"},
        )
        self._configure()  # the instructions that an ephemeral key brings are read before anybody speaks
        self._tools.declare(self.config.mcp_servers)

    async def receive_text(self, text: str, translate: Callable[[Any], Any] | None = None) -> None:
        """Carry out one client event, as it comes; `translate` makes it one of the GA protocol."""
        try:
            message = parse_json(text)
        except RequestError as error:
            self.refuse(error)
        else:
            await self.receive(translate(message) if translate else message)

    async def hear(self, samples: Samples) -> None:
        """Take input audio [T] at `RATE` that came otherwise than in an event."""
        try:
            await self._hear(samples)
        except StepAudioError as error:
            self.refuse(error)

    async def receive(self, message: object) -> None:
        """Carry out one client event."""
        event_id = message.get("event_id") if isinstance(message, dict) else None
        try:
            await self._carry_out(schema.parse_event(message))
        except StepAudioError as error:
            self.refuse(error, event_id if isinstance(event_id, str) else None)

    def refuse(self, error: StepAudioError, event_id: str | None = None) -> None:
        """Tell the client that something it sent was not carried out."""
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        param = getattr(error, "param", None)
        fields = {"type": kind, "code": error.code, "message": str(error), "param": param, "event_id": event_id}
        self.tell("error", error=fields)

    async def close(self) -> None:
        await asyncio.gather(self.session.close(), self._tools.close())

    # ------------------------------------------------------------ what the client asks for

    async def _carry_out(self, event: schema.ClientEvent) -> None:
        handle = self.session.handle
        match event:
            case schema.Append():
                await self._hear(self._decoder.push(event.audio))
            case schema.SessionUpdate():
                self._update(event.session)
            case schema.Commit():
                self.session.hear_last(self._decoder.flush())
                handle(ev.CommitInput())
            case schema.Clear():
                self._decoder.flush()
                handle(ev.ClearInput())
            case schema.ClearOutput():
                handle(ev.ClearOutput())
            case schema.ItemCreate():
                self._create_item(event)
            case schema.ItemRetrieve():
                item = self.session.controller.context.get(event.item_id)
                result = None
                if isinstance(item, context.CallItem):
                    result = self.session.controller.context.result(item.call.id)
                self.tell("conversation.item.retrieved", item=item_json(item, result=result))
            case schema.ItemTruncate():
                handle(ev.TruncateItem(event.item_id, event.audio_end_ms / 1000))
            case schema.ItemDelete():
                handle(ev.DeleteItem(event.item_id))
            case schema.ResponseCreate():
                self._refuse_responses()
                handle(ev.CreateReply(self._options(event.response or schema.ResponseParams())))
            case schema.ResponseCancel():
                handle(ev.StopReply(event.response_id))

    async def _hear(self, samples: Samples) -> None:
        for start in range(0, len(samples), _SLICE):
            self.session.hear(samples[start : start + _SLICE])
            if start:
                await asyncio.sleep(0)

    def _update(self, patch: Json) -> None:
        self.config = self._encoder.config = self.config.updated(patch)
        if self._decoder.format != self.config.input["format"]:
            self._decoder = AudioDecoder(self.config.input["format"], RATE)
        self._configure()
        self.tell("session.updated", session=self._shown())
        self._tools.declare(self.config.mcp_servers)

    def _create_item(self, event: schema.ItemCreate) -> None:
        item, audio = parse_item(event.item, new_id=new_id)
        samples = None if audio is None else self._whole(audio)
        self.session.create_item(ev.CreateItem(item, event.previous_item_id), samples)

    def _whole(self, audio: str) -> Samples:
        """The audio of an item, which is in the format of the session's input."""
        decoder = AudioDecoder(self.config.input["format"], RATE)
        return np.concatenate([decoder.push(audio), decoder.flush()])

    def _options(self, params: schema.ResponseParams) -> ReplyOptions:
        fields = params.model_dump(mode="json", exclude_none=True)
        output = fields.get("audio", {}).get("output", {})
        session = self.config.fields
        return ReplyOptions(
            instructions=fields.get("instructions"),
            speak=of.speaks(fields["output_modalities"]) if "output_modalities" in fields else None,
            voice=self.config.reply_voice(output.get("voice")),
            speed=output.get("speed"),
            sampling=of.sampling(
                fields.get("max_output_tokens", session["max_output_tokens"]), self.config.temperature
            ),
            tools=of.client_tools(fields["tools"]) if "tools" in fields else None,
            tool_choice=of.tool_choice(fields["tool_choice"]) if "tool_choice" in fields else None,
            input=None if params.input is None else tuple(map(self._input_item, params.input)),
            in_history=params.conversation != "none",
            metadata=params.metadata or {},
        )

    def _input_item(self, item: schema.InputItem) -> context.Item:
        if isinstance(item, schema.ItemReference):
            return self.session.controller.context.get(item.id)
        parsed, audio = parse_item(item, new_id=new_id)
        if audio is not None:
            raise RequestError(
                "Create an item with this audio first, then refer to it.",
                code="invalid_value",
                param="response.input",
            )
        return parsed

    def _refuse_responses(self) -> None:
        if self.config.transcribes_only:
            raise RequestError("A transcription session makes no responses.", code="invalid_value", param="type")

    # ------------------------------------------------------------ what the client is told

    def _tell(self, output: note.Output) -> None:
        if isinstance(output, cmd.StopPlayback):
            self._drop_audio()
        elif isinstance(output, cmd.Play) and self._media is not None:
            self._media.play(output)
            return
        for event in self._encoder.encode(output):
            self._send(event)
        if isinstance(output, note.ReplyDone) and self._media is not None:
            self._media.finish(output.reply_id)

    def tell(self, type: str, **fields: Any) -> None:
        """Send an event of the transport's own."""
        self._send(self._encoder.event(type, **fields))

    def _shown(self) -> Json:
        return self.config.as_json(self.id, self.expires_at)

    def _settings(self) -> Settings:
        return self.config.settings(self._tools.specs())

    def _configure(self) -> None:
        self.session.handle(ev.Configure(self._settings()))
