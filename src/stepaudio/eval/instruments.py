"""The models that measure: a transcriber for what was said, DNSMOS, a speaker encoder, a judge. Each is built when it
is first asked for, names itself in every figure it is behind, and is not asked the same thing twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import StepAudioError
from stepaudio.eval.items import Audio
from stepaudio.eval.metrics.mos import DnsMos, Mos
from stepaudio.eval.metrics.speaker import OnnxSpeakerEncoder
from stepaudio.eval.store import Store, key
from stepaudio.eval.systems.bundle import fingerprint
from stepaudio.speech.bundle import load
from stepaudio.speech.roles import SpeakerEncoder
from stepaudio.speech.weights import Store as Weights
from stepaudio.speech.weights import catalogue

if TYPE_CHECKING:
    from stepaudio.eval.judges.judge import Judge

_RATE = 16_000
Instrument = Literal["mos", "voice"]
"""Those that a machine may be without."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Which models measure. `asr` is the bundle whose transcriber hears what systems say."""

    asr: str = "small"
    speaker_model: Path | None = None
    judge: str | None = None
    judge_key: str | None = None
    judge_seeds: int = 1


class Instruments:
    """The instruments of a run; close them in the end."""

    def __init__(self, setup: Setup, store: Store, *, sets: Path) -> None:
        self.setup, self.store, self._sets = setup, store, sets
        self._bundle = load(setup.asr)  # the same models as the system under test, if it is that bundle

    # ------------------------------------------------------------ hearing

    @property
    def asr_label(self) -> str:
        """The transcriber, as figures name it."""
        role = self._bundle.spec.roles["transcriber"]
        return f"{', '.join(role.weights.values()) or role.backend} ({role.backend}, bundle {self._bundle.name})"

    def hear(self, audio: Audio | None, language: str) -> str:
        """What is said in it; nothing in no audio."""
        if audio is None or not len(audio.samples):
            return ""

        def listen() -> str:
            samples = audio.at(self._bundle.transcriber.rate)
            return self._bundle.transcribe(samples, language=language).text

        name = key("hear", fingerprint(self._bundle.spec), audio.digest, language)
        return cast(str, self.store.value(name, listen))

    # ------------------------------------------------------------ quality

    @cached_property
    def _mos(self) -> DnsMos:
        return DnsMos(Weights().verified(catalogue()["dnsmos"]) / "sig_bak_ovr.onnx", threads=2)

    def mos(self, audio: Audio) -> Mos:
        """DNSMOS of it. Raises MissingError without its weights."""

        def measure() -> list[float]:
            found = self._mos.score(audio.at(_RATE))
            return [found.overall, found.signal, found.background]

        return Mos(*self.store.value(key("dnsmos", audio.digest), measure))

    # ------------------------------------------------------------ speakers

    @cached_property
    def _speaker(self) -> tuple[str, SpeakerEncoder]:
        if self.setup.speaker_model is not None:
            found = OnnxSpeakerEncoder(self.setup.speaker_model)
            return found.name, found
        return "Resemblyzer", self._bundle.speaker_encoder

    @property
    def speaker_label(self) -> str:
        return self._speaker[0]

    def voice(self, audio: Audio) -> NDArray[np.float32]:
        """The embedding [D] of who speaks. Raises AudioError, MissingError."""
        name, model = self._speaker

        def embed() -> list[float]:
            return [float(value) for value in model.embed(audio.at(model.rate))]

        return np.array(self.store.value(key("voice", name, audio.digest), embed), np.float32)

    # ------------------------------------------------------------ judging

    @cached_property
    def judge(self) -> Judge | None:
        """The judge, if the run has one."""
        from stepaudio.eval.judges.judge import open_judge

        if self.setup.judge is None:
            return None
        return open_judge(
            self.setup.judge,
            key=self.setup.judge_key,
            seeds=self.setup.judge_seeds,
            store=self.store,
            calibration=self._sets / "calibration",
        )

    def can(self, what: Instrument) -> str | None:
        """Why one of them cannot be had; None if it can."""
        try:
            _ = self._mos if what == "mos" else self._speaker[1]
        except StepAudioError as error:
            return str(error)
        return None

    def close(self) -> None:
        if self.__dict__.get("judge") is not None and self.judge is not None:
            self.judge.close()
        self._bundle.close()
