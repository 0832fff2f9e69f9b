"""Recordings with transcripts. Clusters are speakers where the set knows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepaudio.eval.datasets.files import json_lines, present, the_file
from stepaudio.eval.datasets.files import parquet as parquet_rows
from stepaudio.eval.items import Clip, Item, Request


def librispeech(path: Path) -> list[Item]:
    """A part such as test-clean; clusters are speakers."""
    items = []
    for transcripts in sorted(path.rglob("*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, text = line.split(" ", 1)
            audio = present(transcripts.parent / f"{name}.flac")
            items.append(_item(name, Clip(audio), text, "en", path.name, name.split("-")[0]))
    return items


def aishell1(path: Path) -> list[Item]:
    """The test part of AISHELL-1."""
    transcripts = the_file(path, "aishell_transcript_v0.8.txt")
    texts = dict(
        line.split(maxsplit=1) for line in transcripts.read_text(encoding="utf-8").splitlines() if line.strip()
    )
    wavs = sorted((transcripts.parent.parent / "wav" / "test").rglob("*.wav"))
    return [_item(wav.stem, Clip(wav), texts[wav.stem], "zh", "aishell1 test", wav.parent.name) for wav in wavs]


def aishell2(path: Path) -> list[Item]:
    """A part of AISHELL-2's development and test sets, such as iOS/test."""
    listed = dict(line.split(maxsplit=1) for line in (path / "wav.scp").read_text(encoding="utf-8").splitlines())
    items = []
    for line in (path / "trans.txt").read_text(encoding="utf-8").splitlines():
        name, text = line.split(maxsplit=1)
        audio = present(path / listed[name].strip())
        items.append(
            _item(name, Clip(audio), text, "zh", f"aishell2 {path.parent.name} {path.name}", audio.parent.name)
        )
    return items


def wenetspeech_net(path: Path) -> list[Item]:
    return _wenetspeech(path, "TEST_NET")


def wenetspeech_meeting(path: Path) -> list[Item]:
    return _wenetspeech(path, "TEST_MEETING")


def _wenetspeech(path: Path, subset: str) -> list[Item]:
    listed = the_file(path, "WenetSpeech.json")
    items = []
    for recording in json.loads(listed.read_text(encoding="utf-8"))["audios"]:
        for segment in recording["segments"]:
            if subset in segment["subsets"]:
                audio = present(listed.parent / recording["path"])
                clip = Clip(audio, float(segment["begin_time"]), float(segment["end_time"]))
                group = f"wenetspeech {subset.lower()}"
                items.append(_item(segment["sid"], clip, segment["text"], "zh", group, recording["aid"]))
    return items


def manifest(path: Path) -> list[Item]:
    """Any list of recordings."""
    path = path / "manifest.jsonl" if path.is_dir() else path
    items = []
    for row in json_lines(path):
        audio = present(path.parent / (row.get("path") or row["audio"]))
        language = row.get("lang") or row["language"]
        item = _item(row.get("id") or _plain(row), Clip(audio), row["text"], language, "", row.get("speaker", ""))
        if row.get("seconds"):
            item = Item(item.request, {**item.reference, "seconds": row["seconds"]}, item.group, item.cluster)
        items.append(item)
    return items


def parquet(path: Path) -> list[Item]:
    """A dataset of the hub with its audio inside."""
    items = []
    for number, row in enumerate(parquet_rows(path)):
        text = next(
            row[name] for name in ("text", "sentence", "transcription", "transcript") if row.get(name) is not None
        )
        name = str(row.get("id") or Path(row["audio"].get("path") or f"{number}").stem)
        language = str(row.get("language") or ("en" if text.isascii() else "zh"))
        speaker = str(row.get("speaker_id") or row.get("client_id") or "")
        items.append(_item(name, Clip(row["audio"]["bytes"]), text, language, "", speaker))
    return items


def _item(name: str, clip: Clip, text: str, language: str, group: str, speaker: str) -> Item:
    return Item(Request(name, "transcribe", language, clip=clip), {"text": text}, group, speaker)


def _plain(row: Mapping[str, Any]) -> str:
    """A name for an item that has only its file's."""
    return str(Path(row.get("path") or row["audio"]).with_suffix(""))
