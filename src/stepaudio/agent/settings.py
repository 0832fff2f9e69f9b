"""What the client sets: for the session, and for one reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stepaudio.agent.context import ContextConfig, Item
from stepaudio.agent.tools import ToolSpec
from stepaudio.agent.turn import TurnConfig
from stepaudio.errors import InputError
from stepaudio.speech.roles import Sampling


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """When to prepare replies, and how much. Without it no reply is begun before its turn is over.

    `attempts` a turn at most, none at an end-of-turn score below `least`; each holds `seconds` of audio, then its
    work waits. Speech that goes on for longer than `filler` seconds is no filler. From a load of `calm` on only
    likely ends of turn are tried, at 1 none.
    """

    enabled: bool = True
    attempts: int = 4
    least: float = 0.15
    seconds: float = 20.0
    filler: float = 0.7
    calm: float = 0.5

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.seconds <= 0 or self.filler < 0 or not 0 <= self.calm < 1:
            raise InputError("speculation needs attempts >= 1, seconds > 0, filler >= 0 and 0 <= calm < 1")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `session.update` can change. `turn=None` leaves the turns to the client (manual turns).

    `language` and `hint` are passed to the transcriber. When a tool keeps the agent silent for `filler_after` seconds
    it says the next of `fillers`. `acoustic` asks for the bundle's acoustic `TurnScorer` at each pause.
    """

    instructions: str = ""
    speak: bool = True
    voice: str | None = None
    speed: float = 1.0
    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    parallel_tools: int = 4
    tool_rounds: int = 8
    turn: TurnConfig | None = field(default_factory=TurnConfig)
    language: str | None = None
    hint: str | None = None
    acoustic: bool = False
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    fillers: tuple[str, ...] = ()
    filler_after: float = 1.5

    @property
    def opening(self) -> tuple[str, tuple[ToolSpec, ...], str]:
        """What every prompt begins with."""
        return self.instructions, self.tools, self.tool_choice


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How one reply differs from the session's settings; None means as in the session.

    `input` replaces the history as the prompt. `in_history=False` makes an out-of-band reply: it reads the history
    but leaves nothing in it. `metadata` is handed back with `ReplyStarted` and `ReplyDone`.
    """

    instructions: str | None = None
    speak: bool | None = None
    voice: str | None = None
    speed: float | None = None
    sampling: Sampling | None = None
    tools: tuple[ToolSpec, ...] | None = None
    tool_choice: str | None = None
    input: tuple[Item, ...] | None = None
    in_history: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)
