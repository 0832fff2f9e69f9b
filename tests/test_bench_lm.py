"""The language model's benchmark runs, on a small network, and reports what it measured."""

import json

import pytest
from typer.testing import CliRunner

from stepaudio.bench import lm
from stepaudio.cli import app
from stepaudio.errors import InputError

pytest.importorskip("transformers")


def test_figures():
    options = lm.Options(preset="nano", threads=1, rounds=1, context=8, steps=2, read_bytes=1 << 22)
    parts = []
    figures = lm.run(options, lambda: parts.append(1))
    assert len(parts) == lm.steps_of(options)
    speeds = {(each["name"], each["batch"]): each for each in figures["contenders"]}
    names = ("bfloat16", "int8", "transformers bfloat16", "transformers float32")
    assert set(speeds) == {(name, batch) for name in names for batch in (1, 8)}
    for (_, batch), speed in speeds.items():
        assert speed["tokens_per_s"] == pytest.approx(1000 * batch / speed["step_ms"], rel=0.05)
    # A share, a gain by batching for each kind of weights; over transformers at both batches in both precisions.
    assert [ratio["bar"] for ratio in figures["ratios"]] == [0.75, 3.0, 0.75, 3.0, 1.5, 1.5, 1.5, 1.5]
    assert all(ratio["value"] > 0 for ratio in figures["ratios"])
    assert 0 < figures["int8_loss"]["kl_nats"] < 0.02
    assert figures["int8_loss"]["same_token"] > 0.9


def test_the_bar():
    good, bad = {"value": 0.8, "bar": 0.75}, {"value": 1.4, "bar": 1.5}
    assert lm.passed({"ratios": [good, good]})
    assert not lm.passed({"ratios": [good, bad]})


@pytest.mark.parametrize("verb", ["lm", "decoder"])
@pytest.mark.parametrize(("device", "told"), [("cuda", "no CUDA device"), ("gpu", "no device is called 'gpu'")])
def test_a_device_that_is_not_there_is_told(monkeypatch, verb, device, told):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=told):
        CliRunner().invoke(app, ["bench", verb, "--device", device], catch_exceptions=False)


def test_the_verb_writes_its_figures(tmp_path):
    out = tmp_path / "figures.json"
    arguments = ["bench", "lm", "--preset", "nano", "--rounds", "1", "--threads", "1", "--json", str(out)]
    result = CliRunner().invoke(app, arguments)
    figures = json.loads(out.read_text())
    assert figures["preset"] == "nano"
    assert result.exit_code == (0 if lm.passed(figures) else 1)


def test_a_gpu_also_runs_int4():
    assert lm.Options(device="cuda:1").kinds == [None, "int8", "int4"]
    assert lm.Options().kinds == [None, "int8"]
