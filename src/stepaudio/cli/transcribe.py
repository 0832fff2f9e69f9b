"""`stepaudio transcribe`: recordings to text, hours long if need be."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import stepaudio
from stepaudio.cli.output import BundleOption, JsonOption, console, print_error, print_json, progress
from stepaudio.errors import InputError, StepAudioError
from stepaudio.files import replacing
from stepaudio.speech.bundle_spec import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepaudio.speech.transcribe import Segment


class Format(StrEnum):
    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Recordings; anything libsndfile or FFmpeg decodes.")],
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.text,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write FILE.<format> here instead of printing.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="ISO 639-1 code; detected if not given.")] = None,
    words: Annotated[bool, typer.Option("--words", help="Word timestamps (json).")] = False,
    bundle: BundleOption = DEFAULT,
    json: JsonOption = False,
) -> None:
    """Write down what is said in recordings. A file that fails does not stop the others."""
    from stepaudio.speech.transcribe import to_json, to_srt, to_text, to_vtt

    writers: dict[Format, Callable[[Sequence[Segment]], str | dict[str, Any]]] = {
        Format.text: to_text,
        Format.json: to_json,
        Format.srt: to_srt,
        Format.vtt: to_vtt,
    }
    wanted = Format.json if json else format
    targets = {} if output is None else _targets(files, output, "txt" if wanted is Format.text else wanted.value)
    models = stepaudio.load(bundle)
    failure: StepAudioError | None = None
    for file in files:
        try:
            written = writers[wanted](_segments(models, file, language, words, quiet=json))
        except StepAudioError as error:
            failure = error
            print_error(error, as_json=json, about=str(file))
            continue
        if file in targets:
            _write(targets[file], written)
        elif isinstance(written, dict):
            print_json({"file": str(file), **written})
        else:
            if len(files) > 1:
                console().print(f"[bold]{file}[/]")
            sys.stdout.write(written if written.endswith("\n") else written + "\n")
    if failure is not None:
        raise typer.Exit(failure.exit_code)


def _targets(files: list[Path], folder: Path, extension: str) -> dict[Path, Path]:
    """Where each file's transcript goes. Raises InputError where two would go to the same place."""
    targets = {file: folder / f"{file.stem}.{extension}" for file in files}
    first = {target: file for file, target in reversed(targets.items())}
    for file, target in targets.items():
        if first[target] != file:
            raise InputError(f"{first[target]} and {file} would both be written to {target}: give them apart")
    folder.mkdir(parents=True, exist_ok=True)
    return targets


def _segments(models: Any, file: Path, language: str | None, words: bool, *, quiet: bool) -> list[Segment]:
    """All segments of one file, under a bar that follows the position in it."""
    from stepaudio.audio.io import probe

    seconds = probe(file).seconds
    found = []
    with progress(quiet=quiet) as bars:
        task = bars.add_task(file.name, total=seconds)
        for segment in models.segments(file, language=language, words=words):
            found.append(segment)
            bars.update(task, completed=segment.end)
    return found


def _write(path: Path, content: str | dict[str, Any]) -> None:
    import json

    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1)
    with replacing(path) as half:
        half.write_text(text, encoding="utf-8")
    console().print(f"wrote {path}")
