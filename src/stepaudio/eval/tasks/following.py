"""Instructions about how to speak: languages, role-play, singing and rap, voice control.

Instruments measure what they can (language, pace, pitch, loudness, against the system's usual voice), and where an item
says what should have changed, that decides. The judge gives the paper's two opinion scores from the reply's text and
these measurements; listening tests (`stepaudio eval human`) remain the real thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Audio, Item, Output
from stepaudio.eval.judges.prompt import read_prompt
from stepaudio.eval.metrics import pitch
from stepaudio.eval.metrics.matching import tokens
from stepaudio.eval.results import Metric
from stepaudio.eval.tasks.base import Scored, Task
from stepaudio.speech.reading import script

_RATE = 16_000
_CHANGED = {
    "faster": ("pace", 1.15),
    "slower": ("pace", 1 / 1.15),
    "higher": ("pitch", 1.06),
    "lower": ("pitch", 1 / 1.06),
    "louder": ("level", 1.41),
    "softer": ("level", 1 / 1.41),
}
"""What is measured and the least change, as a factor, that listeners notice."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a reply was spoken: tokens a second, median F0 in Hz, RMS."""

    pace: float
    pitch: float
    level: float


class Following(Task):
    """Each item is two turns: an ordinary request, whose reply shows the usual voice, and the instruction. A missing
    reply follows nothing and scores 1."""

    name = "following"
    title = "Instructions about how to speak"
    kind = "converse"
    own = "following"

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        about = "instructions whose effect instruments find in the sound"
        metrics = [Metric("measured", "share", "higher", about, percent=True)]
        if instruments.judge is not None:
            for name, field in (("following", "following"), ("quality", "quality")):
                label = instruments.judge.protocol("following", field)
                metrics.append(Metric(name, "ratio", "higher", "judged, 1 to 5", protocol=label))
        return metrics

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        complete = len(output.replies) == len(item.request.turns) and bool(output.reply.text.strip())
        manners = [manner(reply.audio, reply.text) for reply in output.replies]
        usual, asked = (manners[0], manners[-1]) if complete and len(manners) > 1 else (None, None)
        told = _told(usual, asked, output.reply.text)
        instruction = item.request.turns[-1].text
        scored = Scored(shown={"instruction": instruction, "reply": output.reply.text, "measured": told})
        if expected := item.reference.get("expect"):
            scored.scores["measured"] = (float(complete and changed(expected, usual, asked, output.reply.text)), 1)
        judge = instruments.judge
        if judge is not None:
            for field in ("following", "quality"):

                def judged(field: str = field) -> float:
                    if not complete:
                        return 1.0
                    values = {"instruction": instruction, "reply": output.reply.text, "measured": told}
                    return judge.mean(judge.ask(read_prompt("following"), **values), field)

                scored.attempt(field, 1.0, judged)
        return scored


def manner(audio: Audio | None, text: str) -> Manner | None:
    """How it was spoken; None in no audio."""
    if audio is None or audio.seconds < 0.1:
        return None
    samples = audio.at(_RATE)
    found = pitch.statistics(samples)
    level = float(np.sqrt(np.mean(samples**2)))
    return Manner(len(tokens(text)) / audio.seconds, found.median if found else 0.0, level)


def changed(expected: Mapping[str, Any], usual: Manner | None, asked: Manner | None, text: str) -> bool:
    """Whether a reply shows what was asked: {"manner": "faster"} against the usual voice, {"language": "en"}."""
    if "language" in expected and script(text) != expected["language"]:
        return False
    if "manner" in expected:
        what, factor = _CHANGED[expected["manner"]]
        if usual is None or asked is None or not getattr(usual, what):
            return False
        ratio = getattr(asked, what) / getattr(usual, what)
        return bool(ratio >= factor if factor > 1 else ratio <= factor)
    return True


def _told(usual: Manner | None, asked: Manner | None, text: str) -> str:
    language = {"en": "English", "zh": "Chinese"}.get(script(text) or "", "unknown")
    if usual is None or asked is None:
        return f"language of the text {language}; the sound was not measured"
    changes = []
    for name in ("pace", "pitch", "level"):
        before, after = getattr(usual, name), getattr(asked, name)
        changes.append(f"{name} {after / before - 1:+.0%}" if before else f"{name} not found")
    return f"language of the text {language}; against the usual voice: {', '.join(changes)}"
