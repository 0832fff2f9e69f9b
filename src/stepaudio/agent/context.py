"""The conversation as text: items by id, rendered to messages, kept inside a token budget.

History is text, never audio (Step-Audio, section 3.4): what the user said is replaced by its transcript as soon as
that arrives, what the agent said by the words that were heard. Items are immutable; a change replaces the item and
raises `Context.version`, so whoever prepared something from an older version can tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stepaudio.agent.errors import RequestError
from stepaudio.errors import InputError
from stepaudio.speech.roles import Message, ToolCall

AUDIO_TOKENS_PER_SECOND = 125 / 3
"""Step-Audio's dual-codebook rate: 16.67 Hz linguistic plus 25 Hz semantic codes."""

PENDING_RESULT = "The tool is still running. Its result will follow; do not call it again for the same thing."

SUMMARY_PROMPT = (
    "Summarise the conversation below for the assistant who will continue it. Keep names, numbers, dates, "
    "decisions, open questions and what the user prefers. Write at most eight short sentences, as plain text."
)

_LARGEST = 1_000_000
"""Characters of a history. Every change of it counts its tokens, so that what one client sends is what others wait
for."""
_FRAME = 100
"""Characters that an item counts at least."""

Status = Literal["in_progress", "completed", "incomplete"]

_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]+")


def estimate_tokens(text: str) -> int:
    """Tokens of a text, near enough for a budget: one per CJK character, one per four others, four for its frame."""
    wide = sum(map(len, _WIDE.findall(text)))
    return 4 + wide + (len(text) - wide + 3) // 4


@dataclass(frozen=True, slots=True)
class MessageItem:
    """Something said or typed. `text` is None while its transcript is on its way.

    `seconds` is the length of its audio, 0 for text. `reply_id` names the reply that made an assistant's item.
    """

    id: str
    role: Literal["system", "user", "assistant"]
    text: str | None
    seconds: float = 0.0
    status: Status = "completed"
    reply_id: str | None = None


@dataclass(frozen=True, slots=True)
class CallItem:
    """A tool call that the model made. `server` names what runs it here; None: the client does."""

    id: str
    call: ToolCall
    status: Status = "completed"
    reply_id: str | None = None
    server: str | None = None


@dataclass(frozen=True, slots=True)
class OutputItem:
    """The result of a tool call, or, `failed`, what the model is told of its failure."""

    id: str
    call_id: str
    output: str
    status: Status = "completed"
    failed: bool = False


Item = MessageItem | CallItem | OutputItem


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """`budget`: prompt tokens. Over `summarise_at` of it the oldest items are summarised until `keep` of it is
    left."""

    budget: int = 3072
    summarise_at: float = 0.75
    keep: float = 0.4

    def __post_init__(self) -> None:
        if self.budget < 64 or not 0 < self.keep < self.summarise_at <= 1:
            raise InputError("the context needs a budget of 64 tokens or more and 0 < keep < summarise_at <= 1")


@dataclass(frozen=True, slots=True)
class Fold:
    """The items that a summary is to stand for, and the request that makes it."""

    item_ids: tuple[str, ...]
    messages: tuple[Message, ...]


class Context:
    """The items of one conversation in order.

    Every method that takes an item id raises RequestError when there is no such item.
    """

    def __init__(
        self, config: ContextConfig | None = None, *, count_tokens: Callable[[str], int] = estimate_tokens
    ) -> None:
        self.config = config or ContextConfig()
        self.instructions = ""
        self.summary = ""
        self.version = 0
        self._count = count_tokens
        self._items: dict[str, Item] = {}
        self._order: list[str] = []
        self._folded: set[str] = set()
        self._calls: dict[str, str] = {}
        self._outputs: dict[str, str] = {}
        self._size = 0

    # ------------------------------------------------------------ items

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    def __len__(self) -> int:
        return len(self._order)

    @property
    def items(self) -> list[Item]:
        """All items in order, those that a summary stands for included."""
        return [self._items[item_id] for item_id in self._order]

    @property
    def last_id(self) -> str | None:
        return self._order[-1] if self._order else None

    def get(self, item_id: str) -> Item:
        try:
            return self._items[item_id]
        except KeyError:
            raise RequestError(
                f"There is no item {item_id!r} in this conversation.", code="item_not_found", param="item_id"
            ) from None

    def check_room(self, item: Item) -> None:
        """Raises RequestError when the history is too large for one more item of the client's."""
        if self._size + _size(item) > _LARGEST:
            raise RequestError(
                f"The conversation would be larger than {_LARGEST:,} characters: delete items, or send shorter ones.",
                code="conversation_full",
                param="item",
            )

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Insert after the item `after` ("root": in front; None: at the end); returns the id it now follows."""
        if item.id in self._items or item.id == "root":
            raise RequestError(f"There is already an item {item.id!r}.", code="item_exists", param="item.id")
        if isinstance(item, OutputItem):
            if item.call_id not in self._calls:
                raise RequestError(
                    f"No tool call has the id {item.call_id!r}.", code="call_not_found", param="item.call_id"
                )
            if item.call_id in self._outputs:
                raise RequestError(
                    f"The tool call {item.call_id!r} has its result already.",
                    code="call_answered",
                    param="item.call_id",
                )
        if isinstance(item, CallItem) and item.call.id in self._calls:
            raise RequestError(
                f"There is already a tool call {item.call.id!r}.", code="call_exists", param="item.call_id"
            )
        index = len(self._order)
        if after == "root":
            index = 0
        elif after is not None:
            self.get(after)
            index = self._order.index(after) + 1
        self._order.insert(index, item.id)
        self._items[item.id] = item
        self._size += _size(item)
        if isinstance(item, CallItem):
            self._calls[item.call.id] = item.id
        elif isinstance(item, OutputItem):
            self._outputs[item.call_id] = item.id
        self.version += 1
        return self._order[index - 1] if index else None

    def delete(self, item_id: str) -> list[Item]:
        """Remove an item and return what went: a call takes its result with it, which answers nothing else."""
        item = self.get(item_id)
        self._order.remove(item_id)
        del self._items[item_id]
        self._size -= _size(item)
        self._folded.discard(item_id)
        self.version += 1
        if isinstance(item, OutputItem):
            del self._outputs[item.call_id]
        elif isinstance(item, CallItem):
            del self._calls[item.call.id]
            if item.call.id in self._outputs:
                return [item, *self.delete(self._outputs[item.call.id])]
        return [item]

    def update(
        self,
        item_id: str,
        *,
        text: str | None = None,
        status: Status | None = None,
        seconds: float | None = None,
    ) -> MessageItem:
        """Give a message its transcript, its heard prefix, its final status or the length of its audio."""
        item = self.get(item_id)
        if not isinstance(item, MessageItem):
            raise RequestError(f"The item {item_id!r} is not a message.", code="item_not_message", param="item_id")
        changed = replace(
            item,
            text=item.text if text is None else text,
            status=status or item.status,
            seconds=item.seconds if seconds is None else seconds,
        )
        if changed.text != item.text:
            self.version += 1
            self._size += _size(changed) - _size(item)
        self._items[item_id] = changed
        return changed

    def awaits(self, call_id: str) -> bool:
        """Whether this call is in the conversation and has no result yet."""
        return call_id in self._calls and call_id not in self._outputs

    def result(self, call_id: str) -> OutputItem | None:
        """The result of a call, when it is there."""
        item = self._items.get(self._outputs.get(call_id, ""))
        return item if isinstance(item, OutputItem) else None

    # ------------------------------------------------------------ as a prompt

    def render(self, extra: Sequence[Item] = (), *, instructions: str | None = None) -> list[Message]:
        """The prompt: system message, what the budget holds of the items, then `extra`, which is not in history yet.

        A call is rendered where its result is, so that a result that arrived late never leaves a call without an
        answer behind it; a call still running is rendered with a note that says so.
        """
        visible = [self._items[item_id] for item_id in self._order if item_id not in self._folded]
        fixed = self._count(self._system(instructions)) + sum(map(self._tokens, extra))
        return self.render_items([*self._fit(visible, self.config.budget - fixed), *extra], instructions=instructions)

    def render_items(self, items: Sequence[Item], *, instructions: str | None = None) -> list[Message]:
        """Render just these items, behind the system message."""
        system = self._system(instructions)
        rendering = _Rendering([Message("system", system)] if system else [])
        calls = {item.call.id: item for item in items if isinstance(item, CallItem)}
        outputs = {item.call_id for item in items if isinstance(item, OutputItem)}
        for item in items:
            if isinstance(item, MessageItem):
                if item.text:
                    rendering.say(item)
            elif isinstance(item, OutputItem):
                call = calls.get(item.call_id) or self._call(item.call_id)
                if call is not None:
                    rendering.call(call, item.output)
            elif item.call.id not in outputs:
                rendering.call(item, PENDING_RESULT)
        return rendering.messages

    @property
    def tokens(self) -> int:
        """Tokens that the whole history would take, the summary standing for what it folds."""
        visible = (self._items[item_id] for item_id in self._order if item_id not in self._folded)
        return self._count(self._system(None)) + sum(map(self._tokens, visible))

    @property
    def audio_ratio(self) -> float:
        """Audio tokens per text token over everything that was spoken (the paper reports 14); 0 before any speech."""
        spoken = [item for item in self.items if isinstance(item, MessageItem) and item.seconds and item.text]
        text = sum(self._count(item.text or "") for item in spoken)
        return AUDIO_TOKENS_PER_SECOND * sum(item.seconds for item in spoken) / text if text else 0.0

    # ------------------------------------------------------------ summarising

    def fold(self) -> Fold | None:
        """The oldest items that should give way to a summary, or None while there is room.

        System items, unanswered calls and messages still forming are never folded.
        """
        if self.tokens <= self.config.budget * self.config.summarise_at:
            return None
        excess = self.tokens - self.config.budget * self.config.keep
        chosen: list[Item] = []
        for item in self._foldable():
            if excess <= 0:
                break
            chosen.append(item)
            excess -= self._tokens(item)
        if not chosen:
            return None
        earlier = [f"(Earlier: {self.summary})"] if self.summary else []
        text = "\n".join(earlier + [line for item in chosen if (line := _as_line(item))])
        messages = (Message("system", SUMMARY_PROMPT), Message("user", text))
        return Fold(tuple(item.id for item in chosen), messages)

    def apply(self, fold: Fold, summary: str) -> None:
        """Let `summary` stand for the folded items from now on; they keep their ids and can still be retrieved."""
        self.summary = summary
        self._folded.update(item_id for item_id in fold.item_ids if item_id in self._items)
        self.version += 1

    # ------------------------------------------------------------ inside

    def _system(self, instructions: str | None) -> str:
        parts = [self.instructions if instructions is None else instructions]
        if self.summary:
            parts.append(f"Earlier in this conversation: {self.summary}")
        return "\n\n".join(filter(None, parts))

    def _call(self, call_id: str) -> CallItem | None:
        item = self._items.get(self._calls.get(call_id, ""))
        return item if isinstance(item, CallItem) else None

    def _tokens(self, item: Item) -> int:
        if isinstance(item, MessageItem):
            return self._count(item.text) if item.text else 0
        if isinstance(item, OutputItem):
            return self._count(item.output)
        return self._count(item.call.name + json.dumps(dict(item.call.arguments), default=str))

    def _may_go(self, item: Item) -> bool:
        if isinstance(item, MessageItem):
            return item.role != "system" and item.text is not None and item.status != "in_progress"
        return isinstance(item, OutputItem) or item.call.id in self._outputs

    def _foldable(self) -> Iterable[Item]:
        """Oldest first; the last message stays, so that there is always something to answer."""
        for item_id in self._order[:-1]:
            if item_id not in self._folded and self._may_go(self._items[item_id]):
                yield self._items[item_id]

    def _fit(self, visible: list[Item], room: int) -> list[Item]:
        """Drop the oldest items that may go until the rest fits: the net for when a summary comes too late."""
        excess = sum(map(self._tokens, visible)) - room
        dropped: set[str] = set()
        for item in visible[:-1]:
            if excess <= 0:
                break
            if self._may_go(item):
                dropped.add(item.id)
                excess -= self._tokens(item)
        return [item for item in visible if item.id not in dropped]


def _size(item: Item) -> int:
    """Characters, near enough for a limit."""
    if isinstance(item, MessageItem):
        return _FRAME + len(item.text or "")
    return _FRAME + len(item.output if isinstance(item, OutputItem) else str(item.call.arguments))


class _Rendering:
    """Messages in the making; calls of one reply share its assistant message."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self._reply_id: str | None = None
        self._assistant = -1

    def say(self, item: MessageItem) -> None:
        self.messages.append(Message(item.role, item.text or ""))
        self._assistant, self._reply_id = len(self.messages) - 1, item.reply_id
        if item.role != "assistant":
            self._assistant = -1

    def call(self, item: CallItem, output: str) -> None:
        if self._assistant < 0 or self._reply_id != item.reply_id:
            self.messages.append(Message("assistant", ""))
            self._assistant, self._reply_id = len(self.messages) - 1, item.reply_id
        assistant = self.messages[self._assistant]
        self.messages[self._assistant] = replace(assistant, tool_calls=(*assistant.tool_calls, item.call))
        self.messages.append(Message("tool", output, tool_call_id=item.call.id))


def _as_line(item: Item) -> str:
    if isinstance(item, MessageItem):
        return f"{item.role}: {item.text}" if item.text else ""
    if isinstance(item, OutputItem):
        return f"tool result: {item.output}"
    arguments = json.dumps(dict(item.call.arguments), ensure_ascii=False, default=str)
    return f"assistant called {item.call.name}({arguments})"
