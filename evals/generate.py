"""Makes the sets in this folder from texts/*.toml: `python evals/generate.py [SET ...]`.

The teachers read the texts: hibari and Kokoro in English, Kokoro in Chinese, one voice after another, so that the sets
are the same wherever they are made but for the floating point of the machine. What lies here was made by this script;
run it again after a text has changed.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import stepaudio
from stepaudio.audio.encode import Encoder
from stepaudio.audio.resample import resample
from stepaudio.speech.bundle import Bundle

HERE = Path(__file__).parent
RATE, BIT_RATE = 16_000, 24_000
VOICES = {
    "en": ("heart", "am_michael", "bf_emma", "af_bella", "bm_george", "am_fenrir", "af_nicole", "bm_daniel"),
    "zh": ("zf_xiaoxiao", "zm_yunxi", "zf_xiaobei", "zm_yunjian", "zf_xiaoni", "zm_yunyang", "zf_xiaoyi", "zm_yunxia"),
}
LANGUAGES = tuple(VOICES)


class Reader:
    """Reads texts into the audio folder of a set."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self._voices = {language: cycle(voices) for language, voices in VOICES.items()}

    def voice(self, language: str) -> str:
        """Whose turn it is."""
        return next(self._voices[language])

    def read(self, text: str, voice: str, name: str) -> tuple[str, float]:
        """The recording's path in the set, and its seconds."""
        chunks = [speech.samples for speech in self._bundle.say(text, voice=voice)]
        samples = resample(np.concatenate(chunks), self._bundle.speaker.rate, RATE)
        path = self._folder / "audio" / f"{name}.opus"
        path.parent.mkdir(parents=True, exist_ok=True)
        encoder = Encoder("opus", RATE, BIT_RATE)
        path.write_bytes(encoder.push(samples) + encoder.flush())
        return f"audio/{name}.opus", round(len(samples) / RATE, 2)


def asr(texts: dict[str, Any], reader: Reader) -> Iterator[dict[str, Any]]:
    for language in LANGUAGES:
        for number, text in enumerate(texts[language]):
            name, voice = f"{language}-{number:02}", reader.voice(language)
            audio, seconds = reader.read(text, voice, name)
            item = _item(name, "transcribe", language, f"own {language}", voice, {"text": text, "seconds": seconds})
            yield item | {"audio": audio}


def qa(texts: dict[str, Any], reader: Reader) -> Iterator[dict[str, Any]]:
    for language in LANGUAGES:
        for number, (question, *answers) in enumerate(texts[language]):
            name = f"{language}-{number:02}"
            audio, _ = reader.read(question, reader.voice(language), name)
            item = _item(name, "converse", language, f"own {language}", "", {"answers": answers})
            yield item | {"turns": [{"text": question, "audio": audio}]}


def listening(texts: dict[str, Any], reader: Reader) -> Iterator[dict[str, Any]]:
    for language, number, row in _rows(texts):
        name = f"{language}-{number:02}"
        audio, _ = reader.read(row["heard"], reader.voice(language), name)
        reference = {"options": row["options"], "answer": 0}
        item = _item(name, "converse", language, f"own {language}", "", reference)
        yield item | {"turns": [{"text": row["heard"], "audio": audio}]}


def instructions(texts: dict[str, Any], reader: Reader) -> Iterator[dict[str, Any]]:
    for language, number, row in _rows(texts):
        name = f"{language}-{number:02}"
        audio, _ = reader.read(row["heard"], reader.voice(language), name)
        questions = [each | ({"of": "reply"} if "rule" in each else {}) for each in row["questions"]]
        item = _item(name, "converse", language, f"own {language}", "", {"questions": questions})
        yield item | {"turns": [{"text": row["heard"], "audio": audio}]}


def tools(texts: dict[str, Any], reader: Reader) -> Iterator[dict[str, Any]]:
    _write(HERE / "tools" / "tools.json", json.dumps(texts["tools"], ensure_ascii=False, indent=1))
    for language, number, row in _rows(texts):
        name = f"{language}-{number:02}"
        audio, _ = reader.read(row["heard"], reader.voice(language), name)
        item = _item(name, "converse", language, f"own {language}", "", {"call": row.get("call")})
        names = [tool["name"] for tool in texts["tools"]]
        yield item | {"turns": [{"text": row["heard"], "audio": audio}], "tools": names}


def dialogues(texts: dict[str, Any], reader: Reader) -> Iterator[dict[str, Any]]:
    for language, number, row in _rows(texts):
        name = f"{language}-{number:02}"
        item = _item(name, "converse", language, row["dimension"], "", {})
        yield item | {"turns": _turns(row["turns"], language, name, reader)}


def following(texts: dict[str, Any], reader: Reader) -> Iterator[dict[str, Any]]:
    for language, number, row in _rows(texts):
        name = f"{language}-{number:02}"
        item = _item(name, "converse", language, row["category"], "", {"expect": row.get("expect")})
        yield item | {"turns": _turns(row["turns"], language, name, reader)}


def _rows(texts: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    return ((language, number, row) for language in LANGUAGES for number, row in enumerate(texts[language]))


def _turns(texts: list[str], language: str, name: str, reader: Reader) -> list[dict[str, str]]:
    """A dialogue is in one voice."""
    voice = reader.voice(language)
    return [
        {"text": text, "audio": reader.read(text, voice, f"{name}-{number}")[0]} for number, text in enumerate(texts)
    ]


def _item(name: str, kind: str, language: str, group: str, cluster: str, reference: dict[str, Any]) -> dict[str, Any]:
    item = {"id": name, "kind": kind, "language": language, "group": group, "reference": reference}
    return item | ({"cluster": cluster} if cluster else {})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


SETS = {each.__name__: each for each in (asr, qa, listening, instructions, tools, dialogues, following)}


def main() -> None:
    wanted = sys.argv[1:] or list(SETS)
    with stepaudio.load("small") as bundle:
        for name in wanted:
            texts = tomllib.loads((HERE / "texts" / f"{name}.toml").read_text(encoding="utf-8"))
            items = list(SETS[name](texts, Reader(bundle, HERE / name)))
            lines = [json.dumps(item, ensure_ascii=False) for item in items]
            _write(HERE / name / "items.jsonl", "\n".join(lines))
            print(f"{name}: {len(items)} items")


if __name__ == "__main__":
    main()
