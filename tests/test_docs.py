"""The examples in the documentation run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from stepaudio.cli import app

ROOT = Path(__file__).parent.parent
EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in (ROOT / "docs/python.md",)
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.weights
@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for example in (ROOT / "examples").glob("*.flac"):
        shutil.copy(example, tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


def test_commands_exist_with_their_options() -> None:
    """Every `stepaudio VERB ... --option` of a block or a phrase of code, in the documentation and in the pipelines."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "runs").glob("*.sh")]
    checked = 0
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        code = [text] if page.suffix == ".sh" else re.findall(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
        for line in "\n".join(map("".join, code)).splitlines():
            found = re.match(r"\s*(?:\w+=\S+ )*stepaudio (.*?)(?:\s{2,}|#|\||;|$)", line)
            if found:
                _check_command(found[1].split(), f"{page.name}: {line.strip()}")
                checked += 1
    assert checked > 80


def _check_command(words: list[str], where: str) -> None:
    command: Any = get_command(app)
    while words and (known := getattr(command, "commands", {})):
        assert words[0] in known or words[0].startswith("--") or words[0].isupper(), where
        command = known.get(words.pop(0), command)
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        option = word.partition("=")[0]
        assert not re.fullmatch(r"--[a-z][a-z-]*", option) or option in options, f"{where} has no {option}"


def test_pages_name_files_that_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
