"""What Whisper's window costs: `python benchmarks/whisper_window.py SPEECH --whisper DIR --vad FILE`.

SPEECH is a folder of recordings with a manifest.jsonl (path, text, lang). Every clip goes through every variant
before the next clip does, so that the load of the machine falls on all alike. Reports word error rate (English) and
character error rate (Chinese) with a 95 % interval from a bootstrap over clips, seconds a clip, seconds of processor
time a clip, and the real-time factor. The isolated digits of `fsdd` are a line of their own.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from stepaudio.audio.io import read
from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import SileroVad
from stepaudio.eval.metrics.errors import count_errors
from stepaudio.eval.metrics.intervals import ratio
from stepaudio.speech.backends.whisper import WhisperTranscriber
from stepaudio.speech.reading import spoken

Hear = Callable[[Samples, str], str]
AGAIN = 12_800
"""Samples, 0.8 s, after which a turn that is spoken is heard again."""


def nothing(samples: Samples, language: str) -> None: ...


@dataclass
class Variant:
    """A way of hearing, and what comes before it and is not timed."""

    hear: Hear
    before: Callable[[Samples, str], None] = nothing


class FullWindow(WhisperTranscriber):
    """Encodes all of the 30 s, as Whisper was trained."""

    tail = 30.0


class ShortWindow(WhisperTranscriber):
    """Encodes the speech and a second and a half of silence; the decoder sees nothing else."""

    tail = 1.5
    memory = 0.0


class HalfMemory(WhisperTranscriber):
    """The default with less of the ready-made silence."""

    memory = 15.0


@dataclass
class Clip:
    samples: Samples
    text: str
    language: str
    group: str


@dataclass
class Tally:
    """What one variant made of one group of clips."""

    references: list[str] = field(default_factory=list)
    hypotheses: list[str] = field(default_factory=list)
    audio: float = 0.0
    wall: float = 0.0
    processor: float = 0.0


@dataclass
class Row:
    """Error rates are fractions, times are seconds."""

    group: str
    variant: str
    clips: int
    error_rate: float
    interval: tuple[float, float]
    seconds_per_clip: float
    processor_seconds_per_clip: float
    real_time_factor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder with manifest.jsonl")
    parser.add_argument("--whisper", type=Path, required=True, help="folder of a CTranslate2 Whisper model")
    parser.add_argument("--vad", type=Path, required=True, help="Silero's ONNX file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="times are the least of so many runs of a clip")
    parser.add_argument("--every", type=int, default=1, help="take every n-th clip only")
    parser.add_argument("--variants", nargs="*", help="only these")
    parser.add_argument("--json", type=Path, help="write the rows and all transcripts here")
    arguments = parser.parse_args()

    variants = make_variants(arguments.whisper, SileroVad(arguments.vad), arguments.threads)
    if arguments.variants:
        variants = {name: variants[name] for name in arguments.variants}
    tallies: dict[tuple[str, str], Tally] = {}
    chosen = list(clips(arguments.speech))[:: arguments.every]
    for clip in track(chosen, "hearing", console=Console(stderr=True)):
        for name, variant in variants.items():
            record(tallies.setdefault((clip.group, name), Tally()), clip, variant, arguments.repeat)
    rows = [summarise(group, name, tally) for (group, name), tally in sorted(tallies.items())]
    for row in rows:
        low, high = row.interval
        print(
            f"{row.group:8} {row.variant:16} n={row.clips:3}  {row.error_rate:6.2%} [{low:.2%}, {high:.2%}]"
            f"  {row.seconds_per_clip:.3f} s/clip  cpu {row.processor_seconds_per_clip:.3f}"
            f"  rtf {row.real_time_factor:.3f}"
        )
    if arguments.json:
        heard = {f"{group}/{name}": asdict(tally) for (group, name), tally in tallies.items()}
        content = {"rows": [asdict(row) for row in rows], "heard": heard}
        arguments.json.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def make_variants(folder: Path, vad: SileroVad, threads: int) -> dict[str, Variant]:
    """Ways of hearing, by name. All are told the language."""

    def ours(kind: type[WhisperTranscriber], *, while_spoken: bool = False, **options: object) -> Variant:
        model = kind(folder, vad=vad, **{"threads": threads, **options})  # type: ignore[arg-type]
        model.utterances = int(while_spoken)
        return Variant(
            lambda samples, language: model.transcribe(samples, language=language).text,
            (lambda samples, language: hear_beginnings(model, samples, language)) if while_spoken else nothing,
        )

    return {
        "faster-whisper": Variant(faster_whisper(folder, threads)),
        "full-window": ours(FullWindow),
        "short-window": ours(ShortWindow),
        "half-memory": ours(HalfMemory),
        "default": ours(WhisperTranscriber),
        "default-greedy": ours(WhisperTranscriber, beam=1),
        "default-beam-5": ours(WhisperTranscriber, beam=5),
        "while-spoken": ours(WhisperTranscriber, while_spoken=True),
    }


def hear_beginnings(model: WhisperTranscriber, samples: Samples, language: str) -> None:
    """What the live runtime does while a turn is spoken."""
    for end in range(AGAIN, len(samples), AGAIN):
        model.transcribe(samples[:end], language=language)


def faster_whisper(folder: Path, threads: int) -> Hear:
    """The usual port with its own window, prompt and temperature fallback."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)

    def hear(samples: Samples, language: str) -> str:
        segments, _ = model.transcribe(
            samples,
            language=language,
            beam_size=1,
            temperature=[0.0, 0.4],
            initial_prompt="以下是普通话的句子。" if language == "zh" else None,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text for segment in segments)

    return hear


def clips(folder: Path) -> Iterable[Clip]:
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry.get("text") and entry["lang"] in ("en", "zh"):
            digits = entry["path"].startswith("fsdd/")
            samples = read(folder / entry["path"], rate=16_000)
            yield Clip(samples, entry["text"], entry["lang"], "digits" if digits else entry["lang"])


def record(tally: Tally, clip: Clip, variant: Variant, repeat: int) -> None:
    walls, processors = [], []
    for _ in range(repeat):
        variant.before(clip.samples, clip.language)
        wall, processor = time.perf_counter(), time.process_time()
        heard = variant.hear(clip.samples, clip.language)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    tally.references.append(normal(clip.text, clip.language))
    tally.hypotheses.append(normal(heard, clip.language))
    tally.audio += len(clip.samples) / 16_000
    tally.wall += min(walls)
    tally.processor += min(processors)


def summarise(group: str, variant: str, tally: Tally) -> Row:
    pairs = [
        count_errors(reference.split(), hypothesis.split())
        for reference, hypothesis in zip(tally.references, tally.hypotheses, strict=True)
    ]
    rate = ratio([pair.total for pair in pairs], [pair.length for pair in pairs])
    return Row(
        group,
        variant,
        len(pairs),
        rate.value,
        (rate.low or 0.0, rate.high or 0.0),
        tally.wall / len(pairs),
        tally.processor / len(pairs),
        tally.wall / tally.audio,
    )


_CONTRACTIONS = {"won't": "will not", "can't": "can not", "cannot": "can not", "n't": " not", "'re": " are"}
_CONTRACTIONS |= {"'ve": " have", "'ll": " will", "'m": " am", "let's": "let us", "it's": "it is", "i'd": "i would"}


def normal(text: str, language: str) -> str:
    """What counts: numbers as words, no case, no punctuation; Chinese characters are words of their own."""
    text = spoken(text, language).lower().replace("〇", "零").replace("’", "'")
    if language == "zh":
        return " ".join(re.findall(r"[\u4e00-\u9fff]|[a-z0-9]+", text))
    text = re.sub(r"\b(mister|mr)\b\.?", "mr", text)
    for short, long in _CONTRACTIONS.items():
        text = text.replace(short, long)
    text = re.sub(r"[^a-z0-9' ]", " ", text).replace("'", "")
    return " ".join(text.split())


if __name__ == "__main__":
    main()
