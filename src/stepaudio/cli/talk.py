"""`stepaudio talk`: a spoken question in, a spoken answer out, and how long each step took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stepaudio
from stepaudio.cli.output import BundleOption, JsonOption, console, print_json
from stepaudio.errors import BackendError
from stepaudio.speech.bundle_spec import DEFAULT

if TYPE_CHECKING:
    from stepaudio.speech.answer import Answered, AnswerEvent
    from stepaudio.speech.roles import Samples


def talk(
    question: Annotated[Path, typer.Argument(help="A recording of the question.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the spoken answer goes.")] = Path("reply.wav"),
    voice: Annotated[str | None, typer.Option(help="A voice of `stepaudio voices`; by language if none.")] = None,
    instructions: Annotated[str | None, typer.Option(help="How to answer, in words.")] = None,
    bundle: BundleOption = DEFAULT,
    json: JsonOption = False,
) -> None:
    """Answer a spoken question aloud."""
    from stepaudio.audio.encode import write
    from stepaudio.audio.io import read

    models = stepaudio.load(bundle)
    with nullcontext() if json else console().status("loading the models"):
        samples = read(question, rate=models.transcriber.rate)
        models.warm()
    turn = _Turn(quiet=json)
    write(output, turn.audio(models.answer(samples, voice=voice, instructions=instructions)), models.speaker.rate)
    answer = turn.answered()
    if json:
        print_json(
            {
                "transcript": turn.transcript,
                "language": turn.language,
                "answer": answer.text,
                "latency": asdict(answer.latency),
                "output": str(output),
            }
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="left")
    table.add_column(justify="right")
    for step, seconds in asdict(answer.latency).items():
        table.add_row(step.replace("_", " "), "-" if seconds is None else f"{seconds:.2f} s")
    out = Console()
    out.print("\n[bold]from the end of speech to[/]")
    out.print(table)
    out.print(f"\nthe answer is in {output}")


class _Turn:
    """Follows one turn: prints words as they come and hands its audio on."""

    def __init__(self, *, quiet: bool) -> None:
        self.transcript = ""
        self.language = ""
        self._answer: Answered | None = None
        self._quiet = quiet

    def audio(self, events: Iterator[AnswerEvent]) -> Iterator[Samples]:
        from stepaudio.speech.answer import Answered, Heard, Said, Wrote

        for event in events:
            match event:
                case Heard(transcript):
                    self.transcript, self.language = transcript.text, transcript.language
                    self._print(f"you   {transcript.text}\nreply ")
                case Wrote(delta):
                    self._print(delta)
                case Said(speech):
                    yield speech.samples
                case Answered():
                    self._answer = event
                    self._print("\n")

    def answered(self) -> Answered:
        if self._answer is None:
            raise BackendError("the turn ended without an answer; try again")
        return self._answer

    def _print(self, text: str) -> None:
        if not self._quiet:
            print(text, end="", flush=True)
