"""Resynthesis: what a codec, or tokens and back, keep of a recording."""

from __future__ import annotations

from collections.abc import Sequence

from stepaudio.eval import normalise
from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Audio, Item, Output
from stepaudio.eval.metrics import signal
from stepaudio.eval.metrics.errors import count_errors
from stepaudio.eval.metrics.speaker import similarity
from stepaudio.eval.results import Metric
from stepaudio.eval.tasks.base import Scored, Task
from stepaudio.eval.tasks.tts import WORST_MOS

_WORST_PESQ = 1.0


class Codec(Task):
    """Against the recording itself, and by what is understood of it. No audio gets no intelligibility, the worst
    opinion and no similarity."""

    name = "codec"
    title = "Resynthesis"
    kind = "resynthesise"
    uses = ("mos", "voice")
    own = "asr"

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        metrics = []
        for language in sorted({item.language for item in items}):
            main = normalise.find(None, language)
            label = {"asr": instruments.asr_label, "normaliser": main.name, "aggregation": "corpus"}
            metrics.append(Metric(main.metric, "ratio", "lower", f"errors over all {main.unit}s", True, protocol=label))
        metrics += [
            Metric("STOI", "mean", "higher", "intelligibility against the original, to 1"),
            Metric("PESQ", "mean", "higher", "wide-band quality against the original, 1.04 to 4.64"),
        ]
        if instruments.can("mos") is None:
            label = {"model": "DNSMOS P.835"}
            metrics.append(Metric("DNSMOS", "mean", "higher", "predicted opinion, 1 to 5", protocol=label))
        if instruments.can("voice") is None:
            label = {"model": instruments.speaker_label, "against": "original"}
            metrics.append(Metric("similarity", "mean", "higher", "cosine to the original's speaker", protocol=label))
        return [*metrics, Metric("SI-SDR", "mean", "higher", "signal to distortion", unit="dB", measured=True)]

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        assert item.request.clip is not None
        audio, said = output.reply.audio, str(item.reference["text"])
        heard = instruments.hear(audio, item.language)
        scored = Scored(shown={"reference": said, "heard": heard})
        main = normalise.find(None, item.language)
        errors = count_errors(main.tokens(said), main.tokens(heard))
        scored.scores[main.metric] = (errors.total, errors.length)
        original = Audio(item.request.clip.samples(signal.RATE), signal.RATE)
        clean, degraded = original.samples, None if audio is None else audio.at(signal.RATE)
        scored.attempt("STOI", 0.0, lambda: 0.0 if degraded is None else signal.stoi(clean, degraded))
        scored.attempt("PESQ", _WORST_PESQ, lambda: _WORST_PESQ if degraded is None else signal.pesq(clean, degraded))
        if instruments.can("mos") is None:
            scored.attempt("DNSMOS", WORST_MOS, lambda: instruments.mos(audio).overall if audio else WORST_MOS)
        if instruments.can("voice") is None:
            scored.attempt(
                "similarity",
                0.0,
                lambda: similarity(instruments.voice(original), instruments.voice(audio)) if audio else 0.0,
            )
        if degraded is not None and len(degraded):
            scored.scores["SI-SDR"] = (signal.si_sdr(clean, degraded), 1)
        return scored
