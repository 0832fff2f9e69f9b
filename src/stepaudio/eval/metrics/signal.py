"""How close a waveform is to the one it should be: STOI, PESQ, SI-SDR."""

from __future__ import annotations

import importlib.util

import numpy as np

from stepaudio.audio.pcm import Samples
from stepaudio.errors import AudioError, MissingError

RATE = 16_000


def stoi(clean: Samples, degraded: Samples) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), about 0 to 1, of samples [T] at 16 kHz."""
    if importlib.util.find_spec("pystoi") is None:
        raise MissingError("STOI needs the package pystoi; run: pip install 'stepaudio[eval]'")
    from pystoi import stoi as measure

    clean, degraded = aligned(clean, degraded)
    return float(measure(clean, degraded, RATE))


def pesq(clean: Samples, degraded: Samples) -> float:
    """Wide-band PESQ (ITU-T P.862.2), 1.04 to 4.64, of samples [T] at 16 kHz. Raises AudioError where it is not
    defined: no utterance is found in the clean signal."""
    if importlib.util.find_spec("pesq") is None:
        raise MissingError("PESQ needs the package pesq (compiled on installation); run: pip install 'stepaudio[eval]'")
    from pesq import PesqError
    from pesq import pesq as measure

    clean, degraded = aligned(clean, degraded)
    try:
        return float(measure(RATE, clean, degraded, "wb"))
    except PesqError as error:
        raise AudioError(f"PESQ is not defined for this recording: {type(error).__name__}") from None


def si_sdr(clean: Samples, degraded: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    wanted, given = (part.astype(np.float64) for part in aligned(clean, degraded))
    power = float(wanted @ wanted)
    if not power:
        raise AudioError("the clean recording is silent")
    target = wanted * (float(given @ wanted) / power)
    noise = given - target
    error = float(noise @ noise)
    return float("inf") if error == 0 else 10 * float(np.log10(max(float(target @ target), 1e-20) / error))


def aligned(clean: Samples, degraded: Samples, most: float = 0.1) -> tuple[Samples, Samples]:
    """Both from where they agree best, of equal length: codecs delay. At most `most` seconds of delay are undone."""
    from scipy.signal import correlate, correlation_lags

    if not len(clean) or not len(degraded):
        raise AudioError("there is no audio to compare")
    found = correlate(degraded, clean, "full", "fft")
    lags = correlation_lags(len(degraded), len(clean))
    near = np.abs(lags) <= most * RATE
    lag = int(lags[near][np.abs(found[near]).argmax()])
    clean, degraded = clean[max(0, -lag) :], degraded[max(0, lag) :]
    length = min(len(clean), len(degraded))
    return clean[:length], degraded[:length]
