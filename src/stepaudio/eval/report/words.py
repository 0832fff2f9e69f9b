"""How figures are written, everywhere alike."""

from __future__ import annotations

from stepaudio.eval.results import Figure, Metric

ARROWS = {"lower": "↓", "higher": "↑", "neither": ""}


def number(value: float, metric: Metric) -> str:
    """A value in the metric's unit."""
    if metric.percent:
        return f"{100 * value:.1f} %"
    return f"{value:.{0 if abs(value) >= 100 else 2}f}{' ' + metric.unit if metric.unit else ''}"


def interval(figure: Figure, metric: Metric) -> str:
    """The 95 % interval."""
    if figure.low is None or figure.high is None:
        return "no interval"
    scale, digits = (100, 1) if metric.percent else (1, 2)
    return f"{scale * figure.low:.{digits}f} to {scale * figure.high:.{digits}f}"


def name(metric: Metric) -> str:
    """The metric and which way is better."""
    return f"{metric.name} {ARROWS[metric.better]}".strip()


def protocol(metric: Metric) -> str:
    """What has to be said beside a figure."""
    return "; ".join(f"{key}: {value}" for key, value in metric.protocol.items())


def cell(figure: Figure | None, metric: Metric) -> str:
    """A figure with its interval, as a table's cell holds it."""
    return "–" if figure is None else f"{number(figure.value, metric)} ({interval(figure, metric)})"


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(each.replace('|', '/') for each in cells)} |"
