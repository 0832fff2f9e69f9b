"""The live task: what a recording says becomes rows, and a turn without a reply is a failure."""

from __future__ import annotations

import numpy as np
import pytest

from stepaudio.bench.live.clips import RATE
from stepaudio.bench.live.recording import Chunk, Cut, Recording, Said
from stepaudio.bench.live.scenarios import Conversation, Cue, Line, Turn
from stepaudio.errors import InputError
from stepaudio.eval.results import figures
from stepaudio.eval.tasks.live import _METRICS, run_live, score


def loud(seconds: float) -> np.ndarray:
    return np.full(round(seconds * RATE), 0.5, np.float32)


def recorded(said: list[tuple[float, float]], replies: list[tuple[str, float, float]], *kinds: str) -> Recording:
    """Lines as (start, seconds), one a turn; replies as (id, start, seconds)."""
    line = Line("clip", Cue("quiet", 0.5))
    turns = tuple(Turn(kind, (line,)) for kind in kinds)  # type: ignore[arg-type]
    recording = Recording(Conversation("1-en", "en", turns), True)
    for number, (start, seconds) in enumerate(said):
        recording.said.append(Said(number, 0, start, loud(seconds)))
    for name, start, seconds in replies:
        samples = loud(seconds)
        recording.chunks.append(Chunk(name, name, start, samples, len(samples)))
    return recording


def test_turns_become_rows() -> None:
    recording = recorded([(1.0, 2.0), (8.0, 1.0), (20.0, 1.0)], [("r", 3.7, 2.0), ("s", 9.4, 1.0)], *["plain"] * 3)
    recording.errors.append("the server went away")
    rows = score([recording])
    assert [row.scores["answered"][0] for row in rows] == [1, 1, 0]
    assert [row.error for row in rows] == [None, None, "the server went away"]
    found = {figure.metric: figure for figure in figures(_METRICS, rows) if figure.subset == "all"}
    assert found["answered"].value == pytest.approx(2 / 3)
    assert found["answered"].failed == 1
    assert found["latency"].value == pytest.approx((0.7 + 0.4) / 2, abs=1e-3)
    assert found["latency"].n == 2  # a turn without a reply has no latency, but it is in `answered`
    assert "stopped" not in found


def test_a_barge_in_is_stopped_or_talked_over() -> None:
    stopped, over = (
        recorded([(1.0, 1.0), (4.0, 1.0)], [("r", 2.5, 5.0), ("s", 8.0, 1.0)], "plain", "barge_in") for _ in range(2)
    )
    stopped.cuts.append(Cut("r", 4.3, 1.8))
    scores = [score([recording])[1].scores for recording in (stopped, over)]
    assert [each["stopped"][0] for each in scores] == [1, 0]
    assert scores[0]["barge-in to silence"][0] == pytest.approx(0.3, abs=1e-3)
    assert "barge-in to silence" not in scores[1]


def test_a_codec_cannot_talk() -> None:
    with pytest.raises(InputError, match="cannot hold"):
        run_live("codec:g711", key=None, speaker="small", conversations=1, seed=0, doing=lambda *_: lambda: None)
