"""`stepaudio tokenize`: recordings to dual-codebook tokens."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from stepaudio.cli.output import JsonOption, console, print_json, progress
from stepaudio.errors import MissingError


def tokenize(
    files: Annotated[list[Path], typer.Argument(help="Recordings; anything libsndfile or FFmpeg decodes.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="OUT.npz or OUT.jsonl.")],
    tokenizer: Annotated[
        str,
        typer.Option(help="nano-tokenizer, or a folder: the released Step-Audio-Tokenizer or one that was trained."),
    ] = "nano-tokenizer",
    json: JsonOption = False,
) -> None:
    """Turn recordings into interleaved linguistic and semantic tokens."""
    if importlib.util.find_spec("torch") is None:
        raise MissingError("tokenizing needs torch; run: pip install 'stepaudio[train]'")
    from stepaudio.tokenizer.dual import DualTokenizer
    from stepaudio.tokenizer.files import tokenize as write_tokens

    done: list[dict[str, Any]] = []
    with progress(quiet=json) as bars:
        task = bars.add_task("tokenizing", total=len(files))
        for one in write_tokens(files, output, DualTokenizer.load(tokenizer)):
            bars.update(task, advance=1, description=Path(one.file).name)
            done.append({"file": one.file, "seconds": one.seconds, "tokens": len(one.codes.tokens())})
    if json:
        print_json({"output": str(output), "files": done})
    else:
        console().print(f"{output}: {sum(row['tokens'] for row in done)} tokens of {len(done)} recordings")
