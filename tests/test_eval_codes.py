"""The figures of a tokenizer, on a tokenizer and a reader that were trained for a moment; and ours."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from stepaudio.audio import io
from stepaudio.cli import app
from stepaudio.data.manifest import read_manifest
from stepaudio.errors import InputError, MissingError
from stepaudio.eval.codes import error_rate, hear, report
from stepaudio.tokenizer import checkpoint
from stepaudio.tokenizer.dual import PACKAGED, DualTokenizer
from stepaudio.train.reader import FILE, load_reader

TONES = {"a": 300, "b": 700, "c": 1500, " ": 0}


def sound(phonemes):
    t = np.arange(16000 // 5) / 16000
    return np.concatenate([0.3 * np.sin(2 * np.pi * TONES[p] * t) for p in phonemes]).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four recordings, a tone of 200 ms per phoneme."""
    folder = tmp_path_factory.mktemp("spoken")
    with (folder / "manifest.jsonl").open("w") as lines:
        for index, (text, phonemes) in enumerate([("ab", " ab "), ("ba ab", "ba ab"), ("cab", "cab "), ("bc", "bc")]):
            soundfile.write(folder / f"{index}.wav", sound(phonemes), 16000)
            entry = {
                "audio": f"{index}.wav",
                "text": text.title(),
                "spoken": text,
                "duration": 0.2 * len(phonemes),
                "language": "en",
                "source": "tones" if index < 3 else "other",
                "phonemes": phonemes,
                "ends": [200 * (i + 1) for i in range(len(phonemes))],
            }
            lines.write(json.dumps(entry) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Both halves by the command line, small and short."""
    out = tmp_path_factory.mktemp("run")
    (out / "more.tsv").write_text("cab ab\tcab ab\nac\tac\n")
    options = ["--steps", "40", "--batch-seconds", "4", "--width", "48", "--save-every", "20", "--json"]
    for branch in ("semantic", "linguistic"):
        more = ["--codes", "8"] if branch == "linguistic" else ["--sentences", str(out / "more.tsv")]
        command = ["train", "tokenizer", branch, str(folder / "manifest.jsonl"), "-o", str(out), *options, *more]
        if branch == "linguistic":
            command[command.index(str(out))] = str(out / "linguistic")
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout.splitlines()[-1])["output"]
    (out / "linguistic" / checkpoint.LINGUISTIC).rename(out / checkpoint.LINGUISTIC)
    return out


def test_training_from_the_command_line_learns_and_exports(trained):
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[-1]["phonemes"] < lines[0]["phonemes"]
    assert lines[-1]["tokens_per_second"] > 0
    kept = ["checkpoint-00000020.pt", "checkpoint-00000040.pt"]
    assert sorted(path.name for path in trained.glob("checkpoint*")) == kept
    literate = load_reader(trained / FILE)
    assert dict(literate.lexicon.entries) == {"ab": "ab", "ac": "ac", "ba": "ba", "cab": "cab", "bc": "bc"}
    assert literate.phonemes == [" ", "a", "b", "c"]


def test_figures(folder, trained):
    utterances = read_manifest(folder / "manifest.jsonl")
    heard = list(hear(trained, utterances))
    figures = report(heard)
    assert (figures["recordings"], figures["seconds"]) == (4, pytest.approx(3.0))
    tokens = [sum(len(getattr(one.codes, name)) for one in heard) for name in ("linguistic", "semantic")]
    assert [figures[name]["tokens"] for name in ("linguistic", "semantic")] == tokens
    assert 0 < figures["linguistic"]["usage"] <= 8 / 1024
    assert set(figures["errors"]["en"]) == {"words", "pieces", "phonemes"}
    words = figures["errors"]["en"]["words"]
    assert set(words) == {"all", "tones", "other"}
    assert (words["all"].n, words["tones"].n) == (4, 3)
    assert [one.read["words"][0] for one in heard] == [["ab"], ["ba", "ab"], ["cab"], ["bc"]]
    # The same codes are read the same.
    again = list(hear(trained, utterances))
    assert [one.read for one in again] == [one.read for one in heard]


def test_other_languages_are_counted_and_not_read(folder, trained):
    (german,) = [replace(read_manifest(folder / "manifest.jsonl")[0], language="de", phonemes="", ends=())]
    (heard,) = hear(trained, [german])
    assert heard.read == {}
    assert report([heard])["errors"] == {}
    assert report([heard])["semantic"]["tokens"] == len(heard.codes.semantic) > 0


def test_the_command(folder, trained):
    result = CliRunner().invoke(app, ["eval", "codes", str(folder), "--tokenizer", str(trained), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["errors"]["en"]["words"]["all"]["n"] == 4
    shown = CliRunner().invoke(app, ["eval", "codes", str(folder), "--tokenizer", str(trained), "--limit", "2"])
    assert "2 recordings" in shown.stdout
    assert "en words" in shown.stdout


def test_a_reader_that_is_missing_or_damaged(trained, tmp_path):
    with pytest.raises(MissingError, match="no reader"):
        load_reader(tmp_path / FILE)
    (tmp_path / FILE).write_bytes((trained / FILE).read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        load_reader(tmp_path / FILE)


def test_error_rates_are_of_all_units_together():
    right, half = (["a", "b"], ["a", "b"]), (["a", "b", "c", "d"], ["a", "b", "x"])
    assert error_rate([right] * 50).value == 0
    mixed = error_rate([right, half] * 50)
    assert mixed.value == pytest.approx(2 / 6)
    assert mixed.low < 2 / 6 < mixed.high
    assert error_rate([(["a"], ["a", "b", "c"])]).value == 2.0


# ------------------------------------------------------------------ the tokenizer that comes with the package

OURS = PACKAGED / "nano-tokenizer"


def test_the_packaged_tokenizer_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in OURS.iterdir()}
    assert set(files) == {checkpoint.LINGUISTIC, checkpoint.SEMANTIC, FILE, "README.md"}
    assert sum(files.values()) < 12e6


def test_the_packaged_tokenizer_gives_the_codes_it_was_released_with():
    question = Path(__file__).parent.parent / "examples" / "question-en.flac"
    samples = io.read(question, rate=16000)
    torch.set_num_threads(1)
    with DualTokenizer.load("nano-tokenizer") as tokenizer:
        codes = tokenizer.encode(samples)
    recorded = json.loads((Path(__file__).parent / "fixtures" / "nano-tokenizer-question-en.json").read_text())
    for name in ("linguistic", "semantic"):
        ours, expected = getattr(codes, name), np.array(recorded[name])
        assert len(ours) == len(expected)
        # Another processor rounds otherwise; a code on the border may then fall on its other side.
        assert (ours == expected).mean() > 0.98
