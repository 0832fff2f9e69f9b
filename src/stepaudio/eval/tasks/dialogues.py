"""Spoken dialogues of several turns in the nine dimensions of StepEval-Audio-360, judged as the paper does: factuality,
relevance and a chat score, from the text of the conversation."""

from __future__ import annotations

from collections.abc import Sequence

from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Item, Output
from stepaudio.eval.judges.prompt import read_prompt
from stepaudio.eval.results import Metric
from stepaudio.eval.tasks.base import Scored, Task

DIMENSIONS = (
    "voice instruction following", "voice understanding", "logical reasoning", "role-playing", "creativity", "singing",
    "language ability", "speech emotion control", "gaming",
)  # fmt: skip
_FIELDS = {"factuality": ("factual", 0.0), "relevance": ("relevant", 0.0), "chat score": ("score", 1.0)}
"""Metric -> field of the verdict and the worst it can be."""


class Dialogues(Task):
    """Every dialogue is a cluster of its own. One with a turn that got no reply is neither factual nor relevant, and
    scores 1."""

    name = "dialogues"
    title = "Spoken dialogues (nine dimensions)"
    kind = "converse"
    own = "dialogues"

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        metrics = [Metric("answered", "share", "higher", "dialogues with a reply to every turn", percent=True)]
        if instruments.judge is None:
            return metrics
        labels = {name: instruments.judge.protocol("dialogue", field) for name, (field, _) in _FIELDS.items()}
        return [
            *metrics,
            Metric("factuality", "ratio", "higher", "nothing stated is false", True, protocol=labels["factuality"]),
            Metric(
                "relevance", "ratio", "higher", "every turn does what was asked", True, protocol=labels["relevance"]
            ),
            Metric("chat score", "ratio", "higher", "1 to 5", protocol=labels["chat score"]),
        ]

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        said = [reply.text.strip() for reply in output.replies]
        complete = len(said) == len(item.request.turns) and all(said)
        conversation = "\n".join(
            f"User: {turn.text}\nAssistant: {said[number] if number < len(said) else ''}"
            for number, turn in enumerate(item.request.turns)
        )
        scored = Scored({"answered": (float(complete), 1)}, {"conversation": conversation})
        judge = instruments.judge
        if judge is not None:
            for name, (field, worst) in _FIELDS.items():

                def judged(field: str = field, worst: float = worst) -> float:
                    if not complete:
                        return worst
                    verdicts = judge.ask(read_prompt("dialogue"), dimension=item.group, conversation=conversation)
                    scored.shown["judge"] = str(verdicts[0].get("reason", ""))
                    return judge.mean(verdicts, field)

                scored.attempt(name, worst, judged)
        return scored
