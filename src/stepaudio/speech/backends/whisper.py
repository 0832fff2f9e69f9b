"""Whisper, made quick for short utterances that are heard again while they grow.

Whisper was trained on windows of exactly 30 s, and the usual ports encode all of them whatever was said. Here the
encoder, CTranslate2's, hears the speech alone. The decoder, which uses the silence after it to know where to stop, gets
that silence as it was encoded once and for all when the model was loaded, and what it found in the beginning of the
same utterance. docs/hearing.md has what this saves, what it costs in error, and what else was measured. One encoding
serves the language, the text and the word times. An output that looks like a loop is decoded once more from the full
window.

Shapes: N mel bands, F frames of 10 ms, S encoder states of 20 ms, D dimensions.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.features import whisper_log_mel
from stepaudio.audio.pcm import Samples
from stepaudio.audio.vad import RATE, SPEECH, WINDOW, SileroVad, check_samples
from stepaudio.errors import BackendError, Cancelled, InputError, MissingError, StepAudioError
from stepaudio.speech.backends.utterances import Utterance, Utterances
from stepaudio.speech.backends.whisper_decoder import WhisperDecoder
from stepaudio.speech.roles import Transcript, Word
from stepaudio.speech.threads import sleeping_openmp
from stepaudio.speech.transcribe import continues_word, tidy

WINDOW_SECONDS = 30.0
"""What Whisper was trained on, and the longest audio it takes."""
MARGIN = 0.25
"""Seconds of the recording kept before and after the speech found in it."""

_LOUDEST = 1.25  # the features of a window reach this, so that the ready-made silence is as far below as the tail
_QUIETEST = _LOUDEST - 2.0  # 80 dB less: features are clamped there, and silence lies there
_STATE = 320  # samples per encoder state: a window is a whole number of them
_STATES = 1500  # in a full window
_LOOP_RATIO = 2.4  # text that zlib shrinks more than this repeats itself (Radford et al. 2022, section 4.5)
_MAX_PROMPT = 223  # tokens of text before the transcript, at most; the model knows 448 in all
_STYLE = {"zh": "以下是普通话的句子。"}  # without it, Chinese comes in either script and unpunctuated
_FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.json")


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Text tokens, the mean log-probability of a token and the end, and whether decoding ran away."""

    tokens: list[int]
    log_probability: float
    looping: bool


class WhisperTranscriber:
    """A multilingual Whisper in a CTranslate2 folder.

    `languages` are those it listens for when the caller names none; any other that the model knows may be named.
    `threads` calls are heard at once, each on one thread: the steps of the decoder are too small to be shared.
    Without a `vad`, silence is transcribed too, and Whisper makes up words for it. Raises MissingError,
    and BackendError for weights that cannot be loaded.
    """

    rate = 16_000
    max_seconds = WINDOW_SECONDS
    tail = 0.5
    """Seconds of silence that are encoded together with the speech."""
    shortest = 2.5
    """Seconds that are encoded at least: a word alone needs more silence around it."""
    memory = WINDOW_SECONDS
    """Seconds that the decoder looks at: what was encoded, then ready-made silence."""
    utterances = 64
    """Utterances of which it knows what it found, those heard last."""

    def __init__(
        self,
        folder: Path,
        *,
        vad: SileroVad | None = None,
        languages: Sequence[str] = ("en", "zh"),
        threads: int = 2,
        beam: int = 3,
        compute_type: str = "int8",
    ) -> None:
        for name in _FILES:
            if not (Path(folder) / name).is_file():
                raise MissingError(
                    f"the Whisper weights are incomplete: no {name} in {folder} (run `stepaudio doctor`)"
                )
        with sleeping_openmp():
            import ctranslate2
        import tokenizers

        self._view = ctranslate2.StorageView.from_array
        try:
            self._model = ctranslate2.models.Whisper(
                str(folder), compute_type=compute_type, inter_threads=threads, intra_threads=1
            )
            self._tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise BackendError(f"the Whisper model in {folder} cannot be loaded: {error}") from error
        self._calls, self._closed, self._calls_changed = 0, False, Condition()
        self._utterances = Utterances(self.utterances)
        self._vad = vad
        self._beam = beam
        self._start, self._previous, self._transcribe, self._untimed, self._end = (
            self._special(name)
            for name in ("startoftranscript", "startofprev", "transcribe", "notimestamps", "endoftext")
        )
        for language in languages:
            self._language_token(language)
        self.languages = tuple(languages)
        silence_SD = self._states(np.full((self._model.n_mels, 2 * _STATES), _QUIETEST, dtype=np.float32))
        self._silence_SD = silence_SD[: round(self.memory * self.rate / _STATE)]
        self._decoder: Any = WhisperDecoder(
            Path(folder), self._silence_SD, end=self._end
        )  # like the model: until closed

    def transcribe(
        self,
        samples: Samples,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
        cancel: Event | None = None,
    ) -> Transcript:
        """Transcribe samples [T] at 16 kHz, at most 30 s. See `stepaudio.speech.roles.Transcriber`."""
        check_samples(samples)
        seconds = len(samples) / self.rate
        if seconds > self.max_seconds:
            raise InputError(
                f"{seconds:.1f} s of audio is more than one call takes ({self.max_seconds:g} s): "
                "use stepaudio.speech.transcribe, which cuts it at pauses"
            )
        if language is not None:
            self._language_token(language)
        utterance = self._utterances.recall(samples)
        span = slice(0, len(samples)) if len(samples) else None
        if self._vad is not None:
            utterance = utterance.more(samples, self._vad)
            self._utterances.know(utterance)
            span = _spoken(utterance, samples)
        if span is None:
            return Transcript("", language or self.languages[0], seconds)
        with self._call():
            return self._hear(samples, span, utterance, language, prompt, words, cancel)

    def _hear(
        self,
        samples: Samples,
        span: slice,
        utterance: Utterance,
        language: str | None,
        prompt: str | None,
        words: bool,
        cancel: Event | None,
    ) -> Transcript:
        """Transcribe the speech in samples[span]."""
        seconds = len(samples) / self.rate
        speech = samples[span]
        _check(cancel)
        states_SD = self._encode(speech, self.tail)
        _check(cancel)
        memory = self._decoder.remember(states_SD)
        language = language or self._detect(memory)
        guess = utterance.tokens
        decoded = self._decode(memory, len(speech), language, prompt, cancel, guess=guess, beam=self._beam)
        if decoded.looping:
            states_SD = self._encode(speech, WINDOW_SECONDS)
            memory = self._decoder.remember(states_SD)
            decoded = self._decode(memory, len(speech), language, prompt, cancel, guess=(), beam=5)
        self._utterances.know(replace(utterance, tokens=tuple(decoded.tokens)))
        text = tidy(self._tokenizer.decode(decoded.tokens))
        if not text:
            return Transcript("", language, seconds)
        timed = self._align(states_SD, len(speech), span.start / self.rate, language, decoded.tokens) if words else ()
        return Transcript(text, language, seconds, math.exp(decoded.log_probability), timed)

    def close(self) -> None:
        """Free the weights as soon as the calls that are running have ended."""
        with self._calls_changed:
            self._closed = True
            self._calls_changed.wait_for(lambda: self._calls == 0)
            self._model = self._decoder = None

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Counts the calls that are running, and says what failed."""
        with self._calls_changed:
            if self._closed:
                raise InputError("this transcriber is closed; load its bundle again")
            self._calls += 1
        try:
            yield
        except StepAudioError:
            raise
        except Exception as error:  # onnxruntime's have no common base
            raise BackendError(f"Whisper failed: {error}") from error
        finally:
            with self._calls_changed:
                self._calls -= 1
                self._calls_changed.notify_all()

    # ------------------------------------------------------------ steps

    def _encode(self, speech: Samples, tail: float) -> NDArray[np.float32]:
        """Speech [T] and a tail of silence, at most a full window, to encoder states [S, D]."""
        seconds = max(self.shortest, len(speech) / self.rate + tail)
        length = min(math.ceil(seconds * self.rate / _STATE), _STATES) * _STATE
        window = np.zeros(length, dtype=np.float32)
        window[: len(speech)] = speech
        features_NF = whisper_log_mel(window, self._model.n_mels)
        features_NF += _LOUDEST - features_NF.max()
        return self._states(features_NF)

    def _states(self, features_NF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mel features [N, F] to encoder states [F / 2, D]."""
        encoded = self._model.encode(self._view(features_NF[None]), to_cpu=True)
        states: NDArray[np.float32] = np.asarray(encoded)[0]
        return states

    def _detect(self, memory: Sequence[NDArray[np.float32]]) -> str:
        """The likeliest of `languages`."""
        if len(self.languages) == 1:
            return self.languages[0]
        tokens = {self._language_token(language): language for language in self.languages}
        return tokens[self._decoder.likeliest(memory, [self._start], list(tokens))]

    def _decode(
        self,
        memory: Sequence[NDArray[np.float32]],
        length: int,
        language: str,
        prompt: str | None,
        cancel: Event | None,
        *,
        guess: Sequence[int],
        beam: int,
    ) -> _Decoded:
        before = " ".join(part for part in (_STYLE.get(language), prompt) if part)
        start = [self._start, self._language_token(language), self._transcribe, self._untimed]
        if before:
            text = self._tokenizer.encode(f" {before}", add_special_tokens=False).ids
            start = [self._previous, *text[-_MAX_PROMPT:], *start]
        most = _most_tokens(length / self.rate)
        found = self._decoder.search(memory, start, guess=guess, beam=beam, most=most, cancel=cancel)
        data = self._tokenizer.decode(found.tokens).encode()
        looping = not found.ended or len(data) > _LOOP_RATIO * len(zlib.compress(data))
        return _Decoded(found.tokens, found.log_probability, looping)

    def _align(
        self, states_SD: NDArray[np.float32], length: int, offset: float, language: str, tokens: list[int]
    ) -> tuple[Word, ...]:
        """Where each word lies, by dynamic time warping over the cross-attention of the alignment heads."""
        words = self._words(tokens)
        memory = self._view(np.concatenate([states_SD, self._silence_SD[len(states_SD) :]])[None])
        start = [self._start, self._language_token(language), self._transcribe]
        frames = math.ceil(length / _STATE) * 2
        (found,) = self._model.align(memory, start, [tokens], frames)
        first_frame: dict[int, int] = {}
        for token, frame in found.alignments:
            first_frame.setdefault(token, frame)
        seconds_per_frame = _STATE / self.rate
        limit = length / self.rate
        times = [min(first_frame.get(i, frames) * seconds_per_frame, limit) for i in range(len(tokens) + 1)]
        timed, position = [], 0
        for text, count in words:
            timed.append(Word(text, offset + times[position], offset + times[position + count]))
            position += count
        return tuple(timed)

    def _words(self, tokens: list[int]) -> list[tuple[str, int]]:
        """Words and how many tokens each takes. In Chinese and Japanese a token is a word, or the tokens that make
        up one character."""
        words: list[tuple[str, int]] = []
        held: list[int] = []
        for token in tokens:
            held.append(token)
            piece = self._tokenizer.decode(held)
            if piece.endswith("\ufffd"):  # a character that the next token completes
                continue
            if words and continues_word(words[-1][0], piece):
                text, count = words.pop()
                words.append((text + piece, count + len(held)))
            else:
                words.append((piece, len(held)))
            held = []
        if held and words:
            text, count = words.pop()
            words.append((text, count + len(held)))
        return [(tidy(text), count) for text, count in words]

    # ------------------------------------------------------------ tokens

    def _special(self, name: str) -> int:
        token = self._tokenizer.token_to_id(f"<|{name}|>")
        if token is None:
            raise BackendError(f"the Whisper tokenizer has no token <|{name}|>: the weights are not a Whisper model's")
        return int(token)

    def _language_token(self, language: str) -> int:
        token = self._tokenizer.token_to_id(f"<|{language}|>")
        if token is None or not re.fullmatch("[a-z]{2,3}", language):
            raise InputError(
                f"'{language}' is not a language code that this model knows: use an ISO 639-1 code such as "
                f"{', '.join(self.languages)}, or leave it out to have it detected",
                param="language",
            )
        return int(token)


def _spoken(utterance: Utterance, samples: Samples) -> slice | None:
    """From the first to the last window with speech, and a margin; None if there is none."""
    rest = samples[len(utterance.speech) * WINDOW :]
    spoken = np.flatnonzero(utterance.probabilities(rest) >= SPEECH)
    if not len(spoken):
        return None
    margin = round(MARGIN * RATE)
    return slice(max(0, int(spoken[0]) * WINDOW - margin), min(len(samples), int(spoken[-1] + 1) * WINDOW + margin))


def _most_tokens(seconds: float) -> int:
    """More than the fastest speaker needs: what exceeds it is a loop. Chinese takes up to 2 tokens a syllable."""
    return min(224, 12 + math.ceil(14 * seconds))


def _check(cancel: Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("transcription was cancelled")
