"""Voices on disk: a clip and what is said in it, by name.

A folder holds either `NAME.wav` with `NAME.txt`, or what is released with Step-Audio-TTS-3B: `speakers_info.json`
(name to transcript) with `NAME_prompt.wav`.
"""

from __future__ import annotations

import json
from pathlib import Path

from stepaudio.audio.io import read
from stepaudio.errors import InputError, MissingError
from stepaudio.speech.roles import Reference

RATE = 24_000
_INDEX = "speakers_info.json"


def list_voices(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (clip, transcript) of every voice in a folder. Raises MissingError and InputError."""
    if not folder.is_dir():
        raise MissingError(f"the folder of voices {folder} does not exist")
    if (folder / _INDEX).is_file():
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            voices = {name: (folder / f"{name}_prompt.wav", str(said)) for name, said in index.items()}
        except (ValueError, AttributeError) as error:
            raise InputError(f"{folder / _INDEX} is not a table of names and transcripts: {error}") from error
    else:
        texts = {path: path.with_suffix(".txt") for path in sorted(folder.glob("*.wav"))}
        voices = {path.stem: (path, _text(text)) for path, text in texts.items()}
    for clip, _ in voices.values():
        if not clip.is_file():
            raise MissingError(f"{clip} is missing, which {folder / _INDEX} names")
    return voices


def read_voice(clip: Path, transcript: str) -> Reference:
    """One of them, for a model. Raises AudioError when the clip cannot be read."""
    return Reference(read(clip, rate=RATE, max_seconds=60), RATE, transcript)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise MissingError(f"{path} is missing: write into it what is said in {path.stem}.wav") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
