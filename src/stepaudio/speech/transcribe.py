"""Speech to text for recordings of any length, and for a turn that is still being spoken.

`transcribe` cuts audio at pauses and yields a `Segment` for each stretch, in constant memory. `join` puts segments
together again, `to_text`, `to_srt`, `to_vtt` and `to_json` write them. `PartialTranscriber` follows a live turn.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import numpy as np

from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import SileroVad, check_samples, segments
from stepaudio.errors import Cancelled
from stepaudio.speech.roles import Transcriber, Transcript, Word

SURE = 0.5
"""Below this confidence a language that was taken over from earlier in the recording is detected again."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What was said from `start` to `end` of a recording, in seconds. Its words are timed from `start`."""

    start: float
    end: float
    transcript: Transcript


def transcribe(
    transcriber: Transcriber,
    blocks: Iterable[Samples] | Samples,
    *,
    vad: SileroVad,
    language: str | None = None,
    prompt: str | None = None,
    words: bool = False,
    cancel: Event | None = None,
) -> Iterator[Segment]:
    """Transcribe a recording [T], or a stream of blocks of it, segment by segment as it is read.

    A language that is not given is detected in the first segment and kept; a segment that is hard to understand in it
    is detected again by itself. Stretches in which nothing is understood give no segment. Raises InputError for
    unusable samples, Cancelled.
    """
    if isinstance(blocks, np.ndarray):
        blocks = np.split(blocks, range(transcriber.rate, len(blocks), transcriber.rate))  # so that cancel is seen
    known = language
    for stretch in segments(_until(blocks, cancel), vad, max_seconds=transcriber.max_seconds):
        heard = transcriber.transcribe(stretch.samples, language=known, prompt=prompt, words=words, cancel=cancel)
        if language is None and known is not None and heard.confidence < SURE:
            again = transcriber.transcribe(stretch.samples, prompt=prompt, words=words, cancel=cancel)
            heard = max(heard, again, key=lambda transcript: transcript.confidence)
        if heard.text:
            known = heard.language
            yield Segment(stretch.start, stretch.end, heard)


def _until(blocks: Iterable[Samples], cancel: Event | None) -> Iterator[Samples]:
    for block in blocks:
        if cancel is not None and cancel.is_set():
            raise Cancelled("transcription was cancelled")
        yield block


def join(segments: Iterable[Segment]) -> Transcript:
    """One transcript of them all. Its language is the one spoken longest, its duration reaches from zero to the end of
    the last segment, its words are timed from zero."""
    segments = list(segments)
    end = segments[-1].end if segments else 0.0
    text = ""
    words: list[Word] = []
    seconds: dict[str, float] = {}
    letters, confidence = 0, 0.0
    for segment in (segment for segment in segments if segment.transcript.text):
        heard = segment.transcript
        text = join_text(text, heard.text)
        words += [replace(word, start=word.start + segment.start, end=word.end + segment.start) for word in heard.words]
        seconds[heard.language] = seconds.get(heard.language, 0.0) + segment.end - segment.start
        letters += len(heard.text)
        confidence += heard.confidence * len(heard.text)
    if not text:
        return Transcript("", segments[0].transcript.language if segments else "", end)
    language = max(seconds, key=lambda code: seconds[code])
    return Transcript(text, language, end, confidence / letters, tuple(words))


# ---------------------------------------------------------------- files


def to_text(segments: Iterable[Segment]) -> str:
    """One line for each segment."""
    return "".join(f"{_one_line(segment)}\n" for segment in segments)


def to_srt(segments: Iterable[Segment]) -> str:
    """SubRip subtitles, one cue for each segment."""
    cues = (
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{_one_line(segment)}\n"
        for number, segment in enumerate(segments, start=1)
    )
    return "\n".join(cues)


def to_vtt(segments: Iterable[Segment]) -> str:
    """WebVTT subtitles (https://www.w3.org/TR/webvtt1/), one cue for each segment."""
    cues = (
        f"\n{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n"
        f"{html.escape(_one_line(segment), quote=False)}\n"
        for segment in segments
    )
    return "WEBVTT\n" + "".join(cues)


def to_json(segments: Iterable[Segment]) -> dict[str, Any]:
    """Everything that is known, much like OpenAI's verbose_json; times are seconds from the recording's start."""
    segments = list(segments)
    whole = join(segments)
    return {
        "text": whole.text,
        "language": whole.language,
        "duration": whole.duration,
        "confidence": whole.confidence,
        "segments": [
            {
                "id": number,
                "start": segment.start,
                "end": segment.end,
                "text": segment.transcript.text,
                "language": segment.transcript.language,
                "confidence": segment.transcript.confidence,
            }
            for number, segment in enumerate(segments)
        ],
        "words": [{"word": word.text, "start": word.start, "end": word.end} for word in whole.words],
    }


def _one_line(segment: Segment) -> str:
    """A blank line would end a subtitle."""
    return " ".join(segment.transcript.text.split())


def _clock(seconds: float, point: str) -> str:
    """00:00:00,000; the hours grow past 99."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


# ---------------------------------------------------------------- text

_IDEOGRAPH = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Han
_WIDE = rf"{_IDEOGRAPH}\u3000-\u303f\uff00-\uffef"  # and their punctuation
_FULL_WIDTH = str.maketrans(",.?!:;", "，。？！：；")


def tidy(text: str) -> str:
    """Single spaces, none between Chinese or Japanese characters, and their punctuation in full width."""
    text = " ".join(text.split())
    text = re.sub(rf"(?<=[{_WIDE}]) (?=[{_WIDE}])", "", text)
    text = re.sub(rf"(?<=[{_IDEOGRAPH}])[,.?!:;]", lambda mark: mark[0].translate(_FULL_WIDTH), text)
    return re.sub(rf"(?<=[{_WIDE}]) (?=[，。？！：；])|(?<=[，。？！：；、]) ", "", text)


def join_text(first: str, second: str) -> str:
    """Two pieces of running text in one: with a space, but for Chinese and Japanese."""
    if not first or not second or re.search(rf"[{_WIDE}]$", first) or re.match(rf"[{_WIDE}]", second):
        return first + second
    return f"{first} {second}"


def continues_word(word: str, piece: str) -> bool:
    """Whether a piece of running text belongs to the word before it: without a space between them, and not Chinese or
    Japanese. Punctuation is part of the word that it follows."""
    if not re.search(r"\w", piece):
        return True
    return not (piece[0].isspace() or re.match(rf"[{_WIDE}]", piece) or re.search(rf"[{_WIDE}]$", word))


# ---------------------------------------------------------------- a turn that is still going on

_UNIT = re.compile(rf"\s*(?:[{_WIDE}]|[^\s{_WIDE}]+)")  # what a partial transcript grows by


class PartialTranscriber:
    """The transcript of a turn while it is spoken.

    Each partial hears all of the turn again, so it costs as much as a transcript. What two partials in a row agree on
    from the start does not change any more in later ones (local agreement; Liu et al. 2020, Macháček et al. 2023); the
    final transcript of `flush` is free to be better. A turn that outgrows `max_seconds` is settled piece by piece. For
    one thread at a time.
    """

    def __init__(self, transcriber: Transcriber, *, language: str | None = None, prompt: str | None = None) -> None:
        self._transcriber = transcriber
        self._language, self._prompt = language, prompt
        self.reset()

    def reset(self) -> None:
        """Forget the turn."""
        self._blocks: list[Samples] = []
        self._settled: list[Segment] = []  # what was heard before these blocks
        self._heard: Transcript | None = None  # of the whole turn, until more of it comes
        self._last: list[str] = []
        self._agreed: list[str] = []

    def push(self, samples: Samples) -> None:
        """Add samples [T]. Raises InputError."""
        if not len(check_samples(samples)):
            return
        self._blocks.append(samples.copy())  # the caller may fill the array again
        self._heard = None

    def partial(self, cancel: Event | None = None) -> Transcript:
        """What has been said so far. Raises Cancelled."""
        heard = self._hear(cancel)
        units = _UNIT.findall(heard.text)
        kept = len(self._agreed)
        units = self._agreed + units[kept:]
        same = [new == old for new, old in zip(units, self._last, strict=False)]
        self._agreed = units[: max(kept, same.index(False) if False in same else len(same))]
        self._last = units
        return replace(heard, text="".join(units))

    def flush(self, cancel: Event | None = None) -> Transcript:
        """The final transcript of the turn. Resets, unless it is cancelled."""
        heard = self._hear(cancel)
        self.reset()
        return heard

    def _hear(self, cancel: Event | None) -> Transcript:
        if self._heard is None:
            rate, longest = self._transcriber.rate, int(self._transcriber.max_seconds * self._transcriber.rate)
            audio = np.concatenate([np.zeros(0, dtype=np.float32), *self._blocks])
            while len(audio) > longest:
                cut = _quietest(audio[:longest], rate)
                self._settled.append(self._segment(audio[:cut], cancel))
                audio = audio[cut:]
                self._blocks = [audio]
            self._heard = join([*self._settled, self._segment(audio, cancel)])
        return self._heard

    def _segment(self, audio: Samples, cancel: Event | None) -> Segment:
        heard = self._transcriber.transcribe(audio, language=self._language, prompt=self._prompt, cancel=cancel)
        start = self._settled[-1].end if self._settled else 0.0
        return Segment(start, start + heard.duration, heard)


def _quietest(audio: Samples, rate: int) -> int:
    """Where to cut audio [T]: the middle of its quietest 200 ms, in its second half."""
    size = rate // 5
    half = audio[len(audio) // 2 :]
    energy = np.square(half[: len(half) // size * size]).reshape(-1, size).sum(axis=1)
    return len(audio) - len(half) + int(energy.argmin()) * size + size // 2
