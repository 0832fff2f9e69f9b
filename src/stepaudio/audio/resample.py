"""Sample-rate conversion by libsoxr (HQ), streamed with the same result as offline."""

from __future__ import annotations

import numpy as np
import soxr

from stepaudio.audio.pcm import Samples, check_rate


class Resampler:
    """Converts one mono signal from `in_rate` to `out_rate`, piece by piece.

    However the signal is cut, the pieces returned join to the same samples, round(T * out_rate / in_rate) of them.
    The output lags by the length of the filter, which `flush` gives back.
    """

    def __init__(self, in_rate: int, out_rate: int) -> None:
        """Raises InputError for a rate outside 1 to 768 kHz."""
        self.in_rate = check_rate(in_rate)
        self.out_rate = check_rate(out_rate)
        self._soxr = None if in_rate == out_rate else soxr.ResampleStream(in_rate, out_rate, 1)

    def push(self, samples: Samples) -> Samples:
        """Samples [T] at `in_rate` to those now ready at `out_rate`, possibly none."""
        return self._process(samples, last=False)

    def flush(self) -> Samples:
        """The rest of the signal. The next push starts a new one."""
        rest = self._process(np.empty(0, np.float32), last=True)
        self.reset()
        return rest

    def reset(self) -> None:
        """Forget the signal so far."""
        if self._soxr is not None:
            self._soxr.clear()

    def _process(self, samples: Samples, last: bool) -> Samples:
        samples = np.ascontiguousarray(samples, dtype=np.float32)
        if self._soxr is None:
            return samples
        resampled: Samples = self._soxr.resample_chunk(samples, last=last)
        return resampled


def resample(samples: Samples, in_rate: int, out_rate: int) -> Samples:
    """A whole signal [T] from `in_rate` to `out_rate`. Raises InputError for a rate outside 1 to 768 kHz."""
    resampler = Resampler(in_rate, out_rate)
    return np.concatenate([resampler.push(samples), resampler.flush()])
