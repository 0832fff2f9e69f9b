"""A responder that is asked the same thing once, whichever systems it is part of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from threading import Event
from typing import Any

from stepaudio.eval.store import Store, key
from stepaudio.speech.roles import Finish, Message, ReplyEvent, Responder, Sampling, TextDelta, Tool, ToolCall

_EVENTS = {"text": TextDelta, "call": ToolCall, "finish": Finish}
_NAMES = {kind: name for name, kind in _EVENTS.items()}


class RememberingResponder:
    """Greedy replies of a responder to text, kept in a store under its `identity`."""

    def __init__(self, responder: Responder, identity: str, store: Store) -> None:
        self._responder, self._identity, self._store = responder, identity, store
        self.context_tokens = responder.context_tokens
        self.warm, self.count_tokens, self.close = responder.warm, responder.count_tokens, responder.close

    def respond(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        sampling: Sampling | None = None,
        cancel: Event | None = None,
    ) -> Iterator[ReplyEvent]:
        """The whole reply, as soon as it is known."""
        said = [
            [message.role, message.content, [[call.id, call.name, dict(call.arguments)] for call in message.tool_calls]]
            for message in messages
        ]
        offered = [[tool.name, tool.description, dict(tool.parameters)] for tool in tools]
        name = key("reply", self._identity, said, offered, tool_choice, asdict(sampling or Sampling()))

        def ask() -> list[Any]:
            events = self._responder.respond(
                messages, tools=tools, tool_choice=tool_choice, sampling=sampling, cancel=cancel
            )
            return [[_NAMES[type(event)], asdict(event)] for event in events]

        for kind, fields in self._store.value(name, ask):
            yield _EVENTS[kind](**fields)
