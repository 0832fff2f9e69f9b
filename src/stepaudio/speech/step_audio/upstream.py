"""The sentences of a released checkpoint's prompts, read out of the source that was released with it.

A checkpoint wants the exact sentences that it was trained on. They stand as literals in StepFun's code (Apache-2.0),
which `stepaudio pull` fetches; this reads them without running any of it and writes them as a `prompts.toml`
(`stepaudio.lm.prompts.Wording`).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from stepaudio.errors import InputError

_FIELDS = {
    "sys_prompt_for_rap": "rap",
    "sys_prompt_for_vocal": "hum",
    "sys_prompt_wo_spk": "speak",
    "sys_prompt_with_spk": "speak_named",
    "AUDIO_EDIT_SYSTEM_PROMPT": "edit",
    "AUDIO_EDIT_CLONE_SYSTEM_PROMPT_TPL": "clone",
}
_PLACEHOLDERS = {  # in this order, so that what one puts in is not taken for another's
    "{speaker}": "{name}",
    "{}": "{speaker}",
    "{prompt_text}": "{text}",
    "{prompt_wav_tokens}": "{audio}",
}
_VARIABLES = {"audio_text": "{text}", "edit_info": "{option}", "text": "{target}"}
_BUILDER, _RESULT = "_build_audio_edit_instruction", "instruct_prefix"
_KINDS = {"vad": "trim"}


def make_prompts(folder: Path) -> bytes:
    """A `prompts.toml` from the Python files in a folder. Raises InputError when they hold no known sentences."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not Python: {error}") from error
        found |= {_FIELDS[name]: _template(name, text) for name, text in _literals(tree) if name in _FIELDS}
        found |= dict(_instructions(tree))
    if not found:
        raise InputError(f"the files in {folder} hold none of the known prompts; was the release rearranged?")
    lines = [
        "format = 1",
        *(f"{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in sorted(found.items())),
    ]
    return ("\n".join(lines) + "\n").encode()


def _literals(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, text) of every string that a name is assigned to, or that stands under a key of a dict."""
    for node in ast.walk(tree):
        pairs: list[tuple[ast.AST | None, ast.AST]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
        for key, value in pairs:
            name = key.id if isinstance(key, ast.Name) else key.value if isinstance(key, ast.Constant) else None
            if isinstance(name, str) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield name, value.value


def _template(name: str, text: str) -> str:
    if name not in ("sys_prompt_with_spk", "AUDIO_EDIT_CLONE_SYSTEM_PROMPT_TPL"):
        return text
    for theirs, ours in _PLACEHOLDERS.items():
        text = text.replace(theirs, ours)
    return text


def _instructions(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Fields `edit_*` from the function that picks an instruction by the kind of edit."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == _BUILDER:
            for statement in node.body:
                yield from _branch(statement, frozenset(), "")


def _branch(statement: ast.stmt, kinds: frozenset[str], suffix: str) -> Iterator[tuple[str, str]]:
    if isinstance(statement, ast.If):
        named = {value.value for value in ast.walk(statement.test) if isinstance(value, ast.Constant)}
        removes = named == {"remove"}
        for inner in statement.body:
            inner_kinds = kinds if removes else frozenset(map(str, named))
            yield from _branch(inner, inner_kinds, "_remove" if removes else suffix)
        for inner in statement.orelse:
            yield from _branch(inner, kinds, suffix)
    elif isinstance(statement, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == _RESULT for target in statement.targets
    ):
        # One newline stands between the instruction and the audio.
        text = _text(statement.value) + "\n"
        for kind in sorted(kinds):
            if not (kind == "speed" and suffix):
                yield f"edit_{_KINDS.get(kind, kind)}{suffix}", text


def _text(value: ast.expr) -> str:
    """A string literal with our placeholders for the variables in it."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    if not isinstance(value, ast.JoinedStr):
        raise InputError("an instruction of the release is not a string literal; was the release rearranged?")
    parts = []
    for part in value.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
            parts.append(_VARIABLES[part.value.id])
    return "".join(parts)
