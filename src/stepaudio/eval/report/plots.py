"""Inline SVG: figures as dots with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from stepaudio.eval.report import words
from stepaudio.eval.results import Figure, Metric

_WIDTH, _LABEL, _VALUE, _ROW = 760, 250, 170, 24


def forest(metric: Metric, figures: Sequence[Figure], labels: Sequence[str] | None = None) -> str:
    """One metric: a row for each figure, by default labelled with its subset."""
    names = list(labels or (figure.subset for figure in figures))
    ends = [end for f in figures for end in (f.value, f.low, f.high) if end is not None]
    low, high = min(ends), max(ends)
    if metric.form != "median" and low >= 0:
        low = 0.0
    if metric.percent and metric.form in ("share", "mean"):
        low, high = 0.0, 1.0
    room = (high - low) * 0.04 or 1.0
    low, high = low - (room if low else 0), high + room
    inner = _WIDTH - _LABEL - _VALUE

    def x(value: float) -> float:
        return _LABEL + inner * (value - low) / (high - low)

    height = _ROW * len(figures) + 26
    title = escape(f"{metric.name} with 95 % intervals")
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}"><title>{title}</title>']
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - 22}"/>')
        text = f"{100 * tick:.0f} %" if metric.percent else f"{tick:g}"
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{text}</text>')
    for row, (figure, label) in enumerate(zip(figures, names, strict=True)):
        y = _ROW * row + 14
        parts.append(f'<text x="{_LABEL - 10}" y="{y + 4}" text-anchor="end">{escape(label[:38])}</text>')
        if figure.low is not None and figure.high is not None:
            left, right = x(max(low, figure.low)), x(min(high, figure.high))
            parts.append(f'<line class="reach" x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{x(figure.value):.1f}" cy="{y}" r="4.5"/>')
        said = escape(f"{words.number(figure.value, metric)} (n = {figure.n})")
        parts.append(f'<text x="{_WIDTH - _VALUE + 14}" y="{y + 4}">{said}</text>')
    return "".join((*parts, "</svg>"))


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside of an interval."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [round(step * place, 10) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
