"""Speech as its tokens come: a flow in chunks, and a vocoder behind it.

A `Vocoder` that streams gives, for any way of cutting, what it gives for the whole mel. One that cannot, or is to
answer sooner than its look-ahead lets it, is wrapped in `CrossFade`: then the samples differ from the whole mel's
within the fades, and near them as far as the vocoder looks.

Shapes: B batch, M mel channels, T mel frames, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stepaudio.decoder.chunks import FlowStream
from stepaudio.errors import InputError

OVERLAP = 8
"""Mel frames of a fade."""


class Vocoder(Protocol):
    """Mel frames to samples, in pieces."""

    rate: int
    """Samples per second."""
    hop: int
    """Samples per mel frame."""

    def __call__(self, mel_BMT: Tensor, state: Any = None, *, last: bool = True) -> tuple[Tensor, Any]:
        """The next frames [B, M, T] (T may be 0) to the samples [B, N] that they complete, and the state after them.

        Without a state a new signal begins. `last` completes it: all samples given for a signal are then T * hop of
        all its frames. A state is not changed and may be continued from again.
        """
        ...


@dataclass(frozen=True)
class _Fading:
    """Frames whose samples are not out yet, and these samples as the frames before and in them gave them."""

    mel_BMT: Tensor
    held_BN: Tensor


class CrossFade:
    """A `Vocoder` made of one that is only called on whole pieces of mel.

    A piece begins with the last `overlap` frames of the piece before; where both speak, one fades into the other. So
    `overlap` * hop samples are held back until the next piece. The weights are a Hamming window's halves, divided by
    their sum (1.08): what both agree on stays as it is.
    """

    def __init__(self, vocoder: Vocoder, overlap: int = OVERLAP) -> None:
        if overlap < 1:
            raise InputError(f"a fade needs at least one frame, not {overlap}", param="overlap")
        self._vocoder = vocoder
        self._overlap = overlap
        self.rate, self.hop = vocoder.rate, vocoder.hop

    def __call__(self, mel_BMT: Tensor, state: _Fading | None = None, *, last: bool = True) -> tuple[Tensor, _Fading]:
        if mel_BMT.shape[2]:
            if state is not None:
                mel_BMT = torch.cat([state.mel_BMT, mel_BMT], dim=2)
            samples_BN, _ = self._vocoder(mel_BMT)
            if state is not None:
                samples_BN = _fade(state.held_BN, samples_BN)
        elif state is not None:
            mel_BMT, samples_BN = state.mel_BMT, state.held_BN
        else:
            samples_BN = mel_BMT.new_zeros(mel_BMT.shape[0], 0)
        held = 0 if last else min(self._overlap, mel_BMT.shape[2])
        out = samples_BN.shape[1] - held * self.hop
        return samples_BN[:, :out], _Fading(mel_BMT[:, :, mel_BMT.shape[2] - held :], samples_BN[:, out:])


def _fade(old_BN: Tensor, new_BN: Tensor) -> Tensor:
    """The beginning of `new`, of `old`'s length, faded in while `old` fades out."""
    length = old_BN.shape[1]
    if not length:
        return new_BN
    window = torch.hamming_window(2 * length, dtype=new_BN.dtype, device=new_BN.device)
    rising_N = window[:length] / (window[:length] + window[length:])
    return torch.cat([torch.lerp(old_BN, new_BN[:, :length], rising_N), new_BN[:, length:]], dim=1)


class SpeechStream:
    """Audio tokens to samples [N], float32, of one utterance after another. One thread at a time may use it."""

    def __init__(self, flow: FlowStream, vocoder: Vocoder) -> None:
        self._flow = flow
        self._vocoder = vocoder
        self._state: Any = None
        self.rate = vocoder.rate

    def push(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """The samples that tokens (0..5119) complete. Raises InputError for tokens that are not in 2:3 order, and has
        then forgotten the utterance."""
        try:
            return self._speak(self._flow.push(tokens), last=False)
        except InputError:
            self.reset()
            raise

    def flush(self) -> NDArray[np.float32]:
        """The rest of the utterance; the stream is then as new. Over an utterance, every mel frame of its tokens
        becomes hop samples. Raises InputError as `push` does."""
        try:
            return self._speak(self._flow.flush(), last=True)
        finally:
            self.reset()

    def reset(self) -> None:
        """Forget the utterance."""
        self._flow.reset()
        self._state = None

    @torch.inference_mode()
    def _speak(self, mel_MT: Tensor, *, last: bool) -> NDArray[np.float32]:
        if not mel_MT.shape[1] and not last:
            return np.zeros(0, dtype=np.float32)
        samples_BN, self._state = self._vocoder(mel_MT[None], self._state, last=last)
        return samples_BN[0].float().cpu().numpy()
