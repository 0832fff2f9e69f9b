"""What the verbs share: where words and bars go, and the options every verb has.

Results go to standard output, everything else (progress, notices, errors) to standard error, so that a verb's
output can be piped. With `--json` the output is JSON and nothing else.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepaudio.errors import StepAudioError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

BundleOption = Annotated[
    str, typer.Option("--bundle", "-b", help="A bundle's name or TOML file.", envvar="STEPAUDIO_BUNDLE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def console() -> Console:
    """The console for people: standard error, so that standard output holds only results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def progress(*, quiet: bool = False) -> Progress:
    """A progress bar with time left, gone when it is done; silent with `quiet` or when nobody watches."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )


def print_json(value: Any) -> None:
    """One JSON document, or with a generator's items one a line, on standard output."""
    json.dump(value, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_error(error: StepAudioError, *, as_json: bool, about: str = "") -> None:
    """The error as one line for people, or as JSON; `about` names what it is about, one file of several say."""
    if as_json:
        body = {"code": error.code, "message": str(error)} | ({"file": about} if about else {})
        json.dump({"error": body}, sys.stderr, ensure_ascii=False)
        sys.stderr.write("\n")
    else:
        from rich.markup import escape

        message = f"{about}: {error}" if about else str(error)
        console().print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
