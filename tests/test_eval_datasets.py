"""Every published layout, in a fixture of a few items, and what a wrong one is told."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepaudio.audio.encode import encode, write
from stepaudio.errors import InputError, NotFoundError
from stepaudio.eval.datasets import ADAPTERS, LayoutError, read_set
from stepaudio.eval.items import Item

SOUND = np.sin(np.arange(8_000) / 20).astype(np.float32) / 2


def sound(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, SOUND, 16_000)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WAV = encode(SOUND, 16_000, "wav")


def librispeech(root: Path) -> Path:
    sound(root / "test-clean/61/70968/61-70968-0000.flac")
    sound(root / "test-clean/61/70968/61-70968-0001.flac")
    text(root / "test-clean/61/70968/61-70968.trans.txt", "61-70968-0000 HE BEGAN\n61-70968-0001 GIVE NOT SO\n")
    return root / "test-clean"


def aishell1(root: Path) -> Path:
    sound(root / "data_aishell/wav/test/S0764/BAC009S0764W0121.wav")
    text(
        root / "data_aishell/transcript/aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市\nBAC009S0764W0121 甚至 出现 交易 几乎 停滞 的 情况\n",
    )
    return root / "data_aishell"


def aishell2(root: Path) -> Path:
    sound(root / "iOS/test/wav/T0001/IT0001W0001.wav")
    text(root / "iOS/test/wav.scp", "IT0001W0001\twav/T0001/IT0001W0001.wav\n")
    text(root / "iOS/test/trans.txt", "IT0001W0001\t换一首歌\n")
    return root / "iOS/test"


def wenetspeech(subset: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        sound(root / "audio/test_net/B00000/TEST_NET_Y0000000000_5W9.opus")
        segments = [
            {"sid": "S1", "begin_time": 0.1, "end_time": 0.3, "subsets": [subset], "text": "您好"},
            {"sid": "S2", "begin_time": 0.3, "end_time": 0.4, "subsets": ["L"], "text": "再见"},
        ]
        path = "audio/test_net/B00000/TEST_NET_Y0000000000_5W9.opus"
        audios = [{"aid": "TEST_NET_Y0", "path": path, "segments": segments}]
        text(root / "WenetSpeech.json", json.dumps({"audios": audios}))
        return root

    return make


def manifest(root: Path) -> Path:
    sound(root / "a.wav")
    row = {"path": "a.wav", "text": "hello", "lang": "en", "speaker": "x", "seconds": 0.5}
    text(root / "manifest.jsonl", json.dumps(row) + "\n")
    return root


def asr_parquet(root: Path) -> Path:
    rows = [{"id": "u1", "audio": {"bytes": WAV, "path": "u1.wav"}, "text": "hello there", "speaker_id": 7}]
    return parquet(root / "data/test-00000-of-00001.parquet", rows).parent


def seed(language: str, name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        sound(root / language / "prompt-wavs/p1.wav")
        text(root / language / name, "u1|some prompt|prompt-wavs/p1.wav|what to say|wavs/u1.wav\n")
        return root

    return make


def sentences(root: Path) -> Path:
    text(root / "en.tsv", "It costs $5.\tit costs five dollars\nPlain words.\n")
    return root


def llama_questions(root: Path) -> Path:
    sound(root / "1.wav")
    text(
        root / "llama_questions_300.tsv",
        "Questions\tAnswer\tWav Filename\nDeepest part of the ocean?\tChallenger Deep, Mariana Trench\t1.wav\n",
    )
    return root


def web_questions(root: Path) -> Path:
    row = {"qId": "wqs000000", "qText": "what does jamaican people speak?", "answers": ["Jamaican English"]}
    return text(root / "test.json", json.dumps([row]))


def web_questions_hub(root: Path) -> Path:
    rows = [{"url": "u", "question": "what does jamaican people speak?", "answers": ["Jamaican English", "Patois"]}]
    return parquet(root / "data/test-00000.parquet", rows).parent


def triviaqa(root: Path) -> Path:
    answer = {"Value": "Sunset Boulevard", "Aliases": ["Sunset Blvd"], "NormalizedAliases": ["sunset blvd"]}
    row = {"QuestionId": "tc_33", "Question": "Which Lloyd Webber musical?", "Answer": answer}
    return text(root / "qa/wikipedia-dev.json", json.dumps({"Data": [row], "Domain": "Wikipedia"}))


def uro_jsonl(root: Path) -> Path:
    sound(root / "wav/1.wav")
    row = {"id": 1, "source_wav": "wav/1.wav", "source_text": "世界上最高的山是哪座？", "target_text": "珠穆朗玛峰"}
    text(root / "test.jsonl", json.dumps(row))
    return root


def hsk(root: Path) -> Path:
    asked = "小王怎么去上班？ A: 走路; B: 坐车; C: 骑车; D: 开车"
    rows = [{"id": 0, "source_wav": {"bytes": WAV, "path": "0.wav"}, "source_text": asked, "target_text": "B"}]
    return parquet(root / "HSK5-zh/test-00000.parquet", rows).parent


def complexbench(root: Path) -> Path:
    asked = [
        {"point_id": 0, "question": "对吗？", "rule": None, "dep": []},
        {"point_id": 1, "question": "长吗？", "rule": "model_length:[1,9]", "dep": [0]},
    ]
    row = {"main_id": 899, "instruction": "写一句话", "category": "Selection_2", "scoring_questions": asked}
    text(root / "data/data_final.json", json.dumps([row]))
    return root


def stepeval(root: Path) -> Path:
    turns = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "t2.wav"},
    ]
    row = {"conversation_id": "c1", "category": "Role-playing", "conversation": turns}
    parquet(root / "data/test-00000.parquet", [row])
    with tarfile.open(root / "audios.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("./audios/t2.wav")
        member.size = len(WAV)
        archive.addfile(member, io.BytesIO(WAV))
    return root


def own(root: Path) -> Path:
    sound(root / "audio/a.wav")
    text(root / "tools.json", json.dumps([{"name": "f", "description": "d", "parameters": {"type": "object"}}]))
    row = {"id": "a", "kind": "converse", "language": "en", "group": "g", "tools": ["f"], "reference": {"call": None}}
    text(root / "items.jsonl", json.dumps(row | {"turns": [{"text": "hi", "audio": "audio/a.wav"}]}))
    return root


# adapter, its fixture, what the first item has to be: group, language, and what is told apart about it
CASES: list[tuple[str, Callable[[Path], Path], int, Callable[[Item], bool]]] = [
    (
        "librispeech",
        librispeech,
        2,
        lambda i: (i.group, i.cluster, i.reference["text"]) == ("test-clean", "61", "HE BEGAN"),
    ),
    ("aishell1", aishell1, 1, lambda i: (i.cluster, i.reference["text"][:2]) == ("S0764", "甚至")),
    ("aishell2", aishell2, 1, lambda i: (i.group, i.cluster) == ("aishell2 iOS test", "T0001")),
    ("wenetspeech-net", wenetspeech("TEST_NET"), 1, lambda i: len(i.request.clip.samples(16_000)) == 3200),
    ("wenetspeech-meeting", wenetspeech("TEST_MEETING"), 1, lambda i: i.reference["text"] == "您好"),
    ("manifest", manifest, 1, lambda i: (i.id, i.reference["seconds"]) == ("a", 0.5)),
    ("asr-parquet", asr_parquet, 1, lambda i: (i.id, i.cluster) == ("u1", "7")),
    ("seed-en", seed("en", "meta.lst"), 1, lambda i: i.request.text == "what to say" and i.request.clip is not None),
    ("seed-zh", seed("zh", "meta.lst"), 1, lambda i: i.language == "zh"),
    ("seed-hard", seed("zh", "hardcase.lst"), 1, lambda i: i.group == "seed hard"),
    ("sentences", sentences, 2, lambda i: i.reference["said"] == "it costs five dollars"),
    ("llama-questions", llama_questions, 1, lambda i: "Mariana Trench" in i.reference["answers"]),
    ("web-questions", web_questions, 1, lambda i: i.reference["answers"] == ["Jamaican English"]),
    ("web-questions", web_questions_hub, 1, lambda i: i.reference["answers"][1] == "Patois"),
    ("triviaqa", triviaqa, 1, lambda i: i.reference["answers"] == ["Sunset Boulevard", "Sunset Blvd"]),
    ("uro-qa", uro_jsonl, 1, lambda i: i.language == "zh" and i.request.turns[0].clip is not None),
    ("hsk", hsk, 1, lambda i: (i.reference["options"], i.reference["answer"]) == (["走路", "坐车", "骑车", "开车"], 1)),
    ("complexbench", complexbench, 1, lambda i: (i.group, i.reference["questions"][1]["dep"]) == ("Selection", [0])),
    ("stepeval-360", stepeval, 1, lambda i: [bool(turn.clip) for turn in i.request.turns] == [False, True]),
    ("own", own, 1, lambda i: i.request.tools[0].name == "f"),
]


@pytest.mark.parametrize(("name", "make", "count", "first"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)])
def test_a_published_layout_is_read(
    name: str, make: Callable[[Path], Path], count: int, first: Callable[[Item], bool], tmp_path: Path
) -> None:
    items = read_set(f"{name}:{make(tmp_path)}")
    assert len(items) == count
    assert first(items[0])
    assert all(item.request.kind == ADAPTERS[name].kind and item.group for item in items)
    for item in items:
        for clip in (item.request.clip, *(turn.clip for turn in item.request.turns)):
            assert clip is None or len(clip.samples(16_000))


def test_every_adapter_has_a_fixture() -> None:
    assert {case[0] for case in CASES} == set(ADAPTERS)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_wrong_layout_names_the_expected_one(name: str, tmp_path: Path) -> None:
    text(tmp_path / "something/else.txt", "entirely different")
    with pytest.raises(LayoutError) as error:
        read_set(f"{name}:{tmp_path}")
    assert ADAPTERS[name].layout in str(error.value)
    with pytest.raises(NotFoundError) as missing:
        read_set(f"{name}:{tmp_path / 'nowhere'}")
    assert ADAPTERS[name].layout in str(missing.value)


@pytest.mark.parametrize("make", [librispeech, aishell2, llama_questions, own, manifest])
def test_a_recording_that_is_missing_is_told(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    next(file for file in sorted(tmp_path.rglob("*")) if file.suffix in (".wav", ".flac")).unlink()
    name = make.__name__.replace("_", "-")
    with pytest.raises(LayoutError, match="missing"):
        read_set(f"{name}:{path}")


def test_an_unknown_adapter_lists_the_known() -> None:
    with pytest.raises(NotFoundError, match="librispeech"):
        read_set("librispeach:/x")


def test_a_set_of_the_hub_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache as huggingface_hub lays it out: no request is made for what is in it."""
    constants = pytest.importorskip("huggingface_hub.constants")
    commit = "a" * 40
    root = tmp_path / "datasets--someone--questions"
    web_questions_hub(root / "snapshots" / commit)
    text(root / "refs/main", commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    import huggingface_hub._snapshot_download as download

    if hasattr(download, "HF_HUB_CACHE"):
        monkeypatch.setattr(download, "HF_HUB_CACHE", str(tmp_path))
    assert len(read_set("web-questions:hub:someone/questions")) == 1
    with pytest.raises(NotFoundError, match="cannot be had"):
        read_set("web-questions:hub:someone/else")
    with pytest.raises(InputError, match="no dataset of the hub"):
        read_set("web-questions:hub:not a name!")


@pytest.mark.parametrize("folder", ["asr", "qa", "listening", "instructions", "dialogues", "following", "tools"])
def test_our_own_sets_are_whole(folder: str) -> None:
    root = Path(__file__).parent.parent / "evals"
    items = read_set(f"own:{root / folder}")
    assert {item.language for item in items} == {"en", "zh"}
    assert len({item.id for item in items}) == len(items)
    assert all(item.request.clip or all(turn.clip for turn in item.request.turns) for item in items)


def test_our_own_sets_are_small() -> None:
    root = Path(__file__).parent.parent / "evals"
    assert sum(os.path.getsize(file) for file in root.rglob("*") if file.is_file()) < 6e6
