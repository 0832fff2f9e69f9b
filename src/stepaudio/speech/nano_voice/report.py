"""What fine-tuning changed: test sentences as a clone said them before, and as the new voice says them after.

`compare` gives the figures, `page` the same to be read and listened to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples
from stepaudio.audio.resample import resample
from stepaudio.data import filters
from stepaudio.data.manifest import Utterance
from stepaudio.data.synthesis import RATE
from stepaudio.eval.metrics.intervals import mean, ratio
from stepaudio.eval.metrics.speaker import similarity
from stepaudio.speech.bundle import Bundle
from stepaudio.speech.nano_voice.speaker import NanoSpeaker
from stepaudio.speech.roles import Reference, Speaker

_CLIP_SECONDS = 8.0


@dataclass(frozen=True)
class Said:
    """A test sentence as it was spoken: what was heard, words that were wrong, words it has, nearness to the
    speaker."""

    text: str
    file: str
    heard: str
    errors: int
    words: int
    nearness: float


def compare(
    learned_from: Sequence[Utterance],
    kept_apart: Sequence[Utterance],
    ears: Bundle,
    folders: tuple[Path, Path],
    samples: Path,
    more: Sequence[Utterance] = (),
) -> dict[str, Any]:
    """The report on the sentences of `kept_apart` and of `more`, which anybody may have said, cloned by the weights in
    the first of `folders` from recordings that were learned from, and spoken by the only voice of the second. Sounds
    are written to `samples`/before and /after."""
    sentences = [*kept_apart, *more]
    near = np.mean([_embed(utterance, ears) for utterance in kept_apart], axis=0)
    clip = _clip(learned_from)
    said: dict[str, list[Said]] = {}
    for name, folder in zip(("before", "after"), folders, strict=True):
        own = NanoSpeaker(folder)
        try:
            speaker: Speaker = own.cloned(clip) if name == "before" else own
            said[name] = [_say(speaker, utterance, ears, near, samples / name) for utterance in sentences]
        finally:
            own.close()
    pairs = list(zip(said["before"], said["after"], strict=True))
    return {
        "recordings": len(learned_from),
        "minutes": round(sum(utterance.duration for utterance in learned_from) / 60, 2),
        "sentences": len(sentences),
        "same_person": asdict(mean([similarity(_embed(utterance, ears), near) for utterance in kept_apart])),
        "before": _figures(said["before"]),
        "after": _figures(said["after"]),
        "similarity_gain": asdict(mean([after.nearness - before.nearness for before, after in pairs])),
        "wer_change": asdict(ratio([a.errors - b.errors for b, a in pairs], [b.words for b, _ in pairs])),
        "said": [{"before": asdict(before), "after": asdict(after)} for before, after in pairs],
    }


def page(report: dict[str, Any], name: str) -> str:
    """The report as Markdown."""
    rows = [
        f"| {at} | {_percent(report[at]['wer'])} | {_number(report[at]['similarity'])} |" for at in ("before", "after")
    ]
    lines = [
        f"# {name}",
        "",
        f"Learned from {report['recordings']} recordings, {report['minutes']} minutes. {report['sentences']} sentences "
        "that were kept apart, as a clone before and by the new voice after; intervals are 95 %.",
        "",
        "| | words wrong | similarity |",
        "|---|---|---|",
        *rows,
        f"| change | {_percent(report['wer_change'])} | {_number(report['similarity_gain'])} |",
        f"| the speaker's own recordings | | {_number(report['same_person'])} |",
        "",
        "| sentence | heard before | heard after |",
        "|---|---|---|",
    ]
    for pair in report["said"]:
        cells = [f"[{_cell(said['heard'])}](samples/{at}/{said['file']})" for at, said in pair.items()]
        lines.append(f"| {_cell(pair['after']['text'])} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def _percent(estimate: dict[str, Any]) -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _number(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ") or "nothing"


def _say(speaker: Speaker, utterance: Utterance, ears: Bundle, near: NDArray[np.float32], folder: Path) -> Said:
    import soundfile

    from stepaudio.speech.say import say

    samples = np.concatenate([speech.samples for speech in say(speaker, utterance.text, language="en")])
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{utterance.audio.stem}.wav"
    soundfile.write(folder / file, samples, speaker.rate)
    transcriber, encoder = ears.transcriber, ears.speaker_encoder
    heard = transcriber.transcribe(resample(samples, speaker.rate, transcriber.rate), language="en").text
    wanted = filters.tokens(utterance.text, "en")
    errors = filters.word_errors(wanted, filters.tokens(heard, "en"))
    vector = encoder.embed(resample(samples, speaker.rate, encoder.rate))
    return Said(utterance.text, file, heard.strip(), errors, len(wanted), similarity(vector, near))


def _figures(sentences: Sequence[Said]) -> dict[str, Any]:
    errors = ratio([one.errors for one in sentences], [one.words for one in sentences])
    return {"wer": asdict(errors), "similarity": asdict(mean([one.nearness for one in sentences]))}


def _clip(utterances: Sequence[Utterance]) -> Reference:
    """A clip to clone from: as many recordings in a row as make up eight seconds."""
    samples: list[Samples] = []
    for utterance in utterances:
        samples.append(utterance.samples(RATE))
        if sum(map(len, samples)) >= _CLIP_SECONDS * RATE:
            break
    return Reference(np.concatenate(samples), RATE, "")


def _embed(utterance: Utterance, ears: Bundle) -> NDArray[np.float32]:
    return ears.speaker_encoder.embed(utterance.samples(ears.speaker_encoder.rate))
