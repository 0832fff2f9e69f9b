"""The decoder benchmark runs, on small networks, and reports what it measured."""

from dataclasses import replace

from flow_models import DIT, UNET
from stepaudio.bench import decoder


def small():
    return decoder.Options(
        threads=1, seconds=0.5, stream_seconds=3.0, rounds=2, steps=2,
        sizes={"dit": replace(DIT, mels=80), "unet": replace(UNET, mels=80)},
    )  # fmt: skip


def test_figures():
    parts = []
    figures = decoder.run(small(), lambda: parts.append(1))
    assert len(parts) == decoder.steps_of(small())
    for name, frames in (("dit", 25), ("unet", 43)):
        assert figures[name]["frames"] == frames
        assert set(figures[name]["times"]) == {"eager float32", "eager bfloat16", "ours"}
        # All three ran the same network on the same inputs.
        assert figures[name]["errors"]["eager float32"] == 0
        assert 0 < figures[name]["errors"]["ours"] < 0.1
        assert figures[name]["ratio"] > 0
    # 3 s are 75 rows: chunks of 15 and 24 with their look-ahead; the rest comes with the end.
    assert len(figures["stream"]["real_time_factors"]) == 2


def test_the_bar():
    assert decoder.passed({"dit": {"ratio": 1.5}, "unet": {"ratio": 1.6}})
    assert not decoder.passed({"dit": {"ratio": 2.0}, "unet": {"ratio": 1.4}})
