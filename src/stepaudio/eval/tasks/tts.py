"""Speech synthesis: whether it says the text, sounds well, and sounds like who it should."""

from __future__ import annotations

from collections.abc import Sequence

from stepaudio.eval import normalise
from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Audio, Item, Output
from stepaudio.eval.metrics import pitch
from stepaudio.eval.metrics.errors import count_errors
from stepaudio.eval.metrics.speaker import similarity
from stepaudio.eval.results import Metric, Row
from stepaudio.eval.tasks.base import Scored, Task

_SEED = {"en": "seed_en", "zh": "seed_zh"}
WORST_MOS = 1.0
_RATE = 16_000


class Tts(Task):
    """What was said is transcribed again; no audio has deleted every word, has the worst opinion score and no
    similarity.

    `seed_compat` leaves out what is missing, as SEED-TTS's script does.
    """

    name = "tts"
    title = "Speech synthesis"
    kind = "say"
    protocols = ("strict", "seed_compat")
    uses = ("mos",)
    own = "tts"

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        asr = {"asr": instruments.asr_label}
        found: dict[str, Metric] = {}
        for language in {item.language for item in items}:
            main = normalise.find(None, language)
            label = asr | {"normaliser": main.name, "aggregation": "corpus"}
            found[main.metric] = Metric(
                main.metric, "ratio", "lower", f"errors over all {main.unit}s", percent=True, protocol=label
            )
            seed = _SEED.get(language)
            if seed:
                name = f"{main.metric} ({seed})"
                label = asr | {"normaliser": seed, "aggregation": "mean of utterances"}
                found[name] = Metric(
                    name, "mean", "lower", "the mean of the sentences' rates, as SEED-TTS scores", True, protocol=label
                )
        metrics = [found[name] for name in sorted(found)]
        over = "sentences with an error rate over 50 %"
        metrics.append(Metric("over half wrong", "share", "lower", over, percent=True, protocol=asr))
        if instruments.can("mos") is None:
            label = {"model": "DNSMOS P.835"}
            metrics.append(Metric("DNSMOS", "mean", "higher", "predicted opinion, 1 to 5", protocol=label))
        if any(item.request.clip for item in items) and instruments.can("voice") is None:
            label = {"model": instruments.speaker_label, "against": "prompt"}
            metrics.append(Metric("similarity", "mean", "higher", "cosine to the prompt's speaker", protocol=label))
        return [
            *metrics,
            Metric("real-time factor", "ratio", "lower", "seconds of work a second of speech", measured=True),
            Metric("first audio", "median", "lower", "to the first audio, median", unit="s", measured=True),
            Metric("speaking rate", "ratio", "neither", "tokens a second", unit="/s", measured=True),
            Metric("F0 median", "mean", "neither", "of the voiced frames", unit="Hz", measured=True),
            Metric("F0 spread", "mean", "neither", "standard deviation", unit="semitones", measured=True),
        ]

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        audio = output.reply.audio
        # A reference may say how numbers are read, where a normaliser would not know.
        said = str(item.reference.get("said") or item.request.text)
        heard = instruments.hear(audio, item.language)
        scored = Scored(shown={"reference": said, "heard": heard})
        main = normalise.find(None, item.language)
        errors = count_errors(main.tokens(said), main.tokens(heard))
        scored.scores[main.metric] = (errors.total, errors.length)
        scored.scores["over half wrong"] = (float(errors.total > errors.length / 2), 1)
        if item.language in _SEED:
            seed = normalise.find(_SEED[item.language], item.language)
            again = count_errors(seed.tokens(said), seed.tokens(heard))
            scored.scores[f"{main.metric} ({seed.name})"] = (again.total / max(1, again.length), 1)
        if instruments.can("mos") is None:
            scored.attempt("DNSMOS", WORST_MOS, lambda: instruments.mos(audio).overall if audio else WORST_MOS)
        prompt = item.request.clip
        if prompt is not None and instruments.can("voice") is None:
            wanted = Audio(prompt.samples(_RATE), _RATE)
            scored.attempt(
                "similarity",
                0.0,
                lambda: similarity(instruments.voice(wanted), instruments.voice(audio)) if audio else 0.0,
            )
        if audio is not None:
            self._measure(output, audio, errors.length, scored)
        return scored

    @staticmethod
    def _measure(output: Output, audio: Audio, length: int, scored: Scored) -> None:
        """What only audio has."""
        scored.scores["speaking rate"] = (length, audio.seconds)
        if output.reply.seconds is not None:
            scored.scores["real-time factor"] = (output.reply.seconds, audio.seconds)
        if output.reply.first is not None:
            scored.scores["first audio"] = (output.reply.first, 1)
        samples = audio.at(_RATE)
        found = pitch.statistics(samples) if len(samples) > _RATE // 10 else None
        if found is not None:
            scored.scores["F0 median"] = (found.median, 1)
            scored.scores["F0 spread"] = (found.spread, 1)

    def counted(self, rows: Sequence[Row]) -> list[Row]:
        return list(rows) if self.protocol == "strict" else [row for row in rows if row.error is None]
