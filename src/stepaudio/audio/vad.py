"""Where is speech? Silero's voice activity network, and cutting long audio at the pauses that it finds.

Windows are 512 samples (32 ms) of 16 kHz audio; a probability says how likely a window holds speech.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples, check_finite
from stepaudio.errors import InputError, MissingError

RATE = 16_000
WINDOW = 512
SPEECH = 0.5
"""From this probability on, a window holds speech: the operating point that Silero's authors recommend."""

_CONTEXT = 64  # the network also sees the last samples of the window before
_STATE = (2, 1, 128)


def check_samples(samples: Samples, start: int = 0) -> Samples:
    """Return the samples, which must be finite float32 of shape [T]. Raises InputError.

    `start` is the position of the first one in its stream, for the message.
    """
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1:
        found = (
            f"{samples.dtype} of shape {list(samples.shape)}"
            if isinstance(samples, np.ndarray)
            else type(samples).__name__
        )
        raise InputError(f"audio must be a numpy array of float32 with shape [T], mono in [-1, 1]; this is {found}")
    check_finite(samples, RATE, start)
    return samples


class SileroVad:
    """The Silero network (https://github.com/snakers4/silero-vad, v5 or later), shared by any number of streams.

    `path` is its ONNX file. Raises MissingError when it is not there.
    """

    rate = RATE

    def __init__(self, path: Path) -> None:
        if not Path(path).is_file():
            raise MissingError(f"the voice activity weights are missing: {path} (run `stepaudio doctor`)")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # one window is too little work to share
        self._session = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def stream(self) -> VadStream:
        """A new stream with its own memory; as many as wanted may run at once, each in one thread at a time."""
        return VadStream(self)

    def probabilities(self, samples: Samples) -> NDArray[np.float32]:
        """Samples [T] to speech probabilities [ceil(T / 512)]. Raises InputError."""
        stream = self.stream()
        return np.concatenate([stream.push(samples), stream.flush()])

    def run(self, window: NDArray[np.float32], state: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        """One step: [64 + 512] samples and the memory before them to a probability and the memory after them."""
        feed = {"input": window[None], "state": state, "sr": np.array(RATE, dtype=np.int64)}
        probability, state = self._session.run(None, feed)
        return float(probability[0, 0]), state

    def close(self) -> None:
        """Nothing to wait for: the memory goes with the last stream."""


class VadStream:
    """Speech probabilities of one stream of audio. Any way of cutting it gives the same probabilities."""

    def __init__(self, vad: SileroVad) -> None:
        self._vad = vad
        self.reset()

    def reset(self) -> None:
        """Forget everything heard."""
        self._state = np.zeros(_STATE, dtype=np.float32)
        self._tail = np.zeros(_CONTEXT, dtype=np.float32)  # the context, then what does not fill a window yet
        self._heard = 0

    def push(self, samples: Samples) -> NDArray[np.float32]:
        """Samples [T], any T, to the probabilities of the windows that they complete. Raises InputError."""
        check_samples(samples, self._heard)
        self._heard += len(samples)
        tail = np.concatenate([self._tail, samples])
        count = (len(tail) - _CONTEXT) // WINDOW
        probabilities = np.empty(count, dtype=np.float32)
        for i in range(count):
            probabilities[i] = self._hear(tail[i * WINDOW : (i + 1) * WINDOW + _CONTEXT])
        self._tail = tail[count * WINDOW :]
        return probabilities

    def _hear(self, window: Samples) -> float:
        """The next window, behind its context."""
        probability, self._state = self._vad.run(window, self._state)
        return probability

    def flush(self) -> NDArray[np.float32]:
        """The probability [0 or 1] of the last, incomplete window, filled up with silence. Resets."""
        missing = -(len(self._tail) - _CONTEXT) % WINDOW
        probabilities = self.push(np.zeros(missing, dtype=np.float32))
        self.reset()
        return probabilities


class GatedVadStream(VadStream):
    """A stream that asks the network only when something may have begun: for microphones that are silent for long.

    The gate opens for every window that is `_RISE` times louder than the quietest one of the last two seconds. It
    closes when neither that nor the network has noticed anything for two seconds. What was skipped just before it
    opens is heard then, so the network knows what came before; the probability of a skipped window is 0.
    """

    _RISE = 1.5
    """In power, 1.8 dB: more than the power of steady noise varies by from window to window."""
    _SILENCE = 1e-9
    """Power of the last bit of 16: less is nothing, whatever its ratio to nothing."""
    _NOTICED = 0.1
    _FLOOR_WINDOWS, _OPEN_WINDOWS, _BEFORE_WINDOWS = 64, 64, 8

    def reset(self) -> None:
        super().reset()
        self._powers: deque[float] = deque(maxlen=self._FLOOR_WINDOWS)
        self._skipped: deque[Samples] = deque(maxlen=self._BEFORE_WINDOWS)
        self._open = self._OPEN_WINDOWS

    def _hear(self, window: Samples) -> float:
        own = window[_CONTEXT:]
        power = float(own @ own) / WINDOW
        self._powers.append(power)
        if power > self._SILENCE and power > self._RISE * min(self._powers):
            self._open = self._OPEN_WINDOWS
        if not self._open:
            self._skipped.append(window.copy())  # and not the whole block that it is part of
            return 0.0
        self._open -= 1
        for earlier in self._skipped:
            super()._hear(earlier)
        self._skipped.clear()
        probability = super()._hear(window)
        if probability >= self._NOTICED:
            self._open = self._OPEN_WINDOWS
        return probability


# ---------------------------------------------------------------- cutting at pauses


@dataclass(frozen=True, slots=True)
class Stretch:
    """Samples [T] of a longer recording that hold speech, and where they start in it, in seconds."""

    start: float
    samples: Samples

    @property
    def end(self) -> float:
        return self.start + len(self.samples) / RATE


def segments(
    blocks: Iterable[Samples],
    vad: SileroVad,
    *,
    max_seconds: float,
    pause: float = 0.5,
    pad: float = 0.25,
) -> Iterator[Stretch]:
    """Cut a stream of 16 kHz audio into stretches of speech, in order and without overlap, in constant memory.

    A stretch ends at a pause of `pause` seconds; `pad` seconds around its speech are kept. A stretch that reaches
    `max_seconds` is cut where speech is least likely in its second half. Every window that holds speech is in
    exactly one stretch. Raises InputError for unusable samples or limits.
    """
    cutter = _Cutter(
        longest=int(max_seconds * RATE) // WINDOW,
        pause=_windows(pause),
        pad=_windows(pad),
    )
    stream = vad.stream()
    for window in _cut_windows(blocks):
        probabilities = stream.push(window) if len(window) == WINDOW else _last(stream, window)
        yield from cutter.push(window, float(probabilities[0]))
    yield from cutter.flush()


def _windows(seconds: float) -> int:
    return round(seconds * RATE / WINDOW)


def _last(stream: VadStream, window: Samples) -> NDArray[np.float32]:
    stream.push(window)
    return stream.flush()


def _cut_windows(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """Blocks of any length to windows [512]; only the last may be shorter."""
    rest = np.zeros(0, dtype=np.float32)
    position = 0
    for block in blocks:
        joined = np.concatenate([rest, check_samples(block, position)])
        position += len(block)
        whole = len(joined) // WINDOW * WINDOW
        yield from joined[:whole].reshape(-1, WINDOW)
        rest = joined[whole:]
    if len(rest):
        yield rest


class _Cutter:
    """Windows and their probabilities in, stretches out. Lengths are in windows.

    `_held` are the windows since the last cut that may still be needed; while nobody speaks, those of the padding.
    `_spoken` is the number of them up to and including the last one with speech; 0 means that nobody speaks.
    """

    def __init__(self, *, longest: int, pause: int, pad: int) -> None:
        if longest < 2 * (pad + 1) or pad > pause or pause < 1:
            raise InputError(
                f"cannot cut at pauses of {pause} windows with {pad} windows of padding into stretches of at most "
                f"{longest} windows (of 32 ms): allow longer stretches, or pad less"
            )
        self._longest, self._pause, self._pad = longest, pause, pad
        self._held: list[tuple[Samples, float]] = []
        self._start = 0  # position of the first held window in the stream
        self._spoken = 0

    def push(self, window: Samples, probability: float) -> Iterator[Stretch]:
        self._held.append((window, probability))
        if probability >= SPEECH:
            self._spoken = len(self._held)
        elif not self._spoken:
            self._drop(len(self._held) - self._pad)
        if not self._spoken:
            return
        if len(self._held) - self._spoken >= self._pause:
            yield from self._take(self._spoken + self._pad)
        elif len(self._held) == self._longest:
            yield from self._take(self._least_likely() + 1)

    def flush(self) -> Iterator[Stretch]:
        if self._spoken:
            yield from self._take(min(len(self._held), self._spoken + self._pad))

    def _least_likely(self) -> int:
        """Index of the held window that is safest to cut at: the middle of the quietest 160 ms of the second half."""
        probabilities = np.array([probability for _, probability in self._held])
        smooth = np.convolve(np.pad(probabilities, 2, mode="edge"), np.full(5, 0.2), mode="valid")
        half = len(smooth) // 2
        return half + int(smooth[half:].argmin())

    def _take(self, count: int) -> Iterator[Stretch]:
        """Cut off the first `count` held windows; the others are looked at again as if they came now."""
        yield Stretch(self._start * WINDOW / RATE, np.concatenate([window for window, _ in self._held[:count]]))
        self._drop(count)
        rest, self._held, self._spoken = self._held, [], 0
        for window, probability in rest:
            yield from self.push(window, probability)

    def _drop(self, count: int) -> None:
        if count > 0:
            del self._held[:count]
            self._start += count
