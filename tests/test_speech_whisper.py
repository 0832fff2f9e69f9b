"""Whisper with the ready-made silence, on the real weights; speech comes from hibari and the examples."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

from stepaudio.audio.io import read
from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import SileroVad
from stepaudio.errors import AudioError, BackendError, Cancelled, InputError, MissingError
from stepaudio.speech.backends.whisper import WhisperTranscriber
from stepaudio.speech.roles import Transcriber, Transcript
from stepaudio.speech.transcribe import PartialTranscriber, join, transcribe
from stepaudio.speech.weights import Store, catalogue

EXAMPLES = Path(__file__).parents[1] / "examples"
RATE = 16_000

# ---------------------------------------------------------------- without weights


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json"):
        WhisperTranscriber(tmp_path)


def test_damaged_weights_are_reported(tmp_path: Path) -> None:
    for name in ("config.json", "model.bin", "tokenizer.json", "vocabulary.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(BackendError, match="cannot be loaded"):
        WhisperTranscriber(tmp_path)


# ---------------------------------------------------------------- with weights


@pytest.fixture(scope="module")
def vad() -> SileroVad:
    return SileroVad(Store().verified(catalogue()["silero-vad"]) / "silero_vad.onnx")


@pytest.fixture(scope="module")
def whisper(vad: SileroVad) -> WhisperTranscriber:
    return WhisperTranscriber(Store().verified(catalogue()["whisper-base"]), vad=vad)


@pytest.fixture(scope="module")
def speak() -> Callable[[str], Samples]:
    """English text to speech at 16 kHz."""
    from hibari import Hibari

    voice = Hibari()

    def spoken(text: str) -> Samples:
        audio = np.concatenate([np.ravel(piece) for piece in voice.stream(text)]).astype(np.float32)
        return np.asarray(soxr.resample(audio, voice.sample_rate, RATE), dtype=np.float32)

    return spoken


def plain(text: str) -> str:
    return "".join(char for char in text.lower() if char.isalnum() or char == " ")


def same(first: Transcript, second: Transcript) -> bool:
    """But for rounding: an utterance that was heard before is read in other steps."""
    near = abs(first.confidence - second.confidence) < 0.01
    return near and replace(first, confidence=0.0) == replace(second, confidence=0.0)


SENTENCES = (
    "What is the capital of Australia?",
    "Set a timer for ten minutes.",
    "Why is the sky blue?",
    "The train was late, so we missed the beginning of the concert.",
)


@pytest.mark.weights
def test_it_fills_the_role(whisper: WhisperTranscriber) -> None:
    assert isinstance(whisper, Transcriber)


@pytest.mark.weights
@pytest.mark.parametrize("text", SENTENCES)
def test_short_sentences_are_understood(
    whisper: WhisperTranscriber, speak: Callable[[str], Samples], text: str
) -> None:
    audio = speak(text)
    heard = whisper.transcribe(audio)
    assert plain(heard.text).replace("10", "ten") == plain(text)
    assert heard.language == "en"
    assert heard.duration == len(audio) / RATE
    assert 0.6 < heard.confidence <= 1
    assert heard.words == ()


@pytest.mark.weights
def test_the_ready_made_silence_stands_for_the_full_window(
    whisper: WhisperTranscriber, vad: SileroVad, speak: Callable[[str], Samples]
) -> None:
    """The short way hears what the long way hears."""

    class FullWindow(WhisperTranscriber):
        tail = 30.0

    full = FullWindow(Store().verified(catalogue()["whisper-base"]), vad=vad)
    audio = speak(SENTENCES[3])
    assert plain(whisper.transcribe(audio).text) == plain(full.transcribe(audio).text)
    full.close()


@pytest.mark.weights
def test_chinese_is_detected_and_written_in_full_width(whisper: WhisperTranscriber) -> None:
    heard = whisper.transcribe(read(EXAMPLES / "question-zh.flac"))
    assert heard.language == "zh"
    assert heard.text[-1] in "。？"
    assert not set(heard.text) & set(",?! ")


@pytest.mark.weights
def test_words_are_in_order_and_cover_the_text(whisper: WhisperTranscriber, speak: Callable[[str], Samples]) -> None:
    quiet = np.zeros(RATE, np.float32)
    heard = whisper.transcribe(np.concatenate([quiet, speak(SENTENCES[0]), quiet]), words=True)
    assert " ".join(word.text for word in heard.words) == heard.text
    times = [time for word in heard.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0.7 < times[0] < 1.5
    assert times[-1] < heard.duration - 0.6


@pytest.mark.weights
def test_chinese_words(whisper: WhisperTranscriber) -> None:
    heard = whisper.transcribe(read(EXAMPLES / "question-zh.flac"), words=True)
    assert "".join(word.text for word in heard.words) == heard.text
    assert len(heard.words) > 3


@pytest.mark.weights
@pytest.mark.parametrize("loudness", [0.0, 0.01, 0.3])
def test_no_words_are_invented_without_speech(whisper: WhisperTranscriber, loudness: float) -> None:
    noise = np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32) * np.float32(loudness)
    assert whisper.transcribe(noise) == Transcript("", "en", 3.0)


@pytest.mark.weights
@pytest.mark.parametrize("count", [0, 1, 159, 400, 4000])
def test_clips_too_short_for_a_word_are_empty(whisper: WhisperTranscriber, count: int) -> None:
    heard = whisper.transcribe(np.full(count, 0.01, np.float32), language="zh", words=True)
    assert heard == Transcript("", "zh", count / RATE)


@pytest.mark.weights
@pytest.mark.parametrize("count", [1, 319, 321])
def test_without_a_gate_any_length_is_heard(whisper: WhisperTranscriber, count: int) -> None:
    ungated = WhisperTranscriber(Store().verified(catalogue()["whisper-base"]), languages=("en",), threads=1)
    assert ungated.transcribe(np.full(count, 0.01, np.float32)).duration == count / RATE
    ungated.close()


@pytest.mark.weights
def test_thirty_seconds_are_taken_and_more_are_not(
    whisper: WhisperTranscriber, speak: Callable[[str], Samples]
) -> None:
    spoken = np.concatenate([speak(text) for text in SENTENCES])
    audio = np.concatenate([spoken, np.zeros(30 * RATE - len(spoken), np.float32)])
    assert plain(whisper.transcribe(audio).text).replace("10", "ten") == plain(" ".join(SENTENCES))
    with pytest.raises(InputError, match="30 s"):
        whisper.transcribe(np.append(audio, np.float32(0)))


@pytest.mark.weights
@pytest.mark.parametrize(
    ("samples", "error"),
    [
        (np.array([0.0, np.nan], np.float32), AudioError),
        (np.zeros(RATE), InputError),
        (np.zeros((RATE, 2), np.float32), InputError),
    ],
)
def test_unusable_samples_are_refused(whisper: WhisperTranscriber, samples: Samples, error: type[InputError]) -> None:
    with pytest.raises(error):
        whisper.transcribe(samples)


@pytest.mark.weights
@pytest.mark.parametrize("language", ["xx", "english", "nospeech", "", "EN"])
def test_unknown_languages_are_refused(whisper: WhisperTranscriber, language: str) -> None:
    with pytest.raises(InputError, match="language code") as caught:
        whisper.transcribe(np.zeros(RATE, np.float32), language=language)
    assert caught.value.param == "language"


@pytest.mark.weights
def test_other_languages_may_be_named(whisper: WhisperTranscriber, speak: Callable[[str], Samples]) -> None:
    assert whisper.transcribe(speak("Guten Morgen."), language="de").language == "de"


@pytest.mark.weights
def test_a_prompt_biases_the_spelling(whisper: WhisperTranscriber, speak: Callable[[str], Samples]) -> None:
    audio = speak("My name is Catherine.")
    assert "Kathryn" in whisper.transcribe(audio, language="en", prompt="Kathryn, Kathryn, Kathryn.").text
    long = "Kathryn went home. " * 300
    assert whisper.transcribe(audio, language="en", prompt=long).text  # the end of it is used


@pytest.mark.weights
def test_several_threads_hear_the_same(whisper: WhisperTranscriber, speak: Callable[[str], Samples]) -> None:
    audio = [speak(text) for text in SENTENCES]
    alone = [whisper.transcribe(samples, words=True) for samples in audio]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda samples: whisper.transcribe(samples, words=True), audio * 3))
    assert all(map(same, together, alone * 3))


@pytest.mark.weights
def test_cancelling(whisper: WhisperTranscriber, speak: Callable[[str], Samples]) -> None:
    audio = np.tile(speak(SENTENCES[3]), 8)[: 29 * RATE]
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        whisper.transcribe(audio, cancel=cancel)
    for delay in (0.01, 0.4):
        cancel = threading.Event()
        threading.Timer(delay, cancel.set).start()
        with pytest.raises(Cancelled):
            whisper.transcribe(audio, cancel=cancel)
    assert whisper.transcribe(speak(SENTENCES[0]), cancel=threading.Event()).text  # it is as good as before


@pytest.mark.weights
def test_a_recording_longer_than_a_window(
    whisper: WhisperTranscriber, vad: SileroVad, speak: Callable[[str], Samples]
) -> None:
    pause = np.zeros(RATE, np.float32)
    parts = [piece for text in SENTENCES * 3 for piece in (speak(text), pause)]
    segments = list(transcribe(whisper, np.concatenate(parts), vad=vad, words=True))
    assert len(segments) > 3
    heard = join(segments)
    assert plain(heard.text).replace("10", "ten") == plain(" ".join(SENTENCES * 3))
    assert heard.words[-1].end < sum(map(len, parts)) / RATE


@pytest.mark.weights
def test_partials_of_a_turn(whisper: WhisperTranscriber, speak: Callable[[str], Samples]) -> None:
    audio = speak(SENTENCES[3])
    turn = PartialTranscriber(whisper)
    shown = []
    for block in np.array_split(audio, 4):
        turn.push(block)
        shown.append(turn.partial().text)
    assert shown[-1].lower().startswith("the train")
    assert same(turn.flush(), whisper.transcribe(audio))


@pytest.mark.weights
def test_what_was_found_before_is_only_looked_up(
    vad: SileroVad, speak: Callable[[str], Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = WhisperTranscriber(Store().verified(catalogue()["whisper-base"]), vad=vad)
    steps, read = 0, other._decoder._read

    def counted(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        return read(*given)

    monkeypatch.setattr(other._decoder, "_read", counted)
    audio = speak(SENTENCES[3])
    anew = other.transcribe(audio)
    at_first, steps = steps, 0
    assert same(other.transcribe(audio), anew)
    assert steps < at_first / 3
    others = np.concatenate([audio[:RATE], speak(SENTENCES[0])])  # begins like it, and goes on otherwise
    assert plain(other.transcribe(others).text) == plain(other.transcribe(others[1:]).text)
    other.close()


@pytest.mark.weights
def test_a_failing_model_is_a_backend_error(vad: SileroVad, speak: Callable[[str], Samples]) -> None:
    other = WhisperTranscriber(Store().verified(catalogue()["whisper-base"]), vad=vad)

    class Broken:
        def run(self, *given: Any) -> Any:
            raise Exception("no memory")  # as onnxruntime's

    other._decoder._step = Broken()
    with pytest.raises(BackendError, match="no memory"):
        other.transcribe(speak(SENTENCES[0]))
    other.close()


@pytest.mark.weights
def test_closing_waits_for_a_running_call(vad: SileroVad, speak: Callable[[str], Samples]) -> None:
    other = WhisperTranscriber(Store().verified(catalogue()["whisper-base"]), vad=vad)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(other.transcribe, speak(SENTENCES[0]))
        time.sleep(0.05)
        other.close()
        assert running.result().text
    with pytest.raises(InputError, match="closed"):
        other.transcribe(speak(SENTENCES[0]))
