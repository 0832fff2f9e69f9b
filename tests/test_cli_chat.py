"""The microphone conversation, with a sound device that plays a recording and keeps what it is given."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import stepaudio
from stepaudio.audio.io import read
from stepaudio.cli import chat

EXAMPLES = Path(__file__).parent.parent / "examples"


class LevelVad:
    """Speech is whatever is loud."""

    def push(self, block: np.ndarray) -> np.ndarray:
        return np.array([float(np.abs(block).max() > 0.1)])


def blocks(*levels: float) -> Iterator[np.ndarray]:
    """One block of 512 samples for each level."""
    return iter([np.full(512, level, np.float32) for level in levels])


def test_a_turn_starts_before_its_speech_and_ends_at_a_pause() -> None:
    said = chat.next_turn(blocks(*[0.0] * 40, *[0.5] * 30, *[0.0] * 10, *[0.5] * 5, *[0.0] * 60), LevelVad())  # type: ignore[arg-type]
    before, speech, pause = 9, 45, 22
    assert len(said) == (before + speech + pause) * 512
    assert (said[: before * 512] == 0).all()
    assert said[before * 512] == 0.5


def test_a_turn_without_end_is_cut() -> None:
    said = chat.next_turn(blocks(*[0.5] * 2000), LevelVad())  # type: ignore[arg-type]
    assert 30.0 <= len(said) / 16_000 < 30.1


def test_silence_is_no_turn() -> None:
    assert len(chat.next_turn(blocks(*[0.0] * 50), LevelVad())) == 0  # type: ignore[arg-type]


def test_an_overrun_microphone_drops_the_oldest() -> None:
    device = SimpleNamespace(InputStream=lambda *_, **__: None)
    microphone = chat._Microphone(device)
    for number in range(1000):
        microphone._take(np.full((512, 1), number, np.float32))
    assert next(microphone.blocks())[0] == 400
    microphone.drop()
    microphone._take(np.full((512, 1), 7, np.float32))
    assert next(microphone.blocks())[0] == 7


@pytest.mark.weights
def test_a_spoken_question_is_answered_through_the_loudspeaker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question = read(EXAMPLES / "question-en.flac")
    heard: list[np.ndarray] = []

    class InputStream:
        def __init__(self, rate: int, block: int, *, callback: Any, **_: Any) -> None:
            samples = np.concatenate([np.zeros(rate, np.float32), question, np.zeros(2 * rate, np.float32)])
            self.blocks = [samples[i : i + block, None] for i in range(0, len(samples) - block, block)]
            self.callback = callback

        def start(self) -> None:
            threading.Thread(target=lambda: [self.callback(block) for block in self.blocks], daemon=True).start()

        def close(self) -> None: ...

    class OutputStream:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> OutputStream:
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, samples: np.ndarray) -> None:
            heard.append(samples)
            raise KeyboardInterrupt  # the user has heard enough

    monkeypatch.setattr(
        chat, "_sound_device", lambda: SimpleNamespace(InputStream=InputStream, OutputStream=OutputStream)
    )
    with stepaudio.load("tiny"), pytest.raises(KeyboardInterrupt):
        chat.chat(bundle="tiny")
    assert "sky" in capsys.readouterr().out.lower()
    assert np.abs(heard[0]).max() > 0.05
