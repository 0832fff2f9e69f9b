"""Text in, audio out, with the voice that comes inside a package."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from stepaudio.errors import Cancelled, InputError, NotFoundError, TextError
from stepaudio.speech.backends.onnx_voice import OnnxVoice
from stepaudio.speech.roles import Speaker
from stepaudio.speech.say import say


@pytest.fixture(scope="module")
def speaker() -> OnnxVoice:
    return OnnxVoice(threads=1)


def test_is_a_speaker(speaker: OnnxVoice) -> None:
    assert isinstance(speaker, Speaker)


def test_texts_of_the_chunks_are_the_text(speaker: OnnxVoice) -> None:
    text = "Hello there, Dr. Lee! 😀 It costs $5.50.\n\n```python\nprint(1)\n```\nПривет means hello. Bye\n"
    chunks = list(say(speaker, text))
    assert "".join(chunk.text for chunk in chunks) == text


def test_code_is_silent_but_kept(speaker: OnnxVoice) -> None:
    chunks = list(say(speaker, "Look:\n```\nx = compute(1)\n```"))
    words = " ".join(word.text for chunk in chunks for word in chunk.words)
    assert words == "Look:"
    assert "compute" in "".join(chunk.text for chunk in chunks)


def test_stream_is_spoken_before_it_ends(speaker: OnnxVoice) -> None:
    given: list[str] = []

    def text() -> Iterator[str]:
        for piece in ["The weather ", "is fine today. ", "We will ", "go to ", "the beach ", "and swim."]:
            given.append(piece)
            yield piece

    first = next(say(speaker, text()))
    assert len(first.samples)
    assert len(given) < 4


def test_long_text_is_spoken_as_a_stream(speaker: OnnxVoice) -> None:
    first = next(say(speaker, "All work and no play. " * 50_000))
    assert first.text == "All work and no play. "


def test_same_text_same_audio(speaker: OnnxVoice) -> None:
    first, second = (np.concatenate([c.samples for c in say(speaker, "One, two. Three!")]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_joins_do_not_click(speaker: OnnxVoice) -> None:
    for chunk in say(speaker, "First part. Second part; third one, and the last"):
        assert abs(chunk.samples[0]) < 1e-3
        assert abs(chunk.samples[-1]) < 1e-3


@pytest.mark.parametrize(
    ("text", "arguments", "error", "says"),
    [
        ("", {}, TextError, "no text"),
        (" \n ", {}, TextError, "no text"),
        ("hi", {"voice": "hart"}, NotFoundError, "did you mean heart"),
        ("hi", {"voice": "zzz"}, NotFoundError, "the voices are heart"),
        ("hi", {"speed": 0.2}, InputError, "0.25 to 4"),
        ("hi", {"speed": float("nan")}, InputError, "0.25 to 4"),
        ("hi", {"language": "fr"}, NotFoundError, "'fr'"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    speaker: OnnxVoice, text: str, arguments: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        say(speaker, text, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["😀👍", "Привет", "ありがとう", "...", "```\ncode\n```"])
def test_nothing_to_say_is_an_error(speaker: OnnxVoice, text: str) -> None:
    with pytest.raises(TextError, match="can be spoken"):
        list(say(speaker, text))


def test_empty_stream_is_an_error(speaker: OnnxVoice) -> None:
    with pytest.raises(TextError, match="no text"):
        list(say(speaker, iter(["", " "])))


def test_cancel(speaker: OnnxVoice) -> None:
    cancel = threading.Event()
    chunks = say(speaker, "One. Two. Three. Four.", cancel=cancel)
    next(chunks)
    cancel.set()
    with pytest.raises(Cancelled):
        next(chunks)
