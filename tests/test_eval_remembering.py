"""Replies that are kept for other systems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepaudio.errors import BackendError
from stepaudio.eval.store import Store
from stepaudio.eval.systems.remembering import RememberingResponder
from stepaudio.speech.roles import Finish, Message, ReplyEvent, Sampling, TextDelta, Tool, ToolCall

HELLO = [Message("user", "Hello.")]
REPLY = [TextDelta("Hi"), TextDelta(" there."), ToolCall("1", "wave", {"hands": 2}), Finish("tool_calls", 5, 0, 7)]


class Counting:
    context_tokens = 100

    def __init__(self) -> None:
        self.asked = 0
        self.broken = False

    def respond(self, messages: Any, **options: Any) -> Iterator[ReplyEvent]:
        self.asked += 1
        yield from REPLY[:2]
        if self.broken:
            raise BackendError("the model failed")
        yield from REPLY[2:]

    def warm(self, *_: Any, **__: Any) -> None: ...

    def count_tokens(self, *_: Any) -> int:
        return 1

    def close(self) -> None: ...


def test_the_same_is_asked_once_and_what_differs_anew(tmp_path: Path) -> None:
    model = Counting()
    store = Store(tmp_path)
    first, second = RememberingResponder(model, "a", store), RememberingResponder(model, "a", store)
    assert list(first.respond(HELLO)) == REPLY
    assert list(second.respond(HELLO)) == REPLY
    assert model.asked == 1
    for number, (responder, messages, options) in enumerate(
        [
            (RememberingResponder(model, "b", store), HELLO, {}),
            (first, [*HELLO, Message("assistant", "Hi."), *HELLO], {}),
            (first, HELLO, {"tools": [Tool("wave")]}),
            (first, HELLO, {"sampling": Sampling(max_tokens=3)}),
        ],
        start=2,
    ):
        assert list(responder.respond(messages, **options)) == REPLY
        assert model.asked == number


def test_a_reply_that_failed_is_not_kept(tmp_path: Path) -> None:
    model = Counting()
    responder = RememberingResponder(model, "a", Store(tmp_path))
    model.broken = True
    with pytest.raises(BackendError):
        list(responder.respond(HELLO))
    model.broken = False
    assert list(responder.respond(HELLO)) == REPLY
