"""Say, clone and edit with a Step-Audio speech model, sound leaving while the model still writes tokens."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

import numpy as np

from stepaudio.audio.resample import resample
from stepaudio.decoder import chunks
from stepaudio.errors import AudioError, BackendError, TextError
from stepaudio.lm.generate import SamplingParams
from stepaudio.lm.grammar import GROUP, AudioGrammar
from stepaudio.lm.prompts import HUM, RAP, leading_tag
from stepaudio.speech.reading import script
from stepaudio.speech.roles import Edit, Reference, Samples, Speaker, Speech, Voice
from stepaudio.speech.step_audio import voices as folders
from stepaudio.speech.step_audio.decoder import SpeechDecoder
from stepaudio.speech.step_audio.model import RATE, Quantization, StepAudioModel
from stepaudio.speech.voices import check_speed, find_voice
from stepaudio.tokenizer.trim import trim_silence

CLONE = "clone"
"""What the voice of a clip is called."""
_DECODER, _MUSIC = "CosyVoice-300M-25Hz", "CosyVoice-300M-25Hz-Music"
_SUNG = (RAP, HUM)
_SECONDS_PER_CHARACTER = {"zh": 0.25, "ja": 0.2, "ko": 0.25}
_SECONDS_PER_LETTER = 0.07
_SECONDS_PER_GROUP = 0.12
_LONGEST = 4.0
"""A model that has lost its way goes on for ever; nobody speaks this many times slower than usual."""
_LOUDEST_CLIP = 0.6


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A clip as the language model and each decoder it was needed by know it."""

    reference: Reference
    samples: Samples  # [T] at 16 kHz, trimmed
    ids: list[int]
    decoded: dict[str, chunks.Voice] = field(default_factory=dict)


class StepAudioSpeaker:
    """A `Cloner` over a model of the released layout; the voices are its own, or clips.

    `model` is the released folder, `tokenizer` that of Step-Audio-Tokenizer, `wording` the `prompts.toml` of the
    checkpoint, `voices` a folder of voices (see `step_audio.voices`). `steps` of the flow cost time and buy quality.
    Raises MissingError and InputError.
    """

    def __init__(
        self,
        model: Path | str,
        tokenizer: Path | str,
        *,
        wording: Path | str | None = None,
        voices: Path | str | None = None,
        languages: Sequence[str] = ("zh", "en"),
        device: str = "cpu",
        quantize: Quantization | None = None,
        server: str | None = None,
        steps: int = 10,
        seed: int | None = None,
    ) -> None:
        model = Path(model)
        self._listed = folders.list_voices(Path(voices)) if voices else {}
        self._decoders = {_DECODER: SpeechDecoder(model / _DECODER, device=device, steps=steps)}
        if (model / _MUSIC).is_dir():
            self._decoders[_MUSIC] = SpeechDecoder(model / _MUSIC, device=device, steps=steps)
        self._lm = StepAudioModel.open(model, tokenizer, wording, device=device, quantize=quantize, server=server)
        self.rate = self._decoders[_DECODER].rate
        self.languages = tuple(languages)
        # `NAMERAP` and `NAME哼唱` are how NAME sings, not voices to choose.
        names = [name for name in self._listed if not name.endswith(_SUNG)]
        self.voices = tuple(Voice(name, self.languages) for name in names)
        self._seed = seed
        self._prompts: dict[str, _Prompt] = {}
        self._lock = Lock()

    def default_voice(self, language: str) -> Voice | None:
        return next((voice for voice in self.voices if language in voice.languages), None)

    def speak(self, clause: str, *, voice: str, speed: float = 1.0, cancel: Event | None = None) -> Iterator[Speech]:
        """See `Speaker.speak`; chunks come as they are made."""
        return self.say(clause, find_voice(self, voice).name, None, "", speed, cancel)

    def cloned(self, reference: Reference) -> Speaker:
        return _View(self, self._prompt(reference))

    def close(self) -> None:
        self._lm.close()

    def say(
        self, clause: str, name: str | None, clip: _Prompt | None, style: str, speed: float, cancel: Event | None
    ) -> Iterator[Speech]:
        """Say a clause in one of its own voices, or without a name in that of a clip."""
        check_speed(speed)
        text = f"({style}){clause.strip()}" if style else clause.strip()
        if not _UNSAID.sub("", text).strip():
            raise TextError(f"there is nothing to say in {clause[:40]!r}", param="text")
        tag = leading_tag(text) or ""
        prompt = clip or self._named(name or "", tag)
        decoder = _MUSIC if tag in _SUNG and _MUSIC in self._decoders else _DECODER
        yield from self._sound(self._prompt_ids(text, prompt, name), prompt, decoder, clause, speed, cancel)

    def _prompt_ids(self, text: str, prompt: _Prompt, name: str | None) -> list[int]:
        said = prompt.reference.transcript
        return self._lm.prompts.speak(text, prompt_text=said, prompt_audio=prompt.ids, speaker=name)

    def _sound(
        self, ids: list[int], prompt: _Prompt, decoder: str, text: str, speed: float, cancel: Event | None
    ) -> Iterator[Speech]:
        """Generate audio after a prompt and give it as it is made, `text` shared out over it."""
        expected = _expected_seconds(text)
        groups = math.ceil((1 + _LONGEST * expected) / _SECONDS_PER_GROUP)
        grammar = AudioGrammar(self._lm.text.vocabulary, max_groups=groups)
        params = SamplingParams(max_tokens=groups * GROUP + 1, seed=self._seed)
        stream = self._decoders[decoder].stream(self._decoded(prompt, decoder), speed=speed)
        share = _TextShare(text, expected / speed)
        generation = self._lm.engine.submit(ids, params, grammar=grammar, cancel=cancel)
        group: list[int] = []
        for id in generation:
            group.append(id)
            if len(group) == GROUP:
                samples = stream.push(self._lm.audio_tokens(group))
                group = []
                if len(samples):
                    yield Speech(samples, share.take(len(samples) / self.rate))
        if group:  # only when the cache was full: a torn group is no sound
            raise BackendError("the clip and the text are too long for the model's context; use a shorter clip")
        yield Speech(stream.flush(), share.rest())

    def _decoded(self, prompt: _Prompt, decoder: str) -> chunks.Voice:
        with self._lock:
            if decoder not in prompt.decoded:
                made = self._decoders[decoder].voice(prompt.samples, RATE, self._lm.audio_tokens(prompt.ids))
                prompt.decoded[decoder] = made
            return prompt.decoded[decoder]

    def _named(self, name: str, tag: str = "") -> _Prompt:
        """The prompt of a voice, made once; of the one that sings for it, where there is one."""
        if tag in _SUNG and name + tag in self._listed:
            name += tag
        with self._lock:
            if name not in self._prompts:
                self._prompts[name] = self._prompt(folders.read_voice(*self._listed[name]))
            return self._prompts[name]

    def _prompt(self, reference: Reference) -> _Prompt:
        if not reference.transcript.strip():
            raise TextError("the transcript of the clip is empty; write down what is said in it", param="transcript")
        if not reference.samples.any():
            raise AudioError("the clip is silent")
        heard = trim_silence(self._level(resample(reference.samples, reference.rate, RATE)))
        return _Prompt(reference, heard, self._lm.hear(heard))

    def _level(self, samples: Samples) -> Samples:
        return samples


class StepAudioTts(StepAudioSpeaker):
    """A `StyledSpeaker` and `Cloner` over Step-Audio-TTS-3B: a label in brackets at the head of a clause says how."""

    def styled(self, style: str) -> Speaker:
        return _StyledView(self, None, style)

    def cloned(self, reference: Reference) -> Speaker:
        return _StyledView(self, self._prompt(reference))


class StepAudioEditor(StepAudioSpeaker):
    """A `Cloner` and `Editor` over Step-Audio-EditX: it speaks like a clip, and changes how a clip is spoken."""

    max_seconds = 30.0

    def edit(self, recording: Reference, edit: Edit, *, cancel: Event | None = None) -> Iterator[Speech]:
        """See `Editor.edit`. Raises AudioError for more than 30 s."""
        if len(recording.samples) > self.max_seconds * recording.rate:
            raise AudioError(f"a recording to edit may be {self.max_seconds:g} s long; cut it into parts")
        prompt = self._prompt(recording)
        said = recording.transcript.strip()
        ids = self._lm.prompts.edit(edit.kind, prompt.ids, text=said, option=edit.option, target=edit.text)
        yield from self._sound(ids, prompt, _DECODER, edit.text or said, 1.0, cancel)

    def _prompt_ids(self, text: str, prompt: _Prompt, name: str | None) -> list[int]:
        transcript = prompt.reference.transcript
        return self._lm.prompts.clone(
            text, name=name or _clip_name(prompt.reference), prompt_text=transcript, prompt_audio=prompt.ids
        )

    def _level(self, samples: Samples) -> Samples:
        peak = float(np.abs(samples).max(initial=0))
        return samples * np.float32(_LOUDEST_CLIP / peak) if peak > _LOUDEST_CLIP else samples


def _clip_name(reference: Reference) -> str:
    """The name that the released code makes up for a clip."""
    samples = reference.samples
    ends = samples if samples.size <= 2000 else np.concatenate([samples[:1000], samples[-1000:]])
    return f"clone_{hashlib.sha256(reference.transcript.encode() + ends.tobytes()).hexdigest()[:16]}"


class _View:
    """A speaker with the one voice of a clip, or its own voices in one style, or both."""

    def __init__(self, speaker: StepAudioSpeaker, clip: _Prompt | None = None, style: str = "") -> None:
        self.speaker, self.clip, self.style = speaker, clip, style
        self.rate = speaker.rate
        self.voices = speaker.voices if clip is None else (Voice(CLONE, speaker.languages),)

    def default_voice(self, language: str) -> Voice | None:
        return next((voice for voice in self.voices if language in voice.languages), None)

    def speak(self, clause: str, *, voice: str, speed: float = 1.0, cancel: Event | None = None) -> Iterator[Speech]:
        name = find_voice(self, voice).name
        return self.speaker.say(clause, None if self.clip else name, self.clip, self.style, speed, cancel)

    def close(self) -> None:
        """The speaker it is a view of stays open."""


class _StyledView(_View):
    def styled(self, style: str) -> Speaker:
        return _StyledView(self.speaker, self.clip, style)


# ---------------------------------------------------------------- text and time

_UNSAID = re.compile(r"\s*(?:（[^（）]*）|\([^()]*\))|\[[^\[\]]*\]")


def _expected_seconds(text: str) -> float:
    """How long a text usually takes to say."""
    slow = _SECONDS_PER_CHARACTER.get(script(text, _SECONDS_PER_CHARACTER) or "", _SECONDS_PER_LETTER)
    return slow * len(text)


class _TextShare:
    """Gives a text out word by word, in proportion to the sound that has been given."""

    def __init__(self, text: str, seconds: float) -> None:
        self._text = text
        self._per_second = len(text) / max(seconds, 0.1)
        self._seconds = 0.0
        self._given = 0

    def take(self, seconds: float) -> str:
        """The words that are likely said in the next stretch of sound."""
        self._seconds += seconds
        reach = min(len(self._text), int(self._seconds * self._per_second))
        end = max(self._given, self._text.rfind(" ", 0, reach) + 1)
        said, self._given = self._text[self._given : end], end
        return said

    def rest(self) -> str:
        said, self._given = self._text[self._given :], len(self._text)
        return said
