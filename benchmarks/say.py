"""How well and how fast the embedded voices speak: `python benchmarks/say.py --kokoro DIR --whisper DIR`.

Twenty sentences per language (benchmarks/sentences, as written and as said) are spoken and transcribed again by
Whisper-base with beam 5. Reports word or character error rate with a bootstrap interval over sentences, the real-time
factor, the time to the first audio of a typical first clause, and how far the model's word times lie from Whisper's.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from stepaudio.speech.backends.onnx_voice import OnnxVoice
from stepaudio.speech.reading import spoken
from stepaudio.speech.roles import Speech
from stepaudio.speech.say import say

SENTENCES = Path(__file__).parent / "sentences"
FIRST_CLAUSES = {"en": "Sure, I can help", "zh": "今天北京的天气"}
VOICES = (("heart", "en"), ("af_heart", "en"), ("zf_xiaoxiao", "zh"))


@dataclass
class Result:
    """Error rates are fractions, times are seconds."""

    voice: str
    sentences: int
    units: int
    error_rate: float
    interval: tuple[float, float]
    real_time_factor: float
    first_audio_p50: float
    word_start_error_p50: float
    word_start_error_p95: float
    words_compared: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kokoro", type=Path, required=True, help="folder with kokoro-int8.onnx, kokoro-vocab.json")
    parser.add_argument("--voices", type=Path, required=True, help="folder with the Kokoro voice files")
    parser.add_argument("--whisper", type=Path, required=True, help="folder of a CTranslate2 Whisper model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for the spoken sentences")
    arguments = parser.parse_args()

    from faster_whisper import WhisperModel

    speaker = OnnxVoice(
        kokoro=arguments.kokoro / "kokoro-int8.onnx",
        vocab=arguments.kokoro / "kokoro-vocab.json",
        voices=arguments.voices,
        threads=arguments.threads,
    )
    whisper = WhisperModel(str(arguments.whisper), compute_type="int8", cpu_threads=arguments.threads)
    for voice, language in VOICES:
        result = measure(speaker, whisper, voice, language, arguments.out)
        print(json.dumps(asdict(result), ensure_ascii=False), flush=True)


def measure(speaker: OnnxVoice, whisper: Any, voice: str, language: str, out: Path | None) -> Result:
    for _ in say(speaker, FIRST_CLAUSES[language], voice=voice):  # warm: lexicons and memory pools
        pass
    split = _words if language == "en" else _characters
    errors, lengths, busy, audible, apart = [], [], 0.0, 0.0, []
    for number, (written, said) in enumerate(sentences(language)):
        start = time.perf_counter()
        chunks = list(say(speaker, written, voice=voice))
        busy += time.perf_counter() - start
        samples = np.concatenate([chunk.samples for chunk in chunks])
        audible += len(samples) / speaker.rate
        if out is not None:
            import soundfile

            out.mkdir(parents=True, exist_ok=True)
            soundfile.write(out / f"{voice}-{number:02}.wav", samples, speaker.rate)
        segments = list(transcribe(whisper, samples, speaker.rate, language))
        heard = spoken("".join(segment.text for segment in segments), language)
        reference, hypothesis = split(said), split(heard)
        errors.append(distance(reference, hypothesis))
        lengths.append(len(reference))
        apart += start_errors(chunks, segments, speaker.rate, split)
        if errors[-1]:
            print(f"  {voice}: {written} -> {heard}", flush=True)
    return Result(
        voice,
        len(errors),
        sum(lengths),
        sum(errors) / sum(lengths),
        bootstrap(errors, lengths),
        busy / audible,
        statistics.median(first_audio(speaker, voice, FIRST_CLAUSES[language]) for _ in range(7)),
        float(np.percentile(apart, 50)),
        float(np.percentile(apart, 95)),
        len(apart),
    )


def sentences(language: str) -> list[tuple[str, str]]:
    """(as written, as said) of each line; where they are the same the second column is left out."""
    lines = (SENTENCES / f"{language}.tsv").read_text("utf-8").splitlines()
    columns = [line.rstrip().split("\t") for line in lines if line.strip()]
    return [(column[0], column[-1]) for column in columns]


def transcribe(whisper: Any, samples: Any, rate: int, language: str) -> Any:
    prompt = "以下是普通话的句子。" if language == "zh" else None
    padded = np.pad(soxr.resample(samples, rate, 16_000), (0, 8_000))
    return whisper.transcribe(padded, language=language, beam_size=5, initial_prompt=prompt, word_timestamps=True)[0]


def first_audio(speaker: OnnxVoice, voice: str, clause: str) -> float:
    start = time.perf_counter()
    next(iter(say(speaker, clause, voice=voice)))
    return time.perf_counter() - start


def start_errors(
    chunks: list[Speech], segments: list[Any], rate: int, split: Callable[[str], list[str]]
) -> list[float]:
    """Seconds between our and Whisper's start of each word, where both wrote the same single words."""
    ours, offset = [], 0.0
    for chunk in chunks:
        ours += [(word.text, word.start + offset) for word in chunk.words]
        offset += len(chunk.samples) / rate
    theirs = [(word.word, word.start) for segment in segments for word in segment.words]
    mine = [(split(text), start) for text, start in ours if split(text)]
    other = [(split(text), start) for text, start in theirs if split(text)]
    if [text for text, _ in mine] != [text for text, _ in other]:
        return []
    return [abs(a - b) for (_, a), (_, b) in zip(mine, other, strict=True)]


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance."""
    row = list(range(len(hypothesis) + 1))
    for index, item in enumerate(reference):
        previous, row[0] = row[0], index + 1
        for column, other in enumerate(hypothesis):
            previous, row[column + 1] = (
                row[column + 1],
                min(row[column + 1] + 1, row[column] + 1, previous + (item != other)),
            )
    return row[-1]


def bootstrap(errors: list[int], lengths: list[int], *, rounds: int = 2000) -> tuple[float, float]:
    """95 % interval of the error rate over resampled sentences."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(errors), (rounds, len(errors)))
    rates = np.array(errors)[drawn].sum(axis=1) / np.array(lengths)[drawn].sum(axis=1)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower().replace("-", " "))


def _characters(text: str) -> list[str]:
    return re.findall(r"[\u4e00-\u9fff]", text)


if __name__ == "__main__":
    main()
