"""`stepaudio say` and `stepaudio voices`: text to speech."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stepaudio
from stepaudio.cli.output import BundleOption, JsonOption, console, print_json, progress
from stepaudio.errors import InputError
from stepaudio.speech.bundle_spec import DEFAULT

if TYPE_CHECKING:
    from stepaudio.speech.roles import Samples, Speech


OutputOption = Annotated[Path, typer.Option("-o", "--output", help="The audio file to write; - for standard output.")]
SpeedOption = Annotated[float, typer.Option(help="0.25 to 4; 1 is the voice's own pace.")]
StyleOption = Annotated[
    str | None, typer.Option(help="How to speak, for voices that know styles: happy, slow and sad.")
]
FormatOption = Annotated[str | None, typer.Option(help="wav, flac, mp3, opus, aac or pcm; by extension if none.")]


def say(
    text: Annotated[str, typer.Argument(help="Text, a text file's path, or - for standard input.")],
    output: OutputOption,
    voice: Annotated[str | None, typer.Option(help="A voice of `stepaudio voices`; by language if none.")] = None,
    speed: SpeedOption = 1.0,
    style: StyleOption = None,
    format: FormatOption = None,
    bundle: BundleOption = DEFAULT,
    json: JsonOption = False,
) -> None:
    """Speak text into a file. Long text is spoken clause by clause and written as it comes."""
    words = read_text(text)
    models = stepaudio.load(bundle)
    rate = models.speaker.rate
    speech = models.say(words, voice=voice, speed=speed, style=style)
    write_speech(speech, words, rate, output, format, json=json)


def write_speech(
    speech: Iterator[Speech], text: str, rate: int, output: Path, format: str | None, *, json: bool
) -> None:
    """Write the speech that says a text as it comes, with a progress bar, and report how long it took."""
    from stepaudio.audio.encode import write

    started = time.perf_counter()
    first_audio: float | None = None
    with progress(quiet=json) as bars:
        task = bars.add_task("speaking", total=len(text))

        def blocks() -> Iterator[Samples]:
            nonlocal first_audio
            for chunk in speech:
                first_audio = first_audio or time.perf_counter() - started
                yield chunk.samples
                bars.update(task, advance=len(chunk.text))

        if str(output) == "-":
            seconds = _to_stdout(blocks(), rate, format or "wav")
        else:
            seconds = write(output, blocks(), rate, format)
    spent = time.perf_counter() - started
    if json:
        print_json(
            {"output": str(output), "seconds": seconds, "first_audio_seconds": first_audio, "spent_seconds": spent}
        )
    else:
        console().print(f"{output}: {seconds:.1f} s of speech in {spent:.1f} s")


def read_text(argument: str) -> str:
    """The text itself, what a file holds, or standard input."""
    try:
        if argument == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        if len(argument) < 4096 and "\n" not in argument and Path(argument).is_file():
            return Path(argument).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{'standard input' if argument == '-' else argument} is not UTF-8 text") from None
    return argument


def _to_stdout(blocks: Iterator[Samples], rate: int, format: str) -> float:
    from stepaudio.audio.encode import Encoder

    encoder = Encoder(format, rate)
    samples = 0
    for block in blocks:
        samples += len(block)
        sys.stdout.buffer.write(encoder.push(block))
        sys.stdout.buffer.flush()
    sys.stdout.buffer.write(encoder.flush())
    sys.stdout.buffer.flush()
    return samples / rate


def voices(bundle: BundleOption = DEFAULT, json: JsonOption = False) -> None:
    """List the voices of a bundle."""
    known = stepaudio.load(bundle).speaker.voices
    if json:
        print_json(
            [
                {"name": v.name, "languages": list(v.languages), "description": v.description, "licence": v.licence}
                for v in known
            ]
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("voice", "languages", "description", "licence", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for one in known:
        table.add_row(one.name, " ".join(one.languages), one.description, one.licence)
    Console().print(table)
