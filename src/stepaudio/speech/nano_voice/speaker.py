"""Say and clone with nano-voice, sound leaving while codes are still being drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

from stepaudio.decoder.chunks import Voice as Timbre
from stepaudio.decoder.flow import Sampling
from stepaudio.errors import InputError, TextError
from stepaudio.speech.backends.onnx_voice import split
from stepaudio.speech.backends.phonemes import PAUSE, Phonemizer, Pronunciation
from stepaudio.speech.nano_voice.decoder import PACKAGED, SAMPLING, NanoDecoder
from stepaudio.speech.nano_voice.language import SPEAK, NanoLm
from stepaudio.speech.roles import Reference, Samples, Speaker, Speech, Voice
from stepaudio.speech.voices import check_speed, find_voice
from stepaudio.tokenizer.interleave import interleave

CLONE = "clone"
"""What the voice of a clip is called."""
SPEEDS = ("very slow", "slow", "normal", "fast", "very fast")
"""Labels at the head of a text, from the slowest."""
NORMAL = SPEEDS.index("normal")
_GROUP_SECONDS = 0.12
_MOST_PHONEMES = 120
"""Of one go: the language model was taught on sentences."""
_STRESS = "ˈˌ"


class NanoSpeaker:
    """A `Cloner` and `StyledSpeaker` over nano-voice; it reads English.

    `folder` holds its weights, the package's own if left out. `steps`, `guidance` (which doubles the cost of a step)
    and `temperature` are the flow's; with a `seed` the same clause always sounds the same. Raises MissingError and
    InputError.
    """

    def __init__(
        self,
        folder: Path | str = PACKAGED,
        *,
        steps: int = SAMPLING.steps,
        guidance: float = SAMPLING.guidance,
        temperature: float = SAMPLING.temperature,
        seed: int | None = 0,
    ) -> None:
        self.decoder = NanoDecoder(Path(folder), Sampling(steps, guidance, temperature))
        self._lm = NanoLm.load(Path(folder))
        self._params = replace(SPEAK, seed=seed)
        self._phonemes = Phonemizer()
        self._phonemes.load("en")
        self.rate = self.decoder.rate
        self.voices = self.decoder.named

    def default_voice(self, language: str) -> Voice | None:
        return next((voice for voice in self.voices if language in voice.languages), None)

    def speak(self, clause: str, *, voice: str, speed: float = 1.0, cancel: Event | None = None) -> Iterator[Speech]:
        """See `Speaker.speak`; chunks come as they are made."""
        return self.say(clause, self.decoder.voice(find_voice(self, voice).name), NORMAL, speed, cancel)

    def styled(self, style: str) -> Speaker:
        """At one of five learned speeds, `SPEEDS`. Raises InputError for another style."""
        return _View(self, None, _level(style))

    def cloned(self, reference: Reference) -> Speaker:
        return _View(self, self.decoder.clone(reference.samples, reference.rate), NORMAL)

    def say(self, clause: str, timbre: Timbre, level: int, speed: float, cancel: Event | None) -> Iterator[Speech]:
        """Say a clause in a timbre, at a learned speed (`level` in `SPEEDS`), played `speed` times as fast."""
        check_speed(speed)
        said = self._phonemes(clause, "en")
        if not said.phonemes:
            raise TextError(f"there is nothing to say in {clause[:40]!r}", param="text")
        for part in split(said, _MOST_PHONEMES):
            yield from self._sound(part, timbre, level, speed, cancel)

    def _sound(
        self, said: Pronunciation, timbre: Timbre, level: int, speed: float, cancel: Event | None
    ) -> Iterator[Speech]:
        """Sound as its codes are drawn, each chunk with the text of the words that it completes or begins."""
        share = _TextShare(said)
        stream = self.decoder.stream(timbre, speed=speed)
        seconds = 0.0
        for codes in self._lm.speak(share.words, speed=level, params=self._params, cancel=cancel):
            share.drawn(codes.word)
            samples: Samples = stream.push(interleave(codes.linguistic, codes.semantic))
            if len(samples):
                seconds += len(samples) / self.rate * speed
                yield Speech(samples, share.take(round(seconds / _GROUP_SECONDS)))
        yield Speech(stream.flush(), share.rest())

    def close(self) -> None:
        self._lm.close()


class _View:
    """A speaker with the one voice of a clip, or its own voices, at one of the learned speeds."""

    def __init__(self, speaker: NanoSpeaker, clip: Timbre | None, level: int) -> None:
        self.speaker, self.clip, self.level = speaker, clip, level
        self.rate = speaker.rate
        self.voices = speaker.voices if clip is None else (Voice(CLONE, ("en",)),)

    def default_voice(self, language: str) -> Voice | None:
        return next((voice for voice in self.voices if language in voice.languages), None)

    def speak(self, clause: str, *, voice: str, speed: float = 1.0, cancel: Event | None = None) -> Iterator[Speech]:
        name = find_voice(self, voice).name
        timbre = self.speaker.decoder.voice(name) if self.clip is None else self.clip
        return self.speaker.say(clause, timbre, self.level, speed, cancel)

    def styled(self, style: str) -> Speaker:
        return _View(self.speaker, self.clip, _level(style))

    def close(self) -> None:
        """The speaker it is a view of stays open."""


def _level(style: str) -> int:
    wanted = style.strip().lower()
    if wanted not in SPEEDS:
        raise InputError(f"nano-voice knows the styles {', '.join(SPEEDS)}, not {style!r}", param="style")
    return SPEEDS.index(wanted)


class _TextShare:
    """The words of a clause for the language model, and its text for the sound that they become."""

    def __init__(self, said: Pronunciation) -> None:
        self._text = "".join(said.words)
        self.words: list[str] = []
        self._ends: list[int] = []  # where each word ends in the text
        ends = [sum(map(len, said.words[: owner + 1])) for owner in range(len(said.words))]
        begun = False
        for symbol, owner in zip(said.phonemes, said.owners, strict=True):
            if PAUSE.match(symbol):
                begun = False
                continue
            if not begun:
                self.words.append("")
                self._ends.append(0)
            self.words[-1] += symbol.strip(_STRESS)
            self._ends[-1] = ends[owner]
            begun = True
        self._given = 0
        self._groups: list[int] = []  # for each that was drawn, the word that sounds as it begins

    def drawn(self, word: int) -> None:
        """One more group has been drawn, in which a word begins or goes on."""
        self._groups.append(min(word, len(self._ends) - 1))

    def take(self, groups: int) -> str:
        """The text of the words in the first `groups` that was not given yet."""
        end = self._ends[self._groups[min(groups, len(self._groups)) - 1]] if groups else 0
        said, self._given = self._text[self._given : end], max(self._given, end)
        return said

    def rest(self) -> str:
        said, self._given = self._text[self._given :], len(self._text)
        return said
