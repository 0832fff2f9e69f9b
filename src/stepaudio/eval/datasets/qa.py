"""Questions with answers. What has no recording is spoken by the teachers before it is asked."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepaudio.eval.datasets.files import json_lines, parquet, present, the_file
from stepaudio.eval.items import Clip, Item, Request, Turn

_OPTION = re.compile(r"(?:^|(?<=[\s;；,，。？?]))([A-D])\s*[.．、:：]\s*")


def llama_questions(path: Path) -> list[Item]:
    """Llama Questions: 300 of them, spoken."""
    listed = the_file(path, "llama_questions_300.tsv")
    items = []
    with listed.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            name = row["Wav Filename"].strip()
            audio = Clip(present(listed.parent / name))
            # "Challenger Deep, Mariana Trench" is two answers, either of which will do.
            answers = [
                row["Answer"].strip(),
                *(part.strip() for part in row["Answer"].split(",") if "," in row["Answer"]),
            ]
            items.append(_item(Path(name).stem, row["Questions"], answers, "en", "llama questions", audio))
    return items


def web_questions(path: Path) -> list[Item]:
    """WebQuestions, as JSON (brmson/dataset-factoid-webquestions) or as the hub's parquet."""
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [_item(row["qId"], row["qText"], row["answers"], "en", "web questions") for row in rows]
    rows = list(parquet(path, "*test*.parquet"))
    return [_item(str(i), row["question"], row["answers"], "en", "web questions") for i, row in enumerate(rows)]


def triviaqa(path: Path) -> list[Item]:
    """TriviaQA's own JSON. Which part of it was asked has to be said beside the figure."""
    rows = json.loads(path.read_text(encoding="utf-8"))["Data"]
    return [
        _item(row["QuestionId"], row["Question"], [row["Answer"]["Value"], *row["Answer"]["Aliases"]], "en", "triviaqa")
        for row in rows
    ]


def uro(path: Path) -> list[Item]:
    """A set of URO-Bench with free answers."""
    items = []
    for row in _uro_rows(path):
        answers = row["target_text"] if isinstance(row["target_text"], list) else [row["target_text"]]
        text = row["source_text"]
        items.append(
            _item(str(row["id"]), text, answers, "en" if text.isascii() else "zh", "uro", _uro_clip(row, path))
        )
    return items


def hsk(path: Path) -> list[Item]:
    """Listening comprehension: the options stand in the transcript, the answer is a letter."""
    items = []
    for row in _uro_rows(path):
        parts = _OPTION.split(row["source_text"])
        options = [re.sub(r"[;；,，]\s*$", "", part.strip()) for part in parts[2::2]]
        if len(options) < 2 or parts[1::2] != list("ABCD"[: len(options)]):
            raise ValueError(f"no options A, B, ... in {row['source_text']!r}")
        answer = "ABCD".index(row["target_text"].strip()[0])
        request = Request(str(row["id"]), "converse", "zh", turns=(Turn(parts[0].strip(), _uro_clip(row, path)),))
        items.append(Item(request, {"options": options, "answer": answer}, "hsk"))
    return items


def _uro_rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl" or (path / "test.jsonl").is_file():
        return json_lines(path if path.is_file() else path / "test.jsonl")
    return parquet(path, "test*.parquet")


def _uro_clip(row: dict[str, Any], path: Path) -> Clip:
    audio = row["source_wav"]
    if isinstance(audio, dict):
        return Clip(audio["bytes"])
    return Clip(present((path if path.is_dir() else path.parent) / audio))


def _item(name: str, question: str, answers: list[str], language: str, group: str, clip: Clip | None = None) -> Item:
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"the question {name} has no answers")
    request = Request(name, "converse", language, turns=(Turn(question.strip(), clip),))
    return Item(request, {"answers": [str(answer) for answer in answers]}, group)
