"""Complex instructions, as in ComplexBench: how many of the requirements that an instruction composes are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio.errors import StepAudioError
from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Item, Output
from stepaudio.eval.judges.judge import Judge
from stepaudio.eval.judges.prompt import read_prompt
from stepaudio.eval.metrics.rules import holds
from stepaudio.eval.results import Metric
from stepaudio.eval.tasks.base import Scored, Task


class Instructions(Task):
    """DRFR: the share of all scoring questions that are answered yes. A question that depends on one answered no is
    answered no; a missing reply meets none. Rules decide where they can, the judge where they cannot."""

    name = "instructions"
    title = "Complex instructions"
    kind = "converse"
    own = "instructions"

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        about = "requirements met, of those that a rule decides on the whole reply"
        metrics = [Metric("by rule", "ratio", "higher", about, percent=True)]
        if instruments.judge is not None:
            label = instruments.judge.protocol("requirement", "yes")
            metrics.append(Metric("DRFR", "ratio", "higher", "requirements met, of all", percent=True, protocol=label))
        return metrics

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        reply, questions = output.reply.text, list(item.reference["questions"])
        instruction = item.request.turns[-1].text
        scored = Scored(shown={"instruction": instruction, "reply": reply})
        ruled = [holds(question["rule"], [reply]) for question in questions if _whole(question)]
        if ruled:
            # "forbidden" and the like hold of silence too, but a missing reply meets nothing.
            met = sum(ruled) if reply.strip() else 0
            scored.scores["by rule"] = (met, len(ruled))
        if instruments.judge is not None:
            answers = [
                bool(reply.strip()) and self._answer(question, instruction, reply, instruments.judge, scored)
                for question in questions
            ]
            met = sum(
                answer and all(answers[i] for i in q.get("dep", []))
                for answer, q in zip(answers, questions, strict=True)
            )
            scored.scores["DRFR"] = (met, len(questions))
            unmet = [q["question"] for answer, q in zip(answers, questions, strict=True) if not answer]
            scored.shown["not met"] = "; ".join(unmet) or "nothing"
        return scored

    @staticmethod
    def _answer(question: Mapping[str, Any], instruction: str, reply: str, judge: Judge, scored: Scored) -> bool:
        try:
            if _whole(question):
                return holds(question["rule"], [reply])
            if question.get("rule"):
                found = judge.ask(read_prompt("extract"), question=question["question"], reply=reply)[0]["parts"]
                return holds(question["rule"], [] if found.strip().lower() == "none" else found.split("||"))
            values = {"instruction": instruction, "reply": reply, "question": question["question"]}
            return judge.mean(judge.ask(read_prompt("requirement"), **values), "yes") > 0.5
        except StepAudioError as error:
            scored.problems.append(f"{question['question']}: {error}")
            return False


def _whole(question: Mapping[str, Any]) -> bool:
    """Whether a rule decides, on the whole reply."""
    return bool(question.get("rule")) and question.get("of") == "reply"
