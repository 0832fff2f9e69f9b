"""Instructions and dialogues: ComplexBench and StepEval-Audio-360."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stepaudio.eval.datasets.files import parquet, tar_members, the_file
from stepaudio.eval.items import Clip, Item, Request, Turn
from stepaudio.speech.reading import script

_AUDIO = (".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus")


def complexbench(path: Path) -> list[Item]:
    """ComplexBench in Chinese; its groups are the composition's categories."""
    items = []
    for row in json.loads(the_file(path, "data_final.json").read_text(encoding="utf-8")):
        questions = [
            {"question": each["question"], "rule": each.get("rule"), "dep": each["dep"]}
            for each in row["scoring_questions"]
        ]
        request = Request(str(row["main_id"]), "converse", "zh", turns=(Turn(row["instruction"]),))
        group = str(row.get("category") or "").split("_")[0] or "complexbench"
        items.append(Item(request, {"questions": questions}, group))
    return items


def stepeval(path: Path) -> list[Item]:
    """StepEval-Audio-360: the user's turns, with their recordings; its groups are the nine dimensions.

    A turn's recording is named by its `audio` field, or by its content when that is the name of an audio file.
    """
    recordings = _recordings(path)
    items = []
    for row in parquet(path / "data" if (path / "data").is_dir() else path):
        turns = [_turn(each, recordings) for each in row["conversation"] if each["role"] in ("user", "human")]
        if not turns:
            raise ValueError(f"the conversation {row['conversation_id']} has no user's turn")
        language = script("".join(turn.text for turn in turns)) or "zh"
        name = str(row["conversation_id"])
        items.append(Item(Request(name, "converse", language, turns=tuple(turns)), {}, str(row["category"]).lower()))
    return items


def _turn(said: Mapping[str, Any], recordings: Mapping[str, Clip]) -> Turn:
    content, audio = str(said["content"] or ""), said.get("audio")
    if isinstance(audio, dict) and audio.get("bytes"):
        return Turn(content, Clip(audio["bytes"]))
    named = str(audio.get("path") if isinstance(audio, dict) else audio or "")
    if not named and content.endswith(_AUDIO):
        named, content = content, ""
    if not named:
        return Turn(content)
    return Turn(content, recordings[PurePosixPath(named).name])


def _recordings(path: Path) -> dict[str, Clip]:
    archive = path / "audios.tar.gz"
    if archive.is_file() and not (path / "audios").is_dir():
        return {PurePosixPath(name).name: Clip(data) for name, data in tar_members(archive).items()}
    return {file.name: Clip(file) for file in sorted(path.rglob("*")) if file.suffix in _AUDIO}
