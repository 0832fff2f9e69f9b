"""A judge's prompt: a versioned file, and the digest that every judged figure carries."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from stepaudio.errors import NotFoundError
from stepaudio.speech.roles import Message, Tool

_FOLDER = resources.files("stepaudio.eval.judges") / "prompts"
Verdict = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a judge is told and what it has to answer: first a reason, then the judgement."""

    name: str
    version: int
    about: str
    digest: str
    system: str
    user: str
    fields: tuple[dict[str, Any], ...]

    @property
    def label(self) -> str:
        return f"{self.name} v{self.version} ({self.digest[:8]})"

    @property
    def judged(self) -> tuple[str, ...]:
        """The fields that are judgements."""
        return tuple(each["name"] for each in self.fields if each["type"] != "string")

    def messages(self, values: dict[str, str]) -> list[Message]:
        """Filled in. Marks that delimit what is judged are broken up inside of it."""
        filled = {name: value.replace("<", "‹").replace(">", "›") for name, value in values.items()}
        return [Message("system", self.system.strip()), Message("user", self.user.strip().format(**filled))]

    def tool(self) -> Tool:
        """The function that the judge is made to call with its verdict."""
        properties = {each["name"]: _schema(each) for each in self.fields}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return Tool("verdict", f"Give your verdict: {self.about}.", schema)


@cache
def read_prompt(name: str) -> Prompt:
    """The prompt of that name. Raises NotFoundError."""
    file = _FOLDER / f"{name}.toml"
    if not file.is_file():
        raise NotFoundError(f"there is no judge's prompt called {name!r}")
    raw = file.read_bytes()
    table = tomllib.loads(raw.decode())
    return Prompt(
        table["name"],
        table["version"],
        table["about"],
        hashlib.sha256(raw).hexdigest(),
        table["system"],
        table["user"],
        tuple(table["fields"]),
    )


def _schema(field: dict[str, Any]) -> dict[str, Any]:
    match field["type"]:
        case "bool":
            return {"type": "boolean", "description": field["about"]}
        case "scale":
            return {"type": "integer", "minimum": 1, "maximum": 5, "description": field["about"]}
        case "choice":
            return {"type": "string", "enum": list(field["options"]), "description": field["about"]}
        case _:
            return {"type": "string", "description": field["about"]}
