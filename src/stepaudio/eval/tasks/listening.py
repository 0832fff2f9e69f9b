"""Listening comprehension with four options, as in HSK-6."""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Item, Output
from stepaudio.eval.metrics.matching import choice
from stepaudio.eval.results import Metric, Row
from stepaudio.eval.tasks.base import Scored, Task

_ASK = {
    "en": "Listen and answer the question. Reply with the letter of the right option and nothing else.\nOptions: {}",
    "zh": "请听录音并回答问题。只回答正确选项的字母，不要说别的。\n选项：{}",
}


class Listening(Task):
    """The letter that a reply picks. The options' order is drawn by the seed, so that no place is favoured; no letter
    is wrong.

    `ultraeval_compat` takes a reply without a letter for A, as UltraEval-Audio does. `voicebench_compat` takes it for a
    random letter, as VoiceBench does, but drawn by the item's name.
    """

    name = "listening"
    title = "Listening comprehension"
    kind = "converse"
    protocols = ("strict", "ultraeval_compat", "voicebench_compat")
    own = "listening"

    def prepare(self, items: Sequence[Item], seed: int) -> list[Item]:
        return [self._shuffled(item, seed) for item in items]

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        return [
            Metric("accuracy", "share", "higher", "the right option", percent=True),
            Metric("no option", "share", "lower", "replies that pick none, or several", percent=True),
        ]

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        options, right = list(item.reference["options"]), int(item.reference["answer"])
        picked = choice(output.reply.text, options, item.language)
        letters = string.ascii_uppercase
        shown = {
            "question": item.request.turns[-1].text,
            "options": "; ".join(f"{letters[i]}. {option}" for i, option in enumerate(options)),
            "right": letters[right],
            "picked": letters[picked] if picked is not None else "none",
            "reply": output.reply.text,
        }
        scored = Scored({"no option": (float(picked is None), 1)}, shown)
        if picked is None and self.protocol == "ultraeval_compat":
            picked = 0
        elif picked is None and self.protocol == "voicebench_compat":
            picked = random.Random(item.id).randrange(len(options))
        scored.scores["accuracy"] = (float(picked == right), 1)
        return scored

    def extra(self, rows: Sequence[Row], instruments: Instruments) -> dict[str, Any]:
        picked, right = (Counter(row.shown[name] for row in rows) for name in ("picked", "right"))
        return {"position bias": {"picked": dict(sorted(picked.items())), "right": dict(sorted(right.items()))}}

    @staticmethod
    def _shuffled(item: Item, seed: int) -> Item:
        options = list(item.reference["options"])
        order = list(range(len(options)))
        random.Random(f"{seed}:{item.id}").shuffle(order)
        shuffled = [options[place] for place in order]
        written = "; ".join(f"{string.ascii_uppercase[i]}. {option}" for i, option in enumerate(shuffled))
        request = replace(item.request, instructions=_ASK.get(item.language, _ASK["en"]).format(written))
        answer = order.index(int(item.reference["answer"]))
        return replace(item, request=request, reference={**item.reference, "options": shuffled, "answer": answer})
