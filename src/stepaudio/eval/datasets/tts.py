"""Texts to say: SEED-TTS's lists, and plain sentences."""

from __future__ import annotations

from pathlib import Path

from stepaudio.eval.datasets.files import present
from stepaudio.eval.items import Clip, Item, Request


def seed_zh(path: Path) -> list[Item]:
    return _seed(path, "zh", "meta.lst", "seed zh")


def seed_en(path: Path) -> list[Item]:
    return _seed(path, "en", "meta.lst", "seed en")


def seed_hard(path: Path) -> list[Item]:
    return _seed(path, "zh", "hardcase.lst", "seed hard")


def _seed(path: Path, language: str, name: str, group: str) -> list[Item]:
    """The voice to speak in is the prompt's; prompts lie relative to the list."""
    if path.is_dir():
        path = path / language / name if (path / language).is_dir() else path / name
    items = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        utterance, prompt_text, prompt, text, *_ = line.split("|")
        clip = Clip(present(path.parent / prompt))
        items.append(Item(Request(utterance, "say", language, text, clip), {"prompt": prompt_text}, group))
    return items


def sentences(path: Path) -> list[Item]:
    """Sentences as written, and after a tab as said where a normaliser would not know."""
    items = []
    for file in sorted(path.glob("*.tsv")) if path.is_dir() else [path]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                written, *said = line.rstrip().split("\t")
                request = Request(f"{file.stem}/{number:03}", "say", file.stem, written)
                items.append(Item(request, {"said": said[0]} if said else {}, f"sentences {file.stem}"))
    return items
