"""One checkpoint: the tokenizer that turns sound into its ids, its language model, its prompts."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Literal

from stepaudio.errors import AudioError, InputError
from stepaudio.lm import checkpoint
from stepaudio.lm.engine import Engine
from stepaudio.lm.prompts import Prompts, Wording
from stepaudio.lm.remote import RemoteEngine
from stepaudio.lm.step1 import Config
from stepaudio.lm.text import TextTokenizer
from stepaudio.speech.roles import Samples
from stepaudio.tokenizer.dual import DualTokenizer

Quantization = Literal["int8", "int4"]

RATE = 16_000
"""What the tokenizer listens at."""
KEY_VARIABLE = "STEPAUDIO_LM_KEY"
"""The environment variable with the key of a server that generates."""


class StepAudioModel:
    """A language model folder in the released layout and the tokenizer it was trained with.

    `open` gives every role of a process the same one; it is freed when the last has closed it. With `server`,
    `http://HOST/v1#MODEL`, the weights are not read: a server that takes token ids, such as vLLM, generates.
    """

    engine: Engine | RemoteEngine

    def __init__(
        self,
        folder: Path,
        tokenizer: Path,
        wording: Path | None,
        *,
        device: str,
        quantize: Quantization | None,
        server: str | None,
    ) -> None:
        self.text = TextTokenizer(folder / "tokenizer.model")
        self.prompts = Prompts(self.text, Wording.read(wording) if wording else None)
        if server is None:
            model = checkpoint.load(folder, device=device, quantize=quantize)
            self.engine = engine = Engine(model)
            self.context_tokens = engine.cache.tokens
        else:
            self.engine = _remote(server, quantize)
            self.context_tokens = Config.read(folder / checkpoint.CONFIG).max_seq_len
        self.audio = DualTokenizer.load(tokenizer, device=device)
        self._key: _Key | None = None

    @classmethod
    def open(
        cls,
        folder: Path | str,
        tokenizer: Path | str,
        wording: Path | str | None = None,
        *,
        device: str = "cpu",
        quantize: Quantization | None = None,
        server: str | None = None,
    ) -> StepAudioModel:
        """The model of these arguments, loaded if nobody has it. Raises MissingError and InputError."""
        folder, tokenizer, wording = Path(folder), Path(tokenizer), Path(wording) if wording else None
        key = (folder, tokenizer, wording, device, quantize, server)
        with _lock:
            if key not in _open:
                model = cls(folder, tokenizer, wording, device=device, quantize=quantize, server=server)
                model._key = key
                _open[key] = (model, 0)
            model, users = _open[key]
            _open[key] = (model, users + 1)
        return model

    def close(self) -> None:
        """Give it back; the last one to do so ends it."""
        with _lock:
            if self._key in _open and _open[self._key][1] > 1:
                _open[self._key] = (self, _open[self._key][1] - 1)
                return
            _open.pop(self._key, None)  # type: ignore[arg-type]
        self.engine.close()
        self.audio.close()

    def hear(self, samples: Samples) -> list[int]:
        """Samples [T] at 16 kHz to ids, whole groups of five. Raises AudioError for less than one group."""
        tokens = self.audio.encode(samples).tokens(tail="drop")
        if not len(tokens):
            raise AudioError(f"{len(samples) / RATE:.2f} s of audio are too short; at least 0.2 s are needed")
        return [int(token) + self.text.vocabulary.text for token in tokens]

    def audio_tokens(self, ids: list[int]) -> list[int]:
        """Ids of audio to tokens 0..5119, as the decoder takes them."""
        return [id - self.text.vocabulary.text for id in ids]


def _remote(server: str, quantize: Quantization | None) -> RemoteEngine:
    url, _, model = server.partition("#")
    if not url.startswith(("http://", "https://")) or not model:
        raise InputError(f"the server {server!r} is none: write http://HOST/v1#MODEL", param="server")
    if quantize is not None:
        raise InputError("the server has the weights: it is told how to quantize them", param="quantize")
    return RemoteEngine(url, model, api_key=os.environ.get(KEY_VARIABLE))


_Key = tuple[Path, Path, Path | None, str, Quantization | None, str | None]
_lock = threading.Lock()
_open: dict[_Key, tuple[StepAudioModel, int]] = {}
