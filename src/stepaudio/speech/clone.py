"""Speak like a clip, and change how a clip was spoken: the abilities over `Cloner` and `Editor`.

A clip is checked before a model sees it: a model gives bad sound for bad clips, never a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Event
from typing import cast, get_args

import numpy as np

from stepaudio.audio.resample import resample
from stepaudio.audio.vad import SPEECH, WINDOW, SileroVad
from stepaudio.errors import AudioError, InputError
from stepaudio.speech.roles import Cloner, Edit, EditKind, Editor, Reference, Samples, Speaker, Speech
from stepaudio.speech.say import say

SHORTEST, LONGEST = 2.0, 30.0
LEAST_SPEECH = 1.0
RATE = 24_000
"""What clips are best read at: both decoders' mel bands end below half of it."""
_QUIETEST = 0.02
_CLIPPED, _FEW = 0.999, 0.005


def check_clip(samples: Samples, rate: int, vad: SileroVad) -> None:
    """Raises AudioError for a clip [T] that is too short or long, too quiet, distorted, or without speech; the message
    says what to do."""
    seconds = len(samples) / rate
    if not SHORTEST <= seconds <= LONGEST:
        raise AudioError(
            f"the clip is {seconds:.1f} s long; give {SHORTEST:g} to {LONGEST:g} s of one person speaking", param="clip"
        )
    loudness = np.abs(samples)
    if loudness.max() < _QUIETEST:
        raise AudioError("the clip is too quiet to hear a voice; record it closer or louder", param="clip")
    if (loudness >= _CLIPPED).mean() > _FEW:
        raise AudioError("the clip is distorted: it was recorded too loud; record it at a lower level", param="clip")
    heard = vad.probabilities(resample(samples, rate, vad.rate)) >= SPEECH
    spoken = float(heard.sum()) * WINDOW / vad.rate
    if spoken < LEAST_SPEECH:
        raise AudioError(
            f"the clip holds {spoken:.1f} s of speech; at least {LEAST_SPEECH:g} s are needed", param="clip"
        )


def make_reference(
    samples: Samples, rate: int, transcript: str | None, vad: SileroVad, listen: Callable[[], str]
) -> Reference:
    """A checked clip with its transcript, which `listen` gives if the caller has none. Raises AudioError."""
    check_clip(samples, rate, vad)
    said = (listen() if transcript is None else transcript).strip()
    if not said:
        raise AudioError("no words were found in the clip; say what is spoken in it", param="transcript")
    return Reference(samples, rate, said)


def clone(
    speaker: Speaker,
    reference: Reference,
    text: str | Iterable[str],
    *,
    language: str | None = None,
    speed: float = 1.0,
    style: str | None = None,
    cancel: Event | None = None,
) -> Iterator[Speech]:
    """Speak a text like a clip; see `stepaudio.speech.say.say`. Raises InputError when the speaker cannot clone."""
    if not isinstance(speaker, Cloner):
        raise InputError("the speaker of this bundle cannot clone; use a bundle that can, such as step-audio-tts-3b")
    return say(speaker.cloned(reference), text, language=language, speed=speed, style=style, cancel=cancel)


def parse_edit(text: str) -> Edit:
    """`emotion=sad`, `style=whisper`, `speed=faster`, `paralinguistic=[sigh] All right`, `denoise` or `trim`.

    Raises InputError for another kind, and for a value that is missing or not wanted.
    """
    kind, given, value = (part.strip() for part in text.partition("="))
    if kind not in get_args(EditKind):
        raise InputError(f"there is no edit {kind!r}; there are {', '.join(get_args(EditKind))}", param="edit")
    if (kind in ("denoise", "trim")) == bool(given) or bool(given) != bool(value):
        wants = f"{kind} takes no value" if kind in ("denoise", "trim") else f"write {kind}=VALUE"
        raise InputError(f"the edit {text!r} cannot be made: {wants}", param="edit")
    known = cast(EditKind, kind)
    return Edit(known, text=value) if known == "paralinguistic" else Edit(known, value)


def edit(speaker: Speaker, recording: Reference, edits: Iterable[Edit], cancel: Event | None = None) -> Samples:
    """Apply edits one after the other, each to what the one before gave; samples [T] at the speaker's rate.

    Raises InputError when the speaker cannot edit, for no edits, and for an option that does not exist.
    """
    if not isinstance(speaker, Editor):
        raise InputError("the speaker of this bundle cannot edit; use a bundle that can, such as step-audio-editx")
    edits = list(edits)
    if not edits:
        raise InputError("no edit was asked for", param="edit")
    for each in edits:
        pieces = [speech.samples for speech in speaker.edit(recording, each, cancel=cancel)]
        recording = Reference(np.concatenate(pieces), speaker.rate, each.text or recording.transcript)
    return recording.samples
