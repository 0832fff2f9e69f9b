"""The decoder folder of a release (`CosyVoice-300M-25Hz`): tokens to sound in the voice of a clip."""

from __future__ import annotations

from pathlib import Path

import torch

from stepaudio.audio.resample import resample
from stepaudio.decoder.checkpoint import YAML, load_flow, read_yaml
from stepaudio.decoder.chunks import Voice, flow_stream, read_voice
from stepaudio.decoder.flow import Reference, Sampling
from stepaudio.decoder.mel import MelSpec
from stepaudio.decoder.speaker import load_speaker
from stepaudio.decoder.streaming import SpeechStream
from stepaudio.decoder.tempo import Tempo
from stepaudio.decoder.vocoder import Hift, load_hift
from stepaudio.decoder.vocos import Vocos, load_vocos
from stepaudio.errors import InputError
from stepaudio.speech.roles import Samples

_VOCOS = "vocos.safetensors"


class SpeechDecoder:
    """Flow, vocoder and speaker encoder of one folder. Any number of streams may share it."""

    def __init__(self, folder: Path, *, device: str = "cpu", steps: int = 10) -> None:
        """Raises MissingError when a file is missing and InputError when they do not fit together."""
        flow = load_flow(folder, device=device)
        self._vocoder = _load_vocoder(folder).to(device)
        config = flow.config
        if (self._vocoder.rate, self._vocoder.hop) != (config.rate, config.hop):
            raise InputError(
                f"{folder}: the flow makes {config.rate} Hz in steps of {config.hop}, "
                f"its vocoder takes {self._vocoder.rate} Hz in steps of {self._vocoder.hop}"
            )
        self._flow = flow.for_inference() if device == "cpu" else flow.to(dtype=torch.bfloat16)
        self._speaker = load_speaker(folder / "campplus.onnx")
        self._sampling = Sampling(steps=steps)
        # The window is four hops long in both generations.
        self._mel = MelSpec(config.rate, 4 * config.hop, config.hop, config.mels)
        self.rate = config.rate

    def voice(self, samples: Samples, rate: int, tokens: list[int]) -> Voice:
        """The voice of a clip [T] whose audio tokens these are. Raises AudioError for a clip that is too short."""
        mel_MT = self._mel(torch.from_numpy(resample(samples, rate, self.rate))[None])[0]
        speaker = torch.from_numpy(self._speaker.embed(resample(samples, rate, self._speaker.rate)))
        return read_voice(self._flow, Reference(speaker, tokens, mel_MT), self._sampling)

    def stream(self, voice: Voice, *, speed: float = 1.0) -> SpeechStream:
        """Tokens to samples as they come, in a voice."""
        flow = flow_stream(self._flow, voice)
        return SpeechStream(flow, self._vocoder if speed == 1.0 else Tempo(self._vocoder, speed))


def _load_vocoder(folder: Path) -> Hift | Vocos:
    if (folder / _VOCOS).is_file():
        return load_vocos(folder / _VOCOS)
    settings = read_yaml(folder / YAML).get("hift")
    return load_hift(folder / "hift.pt", settings if isinstance(settings, dict) else None)
