"""What a reply is asked: the prompt, the tools, the voice, from the session's settings and what differs this time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stepaudio.agent.commands import StartReply
from stepaudio.agent.context import Context, Item, MessageItem
from stepaudio.agent.settings import ReplyOptions, Settings
from stepaudio.agent.tools import ToolSpec
from stepaudio.speech.roles import Message


@dataclass
class Reply:
    """One reply in the making: what was asked for, and what of it has been published."""

    start: StartReply
    options: ReplyOptions
    specs: dict[str, ToolSpec]
    message: MessageItem | None = None
    items: list[Item] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)
    """The calls whose results are made here; their arrival starts the next reply."""
    client_calls: bool = False
    first_text: float | None = None
    opened: bool = False
    cut: bool = False
    """Whether its text ends where it was heard to."""
    ended: bool = False

    @property
    def id(self) -> str:
        return self.start.reply_id


class Planner:
    """Plans the replies of one conversation."""

    def __init__(self, settings: Settings, context: Context, new_id: Callable[[str], str]) -> None:
        self.settings = settings
        self._context = context
        self._new_id = new_id

    def plan(
        self,
        options: ReplyOptions,
        extra: Sequence[Item] = (),
        *,
        rounds: int = 0,
        speculative: bool = False,
        text: str | None = None,
    ) -> Reply:
        """A reply to the history and what is `extra`, not in it yet; after so many `rounds` of tools without more of
        them. With `text` it speaks just that."""
        session = self.settings
        offered = session.tools if options.tools is None else options.tools
        # An out-of-band reply leaves no call in history for a result to follow: only the client's tools.
        specs = {spec.tool.name: spec for spec in offered if options.in_history or spec.client_side}
        messages: list[Message] = []
        if options.input is not None:
            messages = self._context.render_items(options.input, instructions=options.instructions)
        elif text is None:
            messages = self._context.render(extra, instructions=options.instructions)
        choice = session.tool_choice if options.tool_choice is None else options.tool_choice
        start = StartReply(
            reply_id=self._new_id("resp"),
            messages=tuple(messages),
            tools=tuple(spec.tool for spec in specs.values()),
            tool_choice="none" if rounds >= session.tool_rounds else choice,
            sampling=options.sampling or session.sampling,
            speak=session.speak if options.speak is None else options.speak,
            voice=options.voice or session.voice,
            speed=session.speed if options.speed is None else options.speed,
            speculative=speculative,
            text=text,
        )
        return Reply(start, options, specs)
