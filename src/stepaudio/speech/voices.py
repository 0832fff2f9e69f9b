"""Voices by name, and the limits that every speaker shares."""

from __future__ import annotations

import difflib

from stepaudio.errors import InputError, NotFoundError
from stepaudio.speech.roles import Speaker, Voice

SLOWEST, FASTEST = 0.25, 4.0


def find_voice(speaker: Speaker, name: str) -> Voice:
    """The voice of that name. Raises NotFoundError, which names the voices that are near."""
    for voice in speaker.voices:
        if voice.name == name:
            return voice
    names = [voice.name for voice in speaker.voices]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the voices are {', '.join(names)}"
    raise NotFoundError(
        f"there is no voice {name!r} here; {hint} (`stepaudio doctor` says what further voices need)", param="voice"
    )


def check_speed(speed: float) -> None:
    """Raises InputError for a speed that no speaker takes."""
    if not SLOWEST <= speed <= FASTEST:
        raise InputError(f"the speed {speed} is out of range; it goes from {SLOWEST} to {FASTEST}", param="speed")
