"""Codes to sound in a voice, and a clip to a voice: flow, vocoder and timbre encoder of one folder."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from stepaudio.audio.resample import resample
from stepaudio.decoder.checkpoint import load_flow
from stepaudio.decoder.chunks import Schedule, Voice, flow_stream, read_voice
from stepaudio.decoder.flow import FlowModel, Reference, Sampling
from stepaudio.decoder.streaming import SpeechStream
from stepaudio.decoder.tempo import Tempo
from stepaudio.decoder.timbre import TIMBRE, load_timbre
from stepaudio.decoder.vocos import VOCODER, load_vocos
from stepaudio.errors import InputError, MissingError
from stepaudio.files import save_tensors
from stepaudio.speech.roles import Samples
from stepaudio.speech.roles import Voice as Named
from stepaudio.train.clips import mel_of

PACKAGED = Path(__file__).parent / "weights"
"""nano-voice, as it comes with the package."""
VOICES = "voices.safetensors"
CHUNKS = Schedule((6, 12, 24))
"""Rows of a chunk, 40 ms each: the first sound after 9 rows, 0.36 s of codes."""
SAMPLING = Sampling(steps=4, guidance=1.5, temperature=0.3)
"""A small flow is surest of its way when it starts near the middle and is held to its conditions."""


class NanoDecoder:
    """A folder of `flow.safetensors`, `vocoder.safetensors`, `timbre.safetensors` and `voices.safetensors`.

    Any number of streams may share it. `sampling` is how the flow is followed. Raises MissingError when a file is
    missing and InputError when they do not fit together.
    """

    def __init__(self, folder: Path = PACKAGED, sampling: Sampling = SAMPLING) -> None:
        flow = load_flow(folder)
        self._vocoder = load_vocos(folder / VOCODER)
        self._timbre = load_timbre(folder / TIMBRE)
        self.mel = self._vocoder.config.mel
        config = flow.config
        if (self.mel.rate, self.mel.hop, self._timbre.config.speaker) != (config.rate, config.hop, config.speaker):
            raise InputError(f"{folder}: flow, vocoder and timbre encoder are not of one kind")
        self._sampling = sampling
        self._flow: FlowModel = flow.for_inference()
        self.rate = config.rate
        self.named, vectors = read_voices(folder / VOICES)
        self._voices = {voice.name: self._read(vectors[voice.name]) for voice in self.named}

    def voice(self, name: str) -> Voice:
        """One of its own voices."""
        return self._voices[name]

    def clone(self, samples: Samples, rate: int) -> Voice:
        """The voice of a clip [T]."""
        return self._read(self.timbre(samples, rate))

    def timbre(self, samples: Samples, rate: int) -> Tensor:
        """The vector [S] of who speaks in a clip [T]. Raises AudioError for a clip that is too short."""
        return self._timbre.embed(mel_of(resample(samples, rate, self.rate), self.mel).T)

    def stream(self, voice: Voice, *, speed: float = 1.0) -> SpeechStream:
        """Codes to samples as they come, in a voice."""
        vocoder = self._vocoder if speed == 1.0 else Tempo(self._vocoder, speed)
        return SpeechStream(flow_stream(self._flow, voice, CHUNKS), vocoder)

    def _read(self, vector: Tensor) -> Voice:
        return read_voice(self._flow, Reference(vector), self._sampling)


def save_voices(path: Path, voices: dict[Named, Tensor]) -> None:
    """Write voices and their vectors [S]."""
    said = {voice.name: {"description": voice.description, "licence": voice.licence} for voice in voices}
    tensors = {voice.name: vector.half().contiguous() for voice, vector in voices.items()}
    save_tensors(tensors, path, {"voices": json.dumps(said)})


def read_voices(path: Path) -> tuple[tuple[Named, ...], dict[str, Tensor]]:
    """What `save_voices` wrote. Raises MissingError and InputError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})["voices"])
            vectors = {name: file.get_tensor(name).float() for name in said}
        return tuple(Named(name, ("en",), **fields) for name, fields in said.items()), vectors
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no voices, or is damaged: {error}") from error
