"""Datasets in the layouts that they are published in, by one line of text: `ADAPTER:PATH`.

PATH is a folder or file, or `hub:OWNER/NAME` (fetched by `huggingface_hub`, which finds it in its cache when offline).
A wrong layout gets an error that names the expected one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from stepaudio.errors import InputError, MissingError, NotFoundError
from stepaudio.eval.items import Item, Kind


@dataclass(frozen=True, slots=True)
class Adapter:
    """A reader of one layout: its function, the kind of its items, and the layout as an error tells it."""

    target: str
    kind: Kind
    layout: str


ADAPTERS: dict[str, Adapter] = {
    "librispeech": Adapter(
        "asr:librispeech", "transcribe", "SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside SPEAKER-CHAPTER-NUMBER.flac"
    ),
    "aishell1": Adapter(
        "asr:aishell1",
        "transcribe",
        "data_aishell with transcript/aishell_transcript_v0.8.txt and wav/test/SPEAKER/NAME.wav",
    ),
    "aishell2": Adapter(
        "asr:aishell2", "transcribe", "iOS/test (or another) with wav.scp (NAME PATH) and trans.txt (NAME TEXT)"
    ),
    "wenetspeech-net": Adapter(
        "asr:wenetspeech_net", "transcribe", "WenetSpeech.json with audios of segments in the subset TEST_NET"
    ),
    "wenetspeech-meeting": Adapter(
        "asr:wenetspeech_meeting", "transcribe", "WenetSpeech.json with audios of segments in the subset TEST_MEETING"
    ),
    "manifest": Adapter(
        "asr:manifest",
        "transcribe",
        "a JSONL file, or a folder with manifest.jsonl: path, text, lang (speaker, seconds)",
    ),
    "asr-parquet": Adapter(
        "asr:parquet", "transcribe", "*.parquet with audio {bytes, path} and text, sentence or transcription"
    ),
    "seed-zh": Adapter(
        "tts:seed_zh", "say", "meta.lst of NAME|PROMPT TEXT|PROMPT WAV|TEXT, or a folder with zh/meta.lst"
    ),
    "seed-en": Adapter(
        "tts:seed_en", "say", "meta.lst of NAME|PROMPT TEXT|PROMPT WAV|TEXT, or a folder with en/meta.lst"
    ),
    "seed-hard": Adapter(
        "tts:seed_hard", "say", "hardcase.lst of NAME|PROMPT TEXT|PROMPT WAV|TEXT, or a folder with zh/hardcase.lst"
    ),
    "sentences": Adapter(
        "tts:sentences", "say", "a text file LANGUAGE.tsv of sentences, as written and as said, or a folder of them"
    ),
    "llama-questions": Adapter(
        "qa:llama_questions", "converse", "llama_questions_300.tsv (Questions, Answer, Wav Filename) beside 1.wav ..."
    ),
    "web-questions": Adapter(
        "qa:web_questions", "converse", "a JSON list of {qId, qText, answers}, or *.parquet with question and answers"
    ),
    "triviaqa": Adapter(
        "qa:triviaqa", "converse", "JSON with Data: [{QuestionId, Question, Answer: {Value, Aliases}}]"
    ),
    "uro-qa": Adapter(
        "qa:uro", "converse", "URO-Bench's test*.parquet or test.jsonl: id, source_wav, source_text, target_text"
    ),
    "hsk": Adapter(
        "qa:hsk",
        "converse",
        "URO-Bench's HSK layout: source_wav, source_text with the options A: ... B: ..., target_text with the letter",
    ),
    "complexbench": Adapter(
        "chat:complexbench",
        "converse",
        "data_final.json: a list of {main_id, instruction, scoring_questions: [{question, rule, dep}]}",
    ),
    "stepeval-360": Adapter(
        "chat:stepeval",
        "converse",
        "data/*.parquet (conversation_id, category, conversation of {role, content}) beside audios.tar.gz or audios/",
    ),
    "own": Adapter("own:own", "converse", "a folder with items.jsonl, as evals/README.md tells"),
}


class LayoutError(InputError):
    """The files are not in the layout that the adapter reads."""

    code = "wrong_layout"


def read_set(written: str) -> list[Item]:
    """The items of `ADAPTER:PATH`, their group the set's name. Raises LayoutError, NotFoundError, MissingError."""
    name, colon, place = written.partition(":")
    if not colon or name not in ADAPTERS:
        raise NotFoundError(
            f"{written!r} is no dataset; name one as ADAPTER:PATH with {', '.join(ADAPTERS)}", param="on"
        )
    path = fetch(place.removeprefix("hub:")) if place.startswith("hub:") else Path(place)
    return read_path(name, path)


def read_path(name: str, path: Path) -> list[Item]:
    """The items that an adapter reads at a path."""
    adapter = ADAPTERS[name]
    if not path.exists():
        raise NotFoundError(f"there is nothing at {path}; {name} reads {adapter.layout}", param="on")
    module, _, function = adapter.target.partition(":")
    read = cast(
        "Callable[[Path], list[Item]]", getattr(importlib.import_module(f"stepaudio.eval.datasets.{module}"), function)
    )
    try:
        items = read(path)
    except (KeyError, ValueError, TypeError, IndexError, OSError) as error:
        raise LayoutError(
            f"{path} is not what {name} reads ({error!r}); expected: {adapter.layout}", param="on"
        ) from None
    if not items:
        raise LayoutError(f"{path} holds no items; {name} expects: {adapter.layout}", param="on")
    return [item if item.group else replace(item, group=name) for item in items]


def fetch(identity: str) -> Path:
    """A snapshot of a dataset of the hub, OWNER/NAME or OWNER/NAME@REVISION, from its cache or fetched."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingError("datasets of the hub need huggingface_hub; run: pip install huggingface_hub") from None
    name, _, revision = identity.partition("@")
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision or None))
    except HFValidationError as error:
        raise InputError(f"{identity!r} is no dataset of the hub: {error}", param="on") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise NotFoundError(f"the dataset {identity} cannot be had from the hub: {error}", param="on") from None
