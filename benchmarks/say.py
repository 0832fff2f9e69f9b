"""How well and how fast the embedded voices speak: `python benchmarks/say.py`.

Twenty sentences per language (evals/tts, as written and as said) are spoken and transcribed again by
Whisper-base with beam 5. Reports word or character error rate with a bootstrap interval over sentences, the real-time
factor in wall and processor time, the time to the first audio of a typical first clause, and how far the edges of words
lie from the silences that are heard between them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from misaki.zh_normalization.char_convert import tranditional_to_simplified

from stepaudio import load
from stepaudio.eval.metrics.errors import count_errors
from stepaudio.eval.metrics.intervals import ratio
from stepaudio.speech.reading import spoken
from stepaudio.speech.roles import Speaker, Speech
from stepaudio.speech.say import say
from stepaudio.speech.weights import Store, catalogue

SENTENCES = Path(__file__).parent.parent / "evals" / "tts"
FIRST_CLAUSES = {"en": "Sure, I can help", "zh": "今天北京的天气"}
_PAUSED = re.compile("[,;，；]")
VOICES = {
    **dict.fromkeys(("heart", "af_heart"), "en"),
    **dict.fromkeys(("zf_xiaoxiao", "zf_xiaobei", "zf_xiaoni", "zf_xiaoyi"), "zh"),
    **dict.fromkeys(("zm_yunjian", "zm_yunxi", "zm_yunxia", "zm_yunyang"), "zh"),
}


@dataclass
class Result:
    """Error rates are fractions, times are seconds."""

    voice: str
    sentences: int
    units: int
    error_rate: float
    interval: tuple[float | None, float | None]
    real_time_factor: float
    processor_factor: float
    first_audio_p50: float
    word_edge_error_p50: float
    word_edge_error_max: float
    word_edges: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--voice", action="append", choices=VOICES, help="only this voice")
    parser.add_argument("--out", type=Path, help="folder for the spoken sentences")
    arguments = parser.parse_args()

    from faster_whisper import WhisperModel

    speaker = load(arguments.bundle).speaker
    judge = Store().verified(catalogue()["whisper-base"])
    whisper = WhisperModel(str(judge), compute_type="int8", cpu_threads=2)
    for voice, language in VOICES.items():
        if arguments.voice and voice not in arguments.voice:
            continue
        result = measure(speaker, whisper, voice, language, arguments.out)
        print(json.dumps(asdict(result), ensure_ascii=False), flush=True)


def measure(speaker: Speaker, whisper: Any, voice: str, language: str, out: Path | None) -> Result:
    for _ in say(speaker, FIRST_CLAUSES[language], voice=voice):  # warm: lexicons and memory pools
        pass
    split = _words if language == "en" else _characters
    errors, edges = [], []
    busy = worked = audible = 0.0
    for number, (written, said) in enumerate(sentences(language)):
        start, ran = time.perf_counter(), time.process_time()
        chunks = list(say(speaker, written, voice=voice))
        busy += time.perf_counter() - start
        worked += time.process_time() - ran
        samples = np.concatenate([chunk.samples for chunk in chunks])
        audible += len(samples) / speaker.rate
        if out is not None:
            import soundfile

            out.mkdir(parents=True, exist_ok=True)
            soundfile.write(out / f"{voice}-{number:02}.wav", samples, speaker.rate)
        heard = spoken(transcribe(whisper, samples, speaker.rate, language), language)
        errors.append(count_errors(split(said), split(heard)))
        # `say` ends the first clause at a comma; here the whole sentence is one clause.
        for chunk in speaker.speak(written, voice=voice) if _PAUSED.search(written) else ():
            edges += edge_errors(chunk, speaker.rate)
        if errors[-1].total:
            print(f"  {voice}: {written} -> {heard}", flush=True)
    rate = ratio([each.total for each in errors], [each.length for each in errors])
    return Result(
        voice,
        len(errors),
        sum(each.length for each in errors),
        rate.value,
        (rate.low, rate.high),
        busy / audible,
        worked / audible,
        statistics.median(first_audio(speaker, voice, FIRST_CLAUSES[language]) for _ in range(7)),
        float(np.median(edges)),
        max(edges),
        len(edges),
    )


def sentences(language: str) -> list[tuple[str, str]]:
    """(as written, as said) of each line; where they are the same the second column is left out."""
    lines = (SENTENCES / f"{language}.tsv").read_text("utf-8").splitlines()
    columns = [line.rstrip().split("\t") for line in lines if line.strip()]
    return [(column[0], column[-1]) for column in columns]


def transcribe(whisper: Any, samples: Any, rate: int, language: str) -> str:
    """One pass over one window: with time stamps Whisper goes on after the sentence and repeats it."""
    prompt = "以下是普通话的句子。" if language == "zh" else None
    segments, _ = whisper.transcribe(
        np.pad(soxr.resample(samples, rate, 16_000), 4_000),
        language=language,
        beam_size=5,
        initial_prompt=prompt,
        without_timestamps=True,
    )
    text = "".join(segment.text for segment in segments)
    # Whisper writes some sentences in traditional characters.
    return str(tranditional_to_simplified(text)) if language == "zh" else text


def first_audio(speaker: Speaker, voice: str, clause: str) -> float:
    start = time.perf_counter()
    next(iter(say(speaker, clause, voice=voice)))
    return time.perf_counter() - start


def edge_errors(chunk: Speech, rate: int, step: int = 120) -> list[float]:
    """Seconds between the edges of words around a pause inside the clause and the edges of the silence there."""
    whole = chunk.samples[: len(chunk.samples) // step * step].reshape(-1, step)
    level = np.sqrt(np.square(whole).mean(axis=1))
    quiet = level < level.max() * 0.03
    errors = []
    for word, following in pairwise(chunk.words):
        if not _PAUSED.search(word.text[-1:]):
            continue
        middle = int((word.end + following.start) / 2 * rate / step)
        if not quiet[middle : middle + 1].all():
            continue  # the voice made no pause here
        first = middle - int(np.argmin(quiet[middle::-1])) + 1
        last = middle + int(np.argmin(quiet[middle:]))
        errors += [abs(first * step / rate - word.end), abs(last * step / rate - following.start)]
    return errors


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower().replace("-", " "))


def _characters(text: str) -> list[str]:
    return re.findall(r"[\u4e00-\u9fff]", text)


if __name__ == "__main__":
    main()
