"""The command line: one verb per job.

Exit codes: 0 done, 1 something failed, 2 the input or a name cannot be used, 3 weights or a package are missing,
4 a file's checksum is wrong, 5 the machine or server is busy, 130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from typing import Annotated

import typer

from stepaudio import __version__
from stepaudio.cli import bench, bundles, chat, clone, data, say, serve, talk, tokenize, train, transcribe
from stepaudio.cli import eval as judging
from stepaudio.cli.output import print_error
from stepaudio.errors import MissingError, StepAudioError

app = typer.Typer(
    name="stepaudio",
    help="Hear, understand, answer and speak, live.",
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 bad input, 3 something is missing (see `stepaudio doctor`), "
        "4 checksum wrong, 5 busy, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    talk.talk,
    chat.chat,
    transcribe.transcribe,
    say.say,
    say.voices,
    clone.clone,
    clone.edit,
    tokenize.tokenize,
    serve.serve,
    bundles.bundles,
    bundles.pull,
    bundles.doctor,
):
    app.command()(verb)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(judging.app, name="eval")


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hear, understand, answer and speak, live."""


def _extra(package: str) -> str:
    """The extra that brings a package, the one for running before the others; those for running and training if none
    is known to."""
    found = [
        extra[1]
        for requirement in importlib.metadata.requires("stepaudio") or ()
        if re.match(rf"{package.replace('_', '-')}\b", requirement, re.IGNORECASE)
        and (extra := re.search(r"extra == .(\w+)", requirement))
    ]
    return min(found, key=lambda extra: extra != "local", default="local,train")


def main() -> None:
    """Run the command line; every deliberate error becomes one line and its exit code."""
    try:
        app()
    except StepAudioError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("stepaudio"):
            raise
        package = error.name.partition(".")[0]
        missing = MissingError(f"{package} is not installed; run: pip install 'stepaudio[{_extra(package)}]'")
        print_error(missing, as_json="--json" in sys.argv)
        sys.exit(missing.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, no permission, a folder in a file's place
        about = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        print_error(StepAudioError(f"{about}{error.strerror or error}"), as_json="--json" in sys.argv)
        sys.exit(StepAudioError.exit_code)
