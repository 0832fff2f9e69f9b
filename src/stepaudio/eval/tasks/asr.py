"""Speech recognition: word or character error rates over a corpus."""

from __future__ import annotations

from collections.abc import Sequence

from stepaudio.eval import normalise
from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Item, Output
from stepaudio.eval.metrics.errors import count_errors, is_transcript
from stepaudio.eval.results import Metric, Row
from stepaudio.eval.tasks.base import Scored, Task

_SECOND = {"en": "kaldi_en", "zh": "wenet_zh"}
"""The figure without a normaliser's help stands beside."""


class Asr(Task):
    """Errors over words or characters; an output that is missing has deleted every word.

    `kimi_compat` leaves out, from both sides, the items whose output is missing, empty or the word "null", as
    Kimi-Audio-Evalkit does.
    """

    name = "asr"
    title = "Speech recognition"
    kind = "transcribe"
    protocols = ("strict", "kimi_compat")
    own = "asr"

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        found: dict[str, Metric] = {}
        for language in {item.language for item in items}:
            main = normalise.find(None, language)
            names = [(main.metric, main)]
            if language in _SECOND:
                second = normalise.find(_SECOND[language], language)
                names.append((f"{second.metric} ({second.name})", second))
            for name, each in names:
                about = f"errors over all {each.unit}s"
                label = {"normaliser": each.name, "aggregation": "corpus"}
                found[name] = Metric(name, "ratio", "lower", about, percent=True, protocol=label)
        about = "outputs shorter than half, or longer than one and a half, of the reference"
        return [
            *(found[name] for name in sorted(found)),
            Metric("not a transcript", "share", "lower", about, percent=True),
            Metric("real-time factor", "ratio", "lower", "seconds of work a second of audio", measured=True),
        ]

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        said, heard = str(item.reference["text"]), output.reply.text
        scored = Scored(shown={"reference": said, "output": heard})
        main = normalise.find(None, item.language)
        reference, hypothesis = main.tokens(said), main.tokens(heard)
        errors = count_errors(reference, hypothesis)
        scored.scores[main.metric] = (errors.total, errors.length)
        scored.scores["not a transcript"] = (float(not is_transcript(errors, len(hypothesis))), 1)
        if item.language in _SECOND:
            second = normalise.find(_SECOND[item.language], item.language)
            again = count_errors(second.tokens(said), second.tokens(heard))
            scored.scores[f"{second.metric} ({second.name})"] = (again.total, again.length)
        seconds = item.reference.get("seconds")
        if output.reply.seconds is not None and seconds:
            scored.scores["real-time factor"] = (output.reply.seconds, float(seconds))
        return scored

    def counted(self, rows: Sequence[Row]) -> list[Row]:
        if self.protocol == "strict":
            return list(rows)
        return [row for row in rows if row.error is None and row.shown["output"].strip() not in ("", "null")]
