"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"STEPAUDIO_BUNDLE": "tiny"} | options.pop("env", {})  # type: ignore[operator]
    return subprocess.run(
        [sys.executable, "-c", "from stepaudio.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
        **options,  # type: ignore[call-overload]
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['stepaudio', '--help']\n"
        "from stepaudio.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'onnxruntime', 'fastapi', 'av', 'soundfile', 'ctranslate2'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("talk", "chat", "transcribe", "say", "voices", "serve", "bundles", "pull", "doctor"):
        assert verb in done.stdout


@pytest.mark.parametrize("verb", ["talk", "chat", "transcribe", "say", "voices", "serve", "bundles", "pull", "doctor"])
def test_every_verb_explains_itself(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_bundles_say_what_is_here(tmp_path: Path) -> None:
    done = run("bundles", "--json", env={"STEPAUDIO_HOME": str(tmp_path)})
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) >= {"small", "tiny"}
    assert "whisper-base" in rows["small"]["missing"]


def test_missing_weights_name_the_remedy(tmp_path: Path) -> None:
    done = run("voices", env={"STEPAUDIO_HOME": str(tmp_path)})
    assert done.returncode == 3
    assert "stepaudio pull" in done.stderr
    assert "Traceback" not in done.stderr
    doctor = run("doctor", "tiny", "--json", env={"STEPAUDIO_HOME": str(tmp_path)})
    assert doctor.returncode == 3
    findings = json.loads(doctor.stdout)
    assert any(not f["ok"] and f["remedy"] == "stepaudio pull whisper-base" for f in findings)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["say", "hello", "-o", "x.wav", "--bundle", "nothing"], 2, "no bundle is called"),
        (["transcribe", "no-such-file.wav"], 2, "no-such-file.wav"),
        (["talk", "no-such-file.wav"], 2, "no-such-file.wav"),
        (["pull", "nothing"], 2, "no bundle is called"),
        (["serve", "--port", "99999"], 2, "65535"),
        (["data", "tokenize", "latin.txt"], 2, "line 1 of latin.txt"),
        (["transcribe", "a/one.wav", "b/one.mp3", "-o", "out"], 2, "a/one.wav and b/one.mp3 would both be written to"),
        (["transcribe", "a/one.wav", "-o", "latin.txt"], 1, "latin.txt: File exists"),
        (["tokenize", str(EXAMPLES / "question-en.flac"), "-o", "latin.txt/codes.npz"], 1, "latin.txt: File exists"),
    ],
)
@pytest.mark.weights
def test_refusals_are_one_clear_line(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        ("scipy", ["data", "tokenize", "manifest.jsonl"], "local"),
        ("onnxruntime", ["data", "filter", "manifest.jsonl"], "local"),
        ("sentencepiece", ["train", "lm", "cpu_smoke", "manifest.jsonl", "-o", "out"], "train"),
    ],
)
def test_a_package_that_is_not_here_is_named_with_its_extra(
    absent: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        f"sys.argv = ['stepaudio', *{arguments!r}]\n"
        "from stepaudio.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert f"{absent} is not installed; run: pip install 'stepaudio[{extra}]'" in " ".join(done.stderr.split())


@pytest.mark.weights
def test_talk_answers_aloud(tmp_path: Path) -> None:
    from stepaudio.audio.io import probe

    reply = tmp_path / "reply.wav"
    done = run("talk", EXAMPLES / "question-en.flac", "-o", reply, "--json")
    assert done.returncode == 0, done.stderr
    turn = json.loads(done.stdout)
    assert "sky" in turn["transcript"].lower()
    assert turn["answer"]
    assert 0 < turn["latency"]["transcribe"] <= turn["latency"]["first_token"] <= turn["latency"]["first_audio"]
    assert (probe(reply).seconds or 0) > 0.5


@pytest.mark.weights
def test_a_conversation_never_loads_torch() -> None:
    code = (
        "import sys, stepaudio\n"
        f"list(stepaudio.load('tiny').answer({str(EXAMPLES / 'question-zh.flac')!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


@pytest.mark.weights
def test_say_then_transcribe_gives_the_words_back(tmp_path: Path) -> None:
    spoken = tmp_path / "spoken.flac"
    done = run("say", "The quick brown fox jumps over the lazy dog.", "-o", spoken, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seconds"] > 1
    heard = run("transcribe", spoken, "--json")
    assert "quick brown fox" in json.loads(heard.stdout)["text"].lower()
    subtitles = run("transcribe", spoken, "--format", "srt")
    assert "00:00:0" in subtitles.stdout
    run("transcribe", spoken, "--format", "vtt", "-o", tmp_path / "out")
    assert (tmp_path / "out/spoken.vtt").read_text().startswith("WEBVTT")


@pytest.mark.weights
def test_say_streams_to_a_pipe(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One. Two. Three.", encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        "from stepaudio.cli import main; main()",
        "say",
        str(text),
        "-o",
        "-",
        "--format",
        "pcm",
    ]
    done = subprocess.run(
        command, capture_output=True, timeout=120, check=True, env=os.environ | {"STEPAUDIO_BUNDLE": "tiny"}
    )
    samples = np.frombuffer(done.stdout, "<i2")
    assert len(samples) > 24_000
    assert np.abs(samples).max() > 1000


@pytest.mark.weights
def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio at all")
    done = run("transcribe", bad, EXAMPLES / "question-en.flac")
    assert done.returncode == 2
    assert "sky" in done.stdout.lower()
    assert "bad.wav" in done.stderr


@pytest.mark.weights
def test_interrupting_a_long_text_leaves_no_half_file(tmp_path: Path) -> None:
    target = tmp_path / "long.wav"
    process = subprocess.Popen(
        [sys.executable, "-c", "from stepaudio.cli import main; main()", "say", "-", "-o", str(target)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background has SIGINT ignored, and the child would inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        env=os.environ | {"STEPAUDIO_BUNDLE": "tiny"},
    )
    assert process.stdin is not None
    process.stdin.write(b"word and another. " * 50_000)
    process.stdin.close()
    time.sleep(4)
    assert process.poll() is None, "the text was meant to be too long to finish"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert not target.exists()
