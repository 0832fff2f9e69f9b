"""Live conversation, through `stepaudio bench live`: latency, cut-ins, barge-in, from what was recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from stepaudio.errors import InputError
from stepaudio.eval.results import Metric, Row, TaskResult, figures
from stepaudio.eval.runner import Doing

if TYPE_CHECKING:
    from stepaudio.bench.live.recording import Recording

NAME, TITLE = "live", "Live conversation"
_METRICS = [
    Metric("answered", "share", "higher", "turns with an audible reply in time", percent=True),
    Metric("latency", "median", "lower", "end of speech to audible reply, median", unit="s", measured=True),
    Metric("cut in", "share", "lower", "turns in which the agent spoke before the user was done", percent=True),
    Metric("stopped", "share", "higher", "barge-ins at which the agent fell silent", percent=True),
    Metric("barge-in to silence", "median", "lower", "seconds until it did, median", unit="s", measured=True),
    Metric("gave way to a murmur", "share", "lower", "murmurs at which the agent fell silent", percent=True),
]


def run_live(system: str, *, key: str | None, speaker: str, conversations: int, seed: int, doing: Doing) -> TaskResult:
    """Hold conversations with a bundle's own server, or with the server at an address; the bundle `speaker` speaks the
    users' part. Raises InputError for a system that cannot be talked to."""
    from stepaudio.bench.live import bench
    from stepaudio.bench.live.measure import turns
    from stepaudio.bench.live.player import Target
    from stepaudio.bench.live.run import play_all
    from stepaudio.bench.live.scenarios import KINDS

    started = time.perf_counter()
    remote = "://" in system
    if system.startswith("codec:"):
        raise InputError(f"{system} cannot hold a conversation")
    options = bench.Options(
        bundle=speaker if remote else system,
        url=system.partition("#")[0] if remote else None,
        api_key=key,
        conversations=conversations,
        seed=seed,
    )
    script = bench.prepare(replace(options, bundle=speaker), conversations, doing)
    with bench.server(options) as url:
        target = Target(url, options.api_key, options.patience, options.session)
        total = conversations * len(KINDS)
        recordings = asyncio.run(
            play_all(
                script.conversations,
                script.clips.by_name(),
                target,
                arms=(True,),
                progress=doing("live: playing conversations", total),
            )
        )
    rows = score(recordings)
    extra = {"setup": options.setup, "turns": [asdict(turn) for recording in recordings for turn in turns(recording)]}
    return TaskResult(
        NAME, TITLE, 1, "strict", _METRICS, figures(_METRICS, rows), rows, [], extra, time.perf_counter() - started
    )


def score(recordings: Sequence[Recording]) -> list[Row]:
    """A row for each turn; one without an audible reply failed."""
    from stepaudio.bench.live.measure import turns

    rows = []
    for recording in recordings:
        for turn in turns(recording):
            scores = {"answered": [float(not turn.missed), 1.0], "cut in": [float(turn.cut_in), 1.0]}
            if turn.latency is not None:
                scores["latency"] = [turn.latency, 1.0]
            if turn.stopped is not None or turn.talked_over:
                scores["stopped"] = [float(not turn.talked_over), 1.0]
            if turn.stopped is not None:
                scores["barge-in to silence"] = [turn.stopped, 1.0]
            if turn.gave_way is not None:
                scores["gave way to a murmur"] = [float(turn.gave_way), 1.0]
            error = ("; ".join(recording.errors) or "no audible reply") if turn.missed else None
            shown = {"turn": turn.kind, "latency": "none" if turn.latency is None else f"{turn.latency:.2f} s"}
            name = f"{turn.conversation}/{turn.turn}"
            rows.append(Row(name, turn.kind, turn.language, turn.conversation, scores, error, [], shown))
    return rows
