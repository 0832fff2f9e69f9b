"""What every task is: it asks for outputs of one kind and scores each by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepaudio.errors import InputError, MissingError, StepAudioError
from stepaudio.eval.instruments import Instrument, Instruments
from stepaudio.eval.items import Item, Kind, Output
from stepaudio.eval.results import Metric, Row


@dataclass(slots=True)
class Scored:
    """The scores of one item, as {metric: (numerator, denominator)}, and what a reader wants to see of it."""

    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def attempt(self, metric: str, worst: float, measure: Callable[[], float]) -> None:
        """Score with `measure`, or with the worst score and a problem when that fails. What is not installed is not the
        system's failure: then there is no score."""
        try:
            self.scores[metric] = (measure(), 1.0)
        except MissingError as error:
            self.problems.append(f"{metric}: {error}")
        except StepAudioError as error:
            self.scores[metric] = (worst, 1.0)
            self.problems.append(f"{metric}: {error}")


class Task(ABC):
    """One benchmark. An output that failed comes as one without replies, and is to get the worst of every metric that
    is not `measured`."""

    name: str
    title: str
    kind: Kind
    version: int = 1
    protocols: tuple[str, ...] = ("strict",)
    """Ways to score: `strict`, and published ones with their quirks, as NAME_compat."""
    uses: tuple[Instrument, ...] = ()
    """Instruments that it measures with where they are."""
    own: str
    """The folder of our own sets that it runs on when no other is named."""

    def __init__(self, protocol: str = "strict") -> None:
        if protocol not in self.protocols:
            raise InputError(
                f"the task '{self.name}' has no protocol {protocol!r}; it has {', '.join(self.protocols)}",
                param="protocol",
            )
        self.protocol = protocol

    def prepare(self, items: Sequence[Item], seed: int) -> list[Item]:
        """The items as they are asked; a task that words the request itself does it here."""
        return list(items)

    @abstractmethod
    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        """What is measured on these items."""

    @abstractmethod
    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        """Score one output."""

    def counted(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that figures are made of: all of them, but for the quirks of a published protocol."""
        return list(rows)

    def notes(self, rows: Sequence[Row], instruments: Instruments) -> list[str]:
        """What a reader of the figures has to know: which of them are missing, and why."""
        return [f"Not measured: {reason}." for what in self.uses if (reason := instruments.can(what))]

    def extra(self, rows: Sequence[Row], instruments: Instruments) -> dict[str, Any]:
        """Further facts for the JSON."""
        return {}


def languages(items: Iterable[Item]) -> list[str]:
    """Of the items, in order."""
    return sorted({item.language for item in items})
