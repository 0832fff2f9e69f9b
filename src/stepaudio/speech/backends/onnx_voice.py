"""The speaker of the embedded bundles: hibari's fast English voice and Kokoro's voices, on onnxruntime.

A clause is read (`stepaudio.speech.reading`), pronounced (`phonemes`), synthesised, and cut to its words: the models
tell how long each phoneme lasts, so word times are the model's own, to the 25 ms frame.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import TextError
from stepaudio.speech.backends.hibari import Hibari
from stepaudio.speech.backends.kokoro import Kokoro
from stepaudio.speech.backends.phonemes import PAUSE, Phonemizer, Pronunciation
from stepaudio.speech.reading import script
from stepaudio.speech.roles import Samples, Speech, Voice, Word
from stepaudio.speech.voices import check_speed, find_voice

HEART = Voice("heart", ("en",), "American woman; fast (hibari)", "Apache-2.0")
_KOKORO_VOICES = {
    "af": (("en",), "American woman"),
    "am": (("en",), "American man"),
    "bf": (("en",), "British woman"),
    "bm": (("en",), "British man"),
    "zf": (("zh", "en"), "Mandarin woman"),
    "zm": (("zh", "en"), "Mandarin man"),
}
_LANGUAGES = {"en": "English", "zh": "Chinese"}
_REMEDY = "`stepaudio doctor` says what is missing and `stepaudio pull` fetches it"

_EARLY = 0.05
"""Seconds by which the sound of a phoneme comes before the place its duration gives it (measured for both models)."""
_LEAD = 0.01
"""Seconds kept before the first sound: enough for its onset, and speech starts at once."""
_STEP = 240
_AUDIBLE = 0.03
"""A stretch of `_STEP` samples (10 ms) is heard when it is above this part of the loudest."""
_PAUSES = {".": 0.35, "!": 0.35, "?": 0.35, "…": 0.4, ";": 0.25, ":": 0.25, ",": 0.18, "—": 0.2}
_NO_PAUSE = 0.05
_FADE = 0.005
_LEVEL = 0.08
"""Root mean square of the sounding parts of every clause, so that voices and clauses are equally loud."""
_PEAK = 0.95


class OnnxVoice:
    """A `Speaker` at 24 kHz. Without Kokoro's files it still speaks English, with the voice "heart".

    `hibari` is that voice's model (the package's own when left out). `kokoro` is the ONNX model of the other voices,
    `vocab` its phoneme table and `voices` the folder of its voice vectors; without any of them those voices are not
    listed. `default` names the voice per language. Chinese voices also read the English in a Chinese text.
    Raises MissingError when a package is missing and BackendError when a model does not load.
    """

    rate = 24_000

    def __init__(
        self,
        *,
        hibari: Path | None = None,
        kokoro: Path | None = None,
        vocab: Path | None = None,
        voices: Path | None = None,
        threads: int = 2,
        default: Mapping[str, str] | None = None,
    ) -> None:
        self._hibari = Hibari(model=hibari, threads=threads)
        self._kokoro: Kokoro | None = None
        if kokoro and vocab and voices and kokoro.is_file() and vocab.is_file() and any(voices.glob("*.bin")):
            self._kokoro = Kokoro(model=kokoro, vocab=vocab, voices=voices, threads=threads)
        self.voices = (HEART, *_voices(self._kokoro))
        self._named = {voice.name: voice for voice in self.voices}
        self._default = {"en": "heart", "zh": "zf_xiaoxiao", **(default or {})}
        self._phonemes = Phonemizer()
        self._phonemes.load("en")
        if self.default_voice("zh"):
            # Chinese takes a second or two to load; English need not wait for it.
            threading.Thread(target=self._phonemes.load, args=("zh",), name="stepaudio-zh", daemon=True).start()

    def default_voice(self, language: str) -> Voice | None:
        named = self._named.get(self._default.get(language, ""))
        return named or next((voice for voice in self.voices if language in voice.languages), None)

    def speak(self, clause: str, *, voice: str, speed: float = 1.0, cancel: Event | None = None) -> Iterator[Speech]:
        """Speak one clause; one chunk unless it is very long.

        Raises NotFoundError for an unknown voice, TextError for a text that this voice cannot read, InputError for a
        speed out of range, Cancelled soon after `cancel` is set.
        """
        known = find_voice(self, voice)
        check_speed(speed)
        language = script(clause, _LANGUAGES) or known.languages[0]
        if language not in known.languages:
            raise TextError(self._unreadable(clause, known, language), param="text")
        engine = self._hibari if known is HEART or self._kokoro is None else self._kokoro
        said = self._phonemes(clause, language, british=voice.startswith("b"))
        if not said.phonemes:
            raise TextError(f"there is nothing to say in {clause[:40]!r}", param="text")
        for part in split(said, engine.max_phonemes):
            yield _synthesise(engine, part, voice, speed, cancel)

    def close(self) -> None:
        """Nothing to end: sessions go with the object."""

    def _unreadable(self, clause: str, voice: Voice, language: str) -> str:
        text = f"the voice {voice.name!r} cannot read {clause[:40]!r}"
        other = self.default_voice(language)
        if other:
            return f"{text}; {other.name!r} can"
        if language in _LANGUAGES:
            return f"{text} and no {_LANGUAGES[language]} voice is here; {_REMEDY}"
        return f"{text}: the voices read English and Chinese"


def _voices(kokoro: Kokoro | None) -> tuple[Voice, ...]:
    """Kokoro's voices in the languages that have a grapheme-to-phoneme model here."""
    names = [name for name in (kokoro.voices if kokoro else ()) if name[:2] in _KOKORO_VOICES]
    return tuple(Voice(name, *_KOKORO_VOICES[name[:2]], "Apache-2.0") for name in names)


def split(said: Pronunciation, limit: int) -> Iterator[Pronunciation]:
    """Parts of at most `limit` phonemes, cut between words, after punctuation where there is any."""
    start = 0
    while start < len(said.phonemes):
        end = min(start + limit, len(said.phonemes))
        if end < len(said.phonemes):
            window = said.phonemes[start:end]
            mark = max(window.rfind(symbol) for symbol in _PAUSES)
            cut = mark if mark > limit // 3 else window.rfind(" ")
            end = start + cut + 1 if cut > 0 else end
        first = said.owners[start] if start else 0
        last = said.owners[end] if end < len(said.owners) else len(said.words)
        yield Pronunciation(
            said.words[first : max(last, first + 1)],
            said.phonemes[start:end],
            tuple(min(owner, max(last, first + 1) - 1) - first for owner in said.owners[start:end]),
        )
        start = end


def _synthesise(engine: Hibari | Kokoro, said: Pronunciation, voice: str, speed: float, cancel: Event | None) -> Speech:
    """Speak phonemes; the silence around them is cut to a short lead and the pause that the punctuation asks for."""
    known = [(symbol, owner) for symbol, owner in zip(said.phonemes, said.owners, strict=True) if symbol in engine.ids]
    if not PAUSE.match(said.phonemes[-1]):
        # Without a mark at its end the last vowel is drawn out; the pause that the mark brings is cut again.
        known.append((",", len(said.words) - 1))
    ids = [0, *(engine.ids[symbol] for symbol, _ in known), 0]
    samples, frames = engine.synthesise(ids, voice=voice, speed=speed, cancel=cancel)
    heard = _heard(samples)
    times = _times([(owner, bool(PAUSE.match(symbol))) for symbol, owner in known], frames, samples, heard)
    if not times:  # the marks at the end of a clause that was split
        return Speech(np.zeros(0, np.float32), "".join(said.words))
    begin, end = min(start for start, _ in times.values()), max(end for _, end in times.values())
    late = _STEP * int(heard[begin // _STEP :].argmax())
    if begin + late >= end:  # a short word, spoken fast, is heard behind the place its durations give it
        times = {owner: (start + late, end + late) for owner, (start, end) in times.items()}
        begin, end, late = begin + late, end + late, 0
    begin = max(0, begin + late - int(_LEAD * OnnxVoice.rate))
    stop = end + int(_pause(said.phonemes) / speed * OnnxVoice.rate)
    return Speech(_shape(samples, begin, stop), "".join(said.words), _words(said.words, times, begin))


def _times(
    phonemes: list[tuple[int, bool]], frames: NDArray[np.int64], samples: Samples, heard: NDArray[np.bool_]
) -> dict[int, tuple[int, int]]:
    """(start, end) in samples of each word that sounds, from (word, is it a pause) and frames of each phoneme.

    `frames` also counts the pads at both ends. The models sound a little before their durations say, and the durations
    of phonemes before a pause hold part of its silence, so words end where they are last heard.
    """
    edges = np.cumsum(frames) * (len(samples) // int(frames.sum())) - int(_EARLY * OnnxVoice.rate)
    edges = np.clip(edges, 0, len(samples))
    times: dict[int, tuple[int, int]] = {}
    for index, (owner, is_pause) in enumerate(phonemes):
        if not is_pause:
            start, _ = times.get(owner, (int(edges[index]), 0))
            times[owner] = (start, int(edges[index + 1]))
    for owner, (start, end) in times.items():
        sounding = np.flatnonzero(heard[start // _STEP : -(-end // _STEP)])
        if len(sounding):
            times[owner] = (start, min(end, (start // _STEP + int(sounding[-1]) + 1) * _STEP))
    return times


def _heard(samples: Samples) -> NDArray[np.bool_]:
    """Whether each `_STEP` samples are heard."""
    envelope = _envelope(samples)
    heard: NDArray[np.bool_] = envelope > envelope.max() * _AUDIBLE
    return heard


def _envelope(samples: Samples) -> NDArray[np.float32]:
    """Root mean square of each `_STEP` samples."""
    whole = samples[: len(samples) // _STEP * _STEP].reshape(-1, _STEP)
    envelope: NDArray[np.float32] = np.sqrt(np.square(whole).mean(axis=1))
    return envelope


def _pause(phonemes: str) -> float:
    """Seconds of silence after a clause."""
    last = phonemes.rstrip('”") ')[-1:]
    return _PAUSES.get(last, _NO_PAUSE)


def _shape(samples: Samples, begin: int, stop: int) -> Samples:
    """Samples from begin to stop, filled up with silence, with a short fade at both ends so that joins do not click."""
    cut = np.asarray(samples[begin:stop], np.float32).copy()
    ramp = np.linspace(0, 1, min(int(_FADE * OnnxVoice.rate), len(cut)), dtype=np.float32)
    cut[: len(ramp)] *= ramp
    cut[len(cut) - len(ramp) :] *= ramp[::-1]
    return np.pad(cut * _gain(cut), (0, max(0, stop - begin - len(cut))))


def _gain(samples: Samples) -> np.float32:
    """The factor that brings the sounding parts of a clause to the common level without clipping."""
    envelope = _envelope(samples)
    loud = envelope[envelope > envelope.max() / 10]
    if not len(loud):
        return np.float32(1)
    return np.float32(min(_LEVEL / np.sqrt(np.square(loud).mean()), _PEAK / np.abs(samples).max()))


def _words(words: tuple[str, ...], times: Mapping[int, tuple[int, int]], begin: int) -> tuple[Word, ...]:
    """The written words with their times; a word without a sound stands, without length, where the last one ended."""
    timed, clock = [], 0.0
    for index, word in enumerate(words):
        start, end = times.get(index, (None, None))
        if start is None or end is None:
            timed.append(Word(word.strip(), clock, clock))
            continue
        clock = (end - begin) / OnnxVoice.rate
        timed.append(Word(word.strip(), max(0, start - begin) / OnnxVoice.rate, clock))
    return tuple(timed)
