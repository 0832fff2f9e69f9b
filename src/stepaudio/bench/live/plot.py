"""The picture of a run: how the latencies are distributed, and one conversation on its time line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepaudio.audio.pcm import Samples
from stepaudio.bench.live.clips import RATE
from stepaudio.bench.live.measure import reply_onsets, turns
from stepaudio.bench.live.recording import Recording
from stepaudio.errors import InputError, MissingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ENVELOPE = 0.02
_ARMS = ((True, "with speculation", "tab:blue"), (False, "without", "tab:orange"))


def check_plot(path: Path) -> None:
    """Raises MissingError or InputError when `plot` could not write this file."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise MissingError("the plot needs matplotlib: pip install 'stepaudio[bench]'") from None
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise InputError(f"{path} cannot be drawn; name a .png, .svg or .pdf file", param="plot")


def plot(recordings: Sequence[Recording], path: Path) -> None:
    """Draw into a PNG, SVG or PDF file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    _draw_latencies(above, recordings)
    _draw_conversation(below, max(recordings, key=lambda recording: (recording.speculation, len(recording.cuts))))
    figure.savefig(path, dpi=150)


def _draw_latencies(axes: Axes, recordings: Sequence[Recording]) -> None:
    for speculation, name, colour in _ARMS:
        measured = [turn.latency for r in recordings if r.speculation is speculation for turn in turns(r)]
        latencies = np.sort([latency for latency in measured if latency is not None])
        if len(latencies):
            shares = np.arange(len(latencies) + 1) / len(measured)  # those without a reply never arrive
            label = f"{name} (n = {len(measured)})"
            axes.step([latencies[0], *latencies], shares, where="post", color=colour, label=label)
            axes.axvline(float(np.median(latencies)), color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="end of speech to first audible sample (s)", ylabel="share of turns", ylim=(0, 1.02))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _draw_conversation(axes: Axes, recording: Recording) -> None:
    user, agent = recording.tracks()
    for track, middle, colour in ((user, 1.0, "tab:green"), (agent, -1.0, "tab:purple")):
        envelope = _loudest(track)
        times = np.arange(len(envelope)) * _ENVELOPE
        axes.fill_between(times, middle - envelope, middle + envelope, color=colour, linewidth=0)
    for onset in reply_onsets(recording):
        axes.axvline(onset, color="tab:purple", linewidth=1)
    for cut in recording.cuts:
        axes.plot([cut.at], [-1.0], marker="x", color="black")
    lines = {said.turn: said.start for said in reversed(recording.said)}
    for number, start in lines.items():
        kind = recording.conversation.turns[number].kind.replace("_", " ")
        axes.annotate(kind, (start, 2.1), fontsize=8)
    axes.set(yticks=(1.0, -1.0), yticklabels=("user", "agent"), ylim=(-2, 2.5), xlabel="seconds")
    axes.set_title(
        f"conversation {recording.conversation.name}: lines where a reply becomes audible, × where it was stopped",
        fontsize=9,
        loc="left",
    )


def _loudest(track: Samples) -> Samples:
    """The peak of every 20 ms."""
    size = round(_ENVELOPE * RATE)
    padded = np.pad(np.abs(track), (0, -len(track) % size))
    peaks: Samples = padded.reshape(-1, size).max(axis=1, initial=0.0)
    return peaks
