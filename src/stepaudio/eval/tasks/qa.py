"""Spoken questions with known answers: Llama Questions, Web Questions, TriviaQA and their like."""

from __future__ import annotations

from collections.abc import Sequence

from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Item, Output
from stepaudio.eval.judges.prompt import read_prompt
from stepaudio.eval.metrics.matching import RULES
from stepaudio.eval.results import Metric
from stepaudio.eval.tasks.base import Scored, Task

_TEXT, _SPEECH = "text", "speech"
"""Of a reply: what the system wrote, and what is heard of what it said."""


class Qa(Task):
    """Right by stated rules, in the reply's text and in its speech, and by the judge where there is one. A missing
    reply is wrong."""

    name = "qa"
    title = "Spoken question answering"
    kind = "converse"
    own = "qa"

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        metrics = []
        for side in (_TEXT, _SPEECH):
            heard = {"asr": instruments.asr_label} if side == _SPEECH else {}
            for rule in ("contains", "has_answer"):
                about = f"answers whose {side} holds a reference answer, by the rule {rule}"
                metrics.append(
                    Metric(f"{rule} ({side})", "share", "higher", about, True, protocol={"rule": rule, **heard})
                )
        if instruments.judge is not None:
            label = instruments.judge.protocol("answer", "right")
            metrics.append(
                Metric("judged right", "ratio", "higher", "by the judge, from the text", True, protocol=label)
            )
        return metrics

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        reply, answers = output.reply, list(item.reference["answers"])
        heard = instruments.hear(reply.audio, item.language)
        question = item.request.turns[-1].text
        scored = Scored(shown={"question": question, "answers": " / ".join(answers[:5]), "reply": reply.text})
        if heard:
            scored.shown["heard"] = heard
        for side, text in ((_TEXT, reply.text), (_SPEECH, heard)):
            for rule in ("contains", "has_answer"):
                scored.scores[f"{rule} ({side})"] = (float(RULES[rule](text, answers, item.language)), 1)
        judge = instruments.judge
        if judge is not None:
            values = {"question": question, "references": "; ".join(answers[:20]), "answer": reply.text}

            def right() -> float:
                return judge.mean(judge.ask(read_prompt("answer"), **values), "right") if reply.text.strip() else 0.0

            scored.attempt("judged right", 0.0, right)
        return scored
