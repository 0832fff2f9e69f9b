"""`stepaudio clone` and `stepaudio edit`: speak like a clip, and change how a clip was spoken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import stepaudio
from stepaudio.cli.output import BundleOption, JsonOption
from stepaudio.cli.say import FormatOption, OutputOption, SpeedOption, StyleOption, read_text, write_speech

Transcript = Annotated[
    str | None, typer.Option("--transcript", help="What is said in the clip; heard by the bundle if left out.")
]


def clone(
    clip: Annotated[Path, typer.Argument(help="2 to 30 s of one person speaking, in any format.")],
    text: Annotated[str, typer.Argument(help="Text, a text file's path, or - for standard input.")],
    output: OutputOption,
    transcript: Transcript = None,
    speed: SpeedOption = 1.0,
    style: StyleOption = None,
    format: FormatOption = None,
    bundle: BundleOption = "step-audio-tts-3b",
    json: JsonOption = False,
) -> None:
    """Speak text in the voice of a clip."""
    words = read_text(text)
    models = stepaudio.load(bundle)
    speech = models.clone(clip, words, transcript=transcript, speed=speed, style=style)
    write_speech(speech, words, models.speaker.rate, output, format, json=json)


def edit(
    recording: Annotated[Path, typer.Argument(help="2 to 30 s of one person speaking, in any format.")],
    edits: Annotated[
        list[str],
        typer.Argument(
            help="One or more, made in this order: emotion=sad, style=whisper, speed=faster, "
            "paralinguistic='[sigh] All right', denoise, trim."
        ),
    ],
    output: OutputOption,
    transcript: Transcript = None,
    format: FormatOption = None,
    bundle: BundleOption = "step-audio-editx",
    json: JsonOption = False,
) -> None:
    """Change how a recording was spoken, and leave who spoke."""
    from stepaudio.speech.clone import parse_edit
    from stepaudio.speech.roles import Speech

    wanted = [parse_edit(text) for text in edits]
    models = stepaudio.load(bundle)

    def edited() -> Iterator[Speech]:
        yield Speech(models.edit(recording, wanted, transcript=transcript), "")

    write_speech(edited(), "", models.speaker.rate, output, format, json=json)
