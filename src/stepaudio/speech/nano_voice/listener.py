"""Transcribe with nano-voice's language model, which hears dual codes."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import numpy as np

from stepaudio.errors import InputError
from stepaudio.speech.nano_voice.decoder import PACKAGED
from stepaudio.speech.nano_voice.language import MOMENT, NanoLm
from stepaudio.speech.roles import Samples, Transcript
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.tokenizer.fbank import RATE

TOKENIZER = "nano-tokenizer"
"""What nano-voice was trained on the codes of."""
_HEARINGS = 2
"""Times that a sound is tokenized, each a moment later; chosen on the split `dev`."""


class NanoTranscriber:
    """A `Transcriber` that writes lower-case English without punctuation, untimed; `confidence` is 1 for any text."""

    rate = RATE
    languages: tuple[str, ...] = ("en",)
    max_seconds = 20.0

    def __init__(self, folder: Path | str = PACKAGED) -> None:
        self._lm = NanoLm.load(Path(folder))
        self._tokenizer = DualTokenizer.load(TOKENIZER)

    def transcribe(
        self,
        samples: Samples,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
        cancel: Event | None = None,
    ) -> Transcript:
        """See `Transcriber.transcribe`; prompts are ignored and words are not timed."""
        if language not in (None, *self.languages):
            raise InputError(f"nano-voice hears English only, not {language!r}", param="language")
        seconds = len(samples) / RATE
        if seconds > self.max_seconds:
            raise InputError(f"{seconds:.0f} s of audio are more than the {self.max_seconds:g} s that one call takes")
        late = [np.zeros(round(i * MOMENT * RATE), dtype=np.float32) for i in range(_HEARINGS)]
        heard = [self._tokenizer.encode(np.concatenate([silence, samples])) for silence in late]
        text = self._lm.transcribe(*heard, cancel=cancel) if len(heard[0].semantic) >= 3 else ""
        return Transcript(text, "en", seconds, confidence=1.0 if text else 0.0)

    def close(self) -> None:
        self._lm.close()
        self._tokenizer.close()
