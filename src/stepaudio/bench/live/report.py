"""The figures of a run, as JSON and as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

import stepaudio
from stepaudio.bench.live import measure
from stepaudio.bench.live.measure import HeardMeasure, Judge, TurnMeasure, quantiles
from stepaudio.bench.live.recording import Recording
from stepaudio.bench.live.run import Step

WITH, WITHOUT = "speculation", "no_speculation"
_TOO_LATE = 0.25
_STEPS = ("endpoint", "transcript", "first_token", "first_audio")


def report(recordings: Sequence[Recording], judge: Judge, setup: dict[str, Any]) -> dict[str, Any]:
    """All figures; `setup` says what was run."""
    arms = {}
    rows: list[dict[str, Any]] = []
    for name, wanted in ((WITH, True), (WITHOUT, False)):
        some = [recording for recording in recordings if recording.speculation is wanted]
        if some:
            turns = [turn for recording in some for turn in measure.turns(recording)]
            heard = [one for recording in some for one in measure.heard(recording, judge)]
            arms[name] = _arm(some, turns, heard)
            rows += [asdict(turn) for turn in turns]
    return {"setup": setup | _machine(), "arms": arms, "saved": _saved(arms), "turns": rows}


def _arm(
    recordings: Sequence[Recording], turns: Sequence[TurnMeasure], heard: Sequence[HeardMeasure]
) -> dict[str, Any]:
    timed = [event for recording in recordings for event in recording.of_type("stepaudio.turn.timed")]
    murmurs = [turn.gave_way for turn in turns if turn.gave_way is not None]
    interrupted = [turn for turn in turns if turn.stopped is not None or turn.talked_over]
    return {
        "turns": len(turns),
        "missed": sum(turn.missed for turn in turns),
        "refused": sum(measure.refused(recording) for recording in recordings),
        "latency": _latency(turns),
        "latency_by_kind": {kind: _latency(t for t in turns if t.kind == kind) for kind in _each(turns, "kind")},
        "latency_by_language": {
            language: _latency(t for t in turns if t.language == language) for language in _each(turns, "language")
        },
        "false_cut_ins": _share(turn.cut_in for turn in turns),
        "barge_in_to_silence": quantiles(turn.stopped for turn in turns if turn.stopped is not None),
        "talked_over": _share(turn.talked_over for turn in interrupted),
        "stopped_by_murmur": _share(murmurs),
        "heard_prefix_error_words": _errors(one.error for one in heard),
        "heard_prefix_guess_error_words": _errors(one.guess_error for one in heard if one.guess_error is not None),
        "speculations": measure.speculations(recordings),
        "server_steps": {step: quantiles(event[step] for event in timed) for step in _STEPS},
        "errors": [error for recording in recordings for error in recording.errors],
        "player_late_seconds": max((recording.late for recording in recordings), default=0.0),
    }


def _latency(turns: Iterable[TurnMeasure]) -> dict[str, Any]:
    return quantiles(turn.latency for turn in turns if turn.latency is not None)


def _each(turns: Sequence[TurnMeasure], field: str) -> list[str]:
    return sorted({getattr(turn, field) for turn in turns})


def _share(facts: Iterable[bool]) -> dict[str, Any]:
    known = list(facts)
    return {"n": len(known), "count": sum(known), "share": round(sum(known) / len(known), 4) if known else None}


def _errors(errors: Iterable[int]) -> dict[str, Any]:
    """By how many words, whichever way, and how often none at all."""
    known = list(errors)
    exact = round(sum(error == 0 for error in known) / len(known), 4) if known else None
    return {**quantiles(abs(error) for error in known), "exact": exact}


def _saved(arms: dict[str, Any]) -> dict[str, Any] | None:
    """What speculation takes off the median latency."""
    medians = [arms[name]["latency"]["p50"] for name in (WITH, WITHOUT) if name in arms]
    if len(medians) < 2 or None in medians:
        return None
    with_, without = medians
    return {"p50_seconds": round(without - with_, 4), "p50_share": round(1 - with_ / without, 4)}


def _machine() -> dict[str, Any]:
    return {
        "version": stepaudio.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


# ---------------------------------------------------------------- for people


def render(figures: dict[str, Any]) -> RenderableType:
    """One column for each arm."""
    arms: dict[str, Any] = figures["arms"]
    table = Table(title="bench live", title_justify="left")
    table.add_column("p50 / p95 (n), in seconds")
    for name in arms:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for label, path in _rows(next(iter(arms.values()))):
        table.add_row(label, *(_show(_find(arm, path)) for arm in arms.values()))
    lines: list[RenderableType] = [table]
    if figures["saved"]:
        saved = figures["saved"]
        lines.append(
            f"speculation takes {saved['p50_seconds']:.2f} s ({saved['p50_share']:.0%}) off the median latency"
        )
    late = max(arm["player_late_seconds"] for arm in arms.values())
    if late > _TOO_LATE:
        lines.append(f"[red]the player fell {late:.1f} s behind: this machine is too busy to measure on[/]")
    errors = [error for arm in arms.values() for error in arm["errors"]]
    lines += [f"[red]{len(errors)} errors[/], the first: {escape(errors[0])}"] if errors else []
    return Group(*lines)


def render_steps(steps: Sequence[Step], limit: float) -> RenderableType:
    """How many sessions at once fared how."""
    table = Table(title=f"sessions at once, p95 limit {limit:g} s", title_justify="left")
    for column in ("sessions", "p95", "missed turns", "within"):
        table.add_column(column, justify="right")
    for step in steps:
        p95 = "-" if step.p95 is None else f"{step.p95:.2f} s"
        table.add_row(str(step.sessions), p95, str(step.missed), "yes" if step.within(limit) else "no")
    return table


def _rows(arm: dict[str, Any]) -> Iterable[tuple[str, tuple[str, ...]]]:
    yield "turns", ("turns",)
    yield "missed", ("missed",)
    yield "replies refused", ("refused",)
    yield "latency", ("latency",)
    for group in ("kind", "language"):
        for name in arm[f"latency_by_{group}"]:
            yield f"  {name}", (f"latency_by_{group}", name)
    yield "false cut-ins", ("false_cut_ins",)
    yield "barge-in to silence", ("barge_in_to_silence",)
    yield "barge-ins talked over", ("talked_over",)
    yield "stopped by a murmur", ("stopped_by_murmur",)
    yield "heard prefix, words off", ("heard_prefix_error_words",)
    yield "  share exact", ("heard_prefix_error_words", "exact")
    yield "  by the server alone", ("heard_prefix_guess_error_words",)
    yield "commit rate", ("speculations", "commit_rate")
    yield "  started", ("speculations", "started")
    yield "  lead", ("speculations", "lead_seconds")
    yield "  wasted tokens", ("speculations", "wasted_tokens")
    yield "  wasted seconds", ("speculations", "wasted_seconds")
    for step in _STEPS:
        yield f"server: {step.replace('_', ' ')}", ("server_steps", step)


def _find(arm: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = arm
    for key in path:
        value = value.get(key) if value is not None else None
    return value


def _show(value: Any) -> str:
    if isinstance(value, dict) and "share" in value:
        return "-" if value["share"] is None else f"{value['share']:.1%} ({value['count']} of {value['n']})"
    if isinstance(value, dict):
        if not value["n"]:
            return "-"
        return f"{value['p50']:.2f} / {value['p95']:.2f} ({value['n']})"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else str(value)
