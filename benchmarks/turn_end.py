"""How well the end of a turn is told from a pause inside one: `python benchmarks/turn_end.py`.

The sentences of turn_end.toml are spoken by the bundle's voices in turn, whole and cut off behind three words of the
middle, heard by the bundle's transcriber as a live turn is at a pause, and judged by the text scorer and by the
language model. Reports, per language, how often a whole one is judged above a cut one (AUC, with a 95 % interval from
a bootstrap over sentences) and the silence after which `semantic_vad` (auto) would take each for a turn. What is cut
off may be a whole sentence as well ("Is there a pharmacy near here | that is open all night?"): 1.0 is out of reach.
The scores of `stepaudio.agent.wording` were fitted to these sentences.
"""

from __future__ import annotations

import argparse
import json
import random
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from stepaudio import load
from stepaudio.agent.turn import TurnConfig, TurnDetector, combine
from stepaudio.agent.wording import TextTurnScorer, end_of_turn, spoken_part
from stepaudio.audio.pcm import Samples
from stepaudio.audio.resample import resample
from stepaudio.speech.bundle import Bundle
from stepaudio.speech.roles import Word
from stepaudio.speech.say import say
from stepaudio.speech.transcribe import PartialTranscriber

SENTENCES = Path(__file__).with_suffix(".toml")
_RATE = 16_000
_MIDDLE = (0.25, 0.8)
_PIECES = 3
_TAIL = 0.1
"""Seconds of silence that a live turn has behind its last word when it is transcribed."""


@dataclass(frozen=True)
class Judged:
    """What was heard of a sentence, whole or cut off, and the scores of its end. `words` is None where nobody asked."""

    language: str
    sentence: str
    whole: bool
    heard: str
    text: float
    words: float | None

    @property
    def score(self) -> float:
        both = combine(score for score in (self.text, self.words) if score is not None)
        assert both is not None
        return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--json", type=Path, help="what was heard and judged, a line each")
    arguments = parser.parse_args()

    sentences = tomllib.loads(SENTENCES.read_text("utf-8"))
    tasks = [(language, number, text) for language, some in sentences.items() for number, text in enumerate(some)]
    with load(arguments.bundle) as bundle:
        judged = [each for task in track(tasks, "judging") for each in judge(bundle, *task)]
    if arguments.json is not None:
        lines = (json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in judged)
        arguments.json.write_text("".join(lines), "utf-8")
    for language in sentences:
        report(language, [each for each in judged if each.language == language])


def judge(bundle: Bundle, language: str, number: int, sentence: str) -> Iterator[Judged]:
    voices = [voice.name for voice in bundle.speaker.voices if voice.languages[0] == language]
    samples, words = spoken(bundle, sentence, voices[number % len(voices)])
    first, last = (share * len(samples) / _RATE for share in _MIDDLE)
    ends = [word.end for word in words[:-1] if first < word.end < last]
    pieces = random.Random(number).sample(ends, min(_PIECES, len(ends)))
    for end in (None, *pieces):
        transcriber = PartialTranscriber(bundle.transcriber)
        stretch = samples if end is None else samples[: round(end * _RATE)]
        transcriber.push(np.pad(stretch, (0, round(_TAIL * _RATE))))
        heard = transcriber.flush().text.strip()
        text = TextTurnScorer().score(None, heard, language)
        if text is not None:
            ends_sentence = bundle.responder.warm([], (), words=spoken_part(heard))
            yield Judged(
                language,
                sentence,
                end is None,
                heard,
                text,
                None if ends_sentence is None else end_of_turn(ends_sentence),
            )


def spoken(bundle: Bundle, sentence: str, voice: str) -> tuple[Samples, list[Word]]:
    """The sentence [T] at 16 kHz up to its last word, and its words."""
    chunks = list(say(bundle.speaker, sentence, voice=voice))
    words, start = [], 0.0
    for chunk in chunks:
        words += [Word(word.text, start + word.start, start + word.end) for word in chunk.words]
        start += len(chunk.samples) / bundle.speaker.rate
    samples = resample(np.concatenate([chunk.samples for chunk in chunks]), bundle.speaker.rate, _RATE)
    return samples[: round(words[-1].end * _RATE)], words


def report(language: str, judged: list[Judged]) -> None:
    whole, cut = ([each for each in judged if each.whole is kind] for kind in (True, False))
    print(f"{language}: {len(whole)} whole, {len(cut)} cut off")
    print(f"  AUC: text {auc(judged, lambda each: each.text)}; both {auc(judged, lambda each: each.score)}")
    if all(each.words is not None for each in judged):
        print(f"       language model {auc(judged, lambda each: each.words or 0.0)}")
    detector = TurnDetector(TurnConfig.semantic_vad())
    for name, some in (("whole", whole), ("cut off", cut)):
        delays = []
        for each in some:
            detector.score = each.score
            delays.append(detector.delay)
        quantiles = ", ".join(
            f"{share:.0%} {np.quantile(delays, share):.2f} s" for share in (0.1, 0.25, 0.5, 0.75, 0.9)
        )
        print(f"  silence before the end, {name}: {quantiles}")


def auc(judged: list[Judged], score: Callable[[Judged], float], *, rounds: int = 1000) -> str:
    """With a 95 % interval from a bootstrap over sentences."""
    sentences = sorted({each.sentence for each in judged})
    index = np.array([sentences.index(each.sentence) for each in judged])
    scores = np.array([score(each) for each in judged])
    whole = np.array([each.whole for each in judged])
    # How often a whole one is above a cut one, ties half, where sentences count as often as they were drawn.
    above_WC = np.sign(scores[whole][:, None] - scores[~whole]) / 2 + 0.5

    def of(counts: np.ndarray) -> float:
        weights_WC = counts[index[whole]][:, None] * counts[index[~whole]]
        return float((weights_WC * above_WC).sum() / weights_WC.sum())

    rng = np.random.default_rng(0)
    drawn = [
        of(np.bincount(rng.integers(0, len(sentences), len(sentences)), minlength=len(sentences)))
        for _ in range(rounds)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{of(np.ones(len(sentences))):.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
