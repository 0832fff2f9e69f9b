"""`stepaudio data tokenize`, `train lm` and `train plan`, in this process."""

import json
import wave
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nano_voice import folder
from stepaudio.cli.data import app as data
from stepaudio.cli.train import app as train
from stepaudio.data.manifest import write_manifest
from stepaudio.errors import MissingError, NotFoundError
from stepaudio.train.flow import load_speech
from training import utterance

run = CliRunner().invoke


def spoken(folder):
    """Four sentences of noise, whose phonemes are known all the same."""
    rng = np.random.default_rng(0)
    said = []
    for index, text in enumerate(["ab ba", "ba ab", "cab", "ab cab"]):
        one = utterance(text)
        with wave.open(str(folder / f"{index}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((3000 * rng.standard_normal(int(16000 * one.duration))).astype("<i2").tobytes())
        audio = folder / f"{index}.wav"
        said.append(replace(one, audio=audio.relative_to(folder), split="dev" if index == 3 else "train"))
    write_manifest(folder / "manifest.jsonl", said)
    return folder / "manifest.jsonl"


def test_from_recordings_to_a_model(tmp_path):
    torch.set_num_threads(1)
    manifest = spoken(tmp_path)
    with pytest.raises(MissingError, match="stepaudio data tokenize"):
        run(train, ["lm", "cpu_smoke", str(manifest), "-o", str(tmp_path / "run")], catch_exceptions=False)
    done = json.loads(run(data, ["tokenize", str(manifest), "--json"], catch_exceptions=False).stdout)
    assert done["lines"] == 4
    options = ["--tokens", "3000", "--threads", "1", "--json"]
    arguments = ["lm", "cpu_smoke", str(manifest), "-o", str(tmp_path / "run"), *options]
    result = json.loads(run(train, arguments, catch_exceptions=False).stdout)
    assert result["step"] == result["steps"] == 3
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_flow_can_begin_with_another(tmp_path):
    torch.set_num_threads(1)
    manifest, start, out = spoken(tmp_path), folder(tmp_path / "start"), tmp_path / "run"
    run(data, ["tokenize", str(manifest), "--json"], catch_exceptions=False)
    options = ["--init", str(start), "--steps", "1", "--learning-rate", "1e-6", "--json"]
    result = json.loads(run(train, ["flow", str(manifest), "-o", str(out), *options], catch_exceptions=False).stdout)
    assert result["step"] == result["steps"] == 1
    before, after = load_speech(start), load_speech(out)
    assert after.flow.config == before.flow.config
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-4)


def test_a_plan_as_json_and_as_text():
    planned = json.loads(run(train, ["plan", "cpu_nano", "--json"], catch_exceptions=False).stdout)
    assert 5e6 < planned["parameters"] < 7e6
    assert "operations" in run(train, ["plan", "paper_130b"], catch_exceptions=False).stdout
    with pytest.raises(NotFoundError, match="no recipe"):
        run(train, ["plan", "nothing"], catch_exceptions=False)
