"""One page that holds all of a run: figures, plots, the worst items with their sound, everything that failed, and what
others published. It refers to nothing outside of itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from stepaudio.errors import StepAudioError
from stepaudio.eval.report import plots, published, words
from stepaudio.eval.results import Metric, Row, Run, TaskResult
from stepaudio.eval.store import Store
from stepaudio.files import replacing

WORST = 10
_PLAYER_SECONDS = 20.0
_BIT_RATE = 24_000
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #5b6570; --paper: #fff; --card: #f6f7f9; --rule: #d9dee3;
  --accent: #0b62c4; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --faint: #a4adb6; --paper: #15181b; --card: #1e2226;
  --rule: #363c42; --accent: #7ab7ff; --bad: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 0 auto; padding: 1.5rem; }
h1, h2, h3 { line-height: 1.2; } h2 { border-top: 1px solid var(--rule); padding-top: 1.5rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; } td.n { text-align: right; white-space: nowrap; }
.scroll { overflow-x: auto; } .faint, caption { color: var(--faint); } .bad { color: var(--bad); }
caption { caption-side: bottom; text-align: left; padding-top: .4rem; font-size: .9rem; }
.published { background: var(--card); } details { margin: .5rem 0; } summary { cursor: pointer; color: var(--accent); }
svg { width: 100%; max-width: 47.5rem; display: block; margin: .5rem 0; font-size: 13px; fill: var(--ink); }
svg .grid { stroke: var(--rule); } svg .tick { fill: var(--faint); font-size: 11px; }
svg .reach { stroke: var(--accent); stroke-width: 2.5; } svg .dot { fill: var(--accent); }
pre { white-space: pre-wrap; font: inherit; margin: 0; } audio { height: 2rem; max-width: 16rem; }
"""


def write_report(run: Run, folder: Path, store: Store) -> Path:
    """Write report.html."""
    body = [
        f"<h1>{escape(run.system)}</h1>",
        f'<p class="faint">{escape(_setup(run))}</p>',
        _summary(run),
        *(_task(task, store) for task in run.tasks.values()),
    ]
    path = folder / "report.html"
    with replacing(path) as half:
        half.write_text(page(f"{run.system}: evaluation", body), encoding="utf-8")
    return path


def page(title: str, body: Iterable[str]) -> str:
    """A whole document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", kind: str = "") -> str:
    """A table; cells are HTML."""
    cells = "".join(f'<th scope="col">{each}</th>' for each in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    told = f"<caption>{caption}</caption>" if caption else ""
    inner = f"{told}<thead><tr>{cells}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{inner}</table></div>'


def _setup(run: Run) -> str:
    setup = run.setup
    return (
        f"System: {run.written}. Run on {setup['date']} with stepaudio {setup['version']}, {setup['machine']} with "
        f"{setup['cpus']} CPUs, seed {setup['seed']}. Intervals are 95 %. "
        "What failed, is empty or is missing counts as wrong."
    )


def _summary(run: Run) -> str:
    """Every task's figures over all of its items, in one table."""
    rows = []
    for task in run.tasks.values():
        metrics = {metric.name: metric for metric in task.metrics}
        for figure in task.figures:
            metric = metrics[figure.metric]
            if figure.subset == "all" and not metric.measured:
                rows.append(
                    (
                        f'<a href="#{escape(task.task)}">{escape(task.title)}</a>',
                        escape(words.name(metric)),
                        f"<b>{words.number(figure.value, metric)}</b>",
                        words.interval(figure, metric),
                        str(figure.n),
                        _failed(figure.failed),
                    )
                )
    return table(("Task", "Figure", "Value", "95 % interval", "Items", "Failed"), rows)


def _task(task: TaskResult, store: Store) -> str:
    parts = [f'<h2 id="{escape(task.task)}">{escape(task.title)}</h2>']
    quirks = "" if task.protocol == "strict" else f" Protocol: <b>{escape(task.protocol)}</b>."
    parts.append(
        f'<p class="faint">{len(task.rows)} items, {len(task.failed)} failed, {task.seconds:.0f} s.{quirks} '
        f"{' '.join(escape(note) for note in task.notes)}</p>"
    )
    parts += [_metric(metric, task) for metric in task.metrics if any(f.metric == metric.name for f in task.figures)]
    for name, value in task.extra.items():
        if name == "position bias":
            parts.append(f'<p class="faint">{escape(name)}: {escape(str(value))}</p>')
    parts.append(_failures(task))
    parts.append(_worst(task, store))
    parts += [_published(each) for each in published.beside(task.task)]
    return "".join(parts)


def _metric(metric: Metric, task: TaskResult) -> str:
    figures = [figure for figure in task.figures if figure.metric == metric.name]
    about = f"{metric.about}. {words.protocol(metric)}".strip()
    method = figures[0].method
    return (
        f"<h3>{escape(words.name(metric))}</h3>{plots.forest(metric, figures)}"
        f'<p class="faint">{escape(about)} (interval: {escape(method)})</p>'
    )


def _failures(task: TaskResult) -> str:
    listed = [(row.id, row.error or "; ".join(row.problems)) for row in task.rows if row.error or row.problems]
    if not listed:
        return "<p>Nothing failed.</p>"
    rows = table(("Item", "Why"), [(escape(n), f'<span class="bad">{escape(why)}</span>') for n, why in listed])
    return f"<details><summary>{len(listed)} items failed or could not be measured in full</summary>{rows}</details>"


def _worst(task: TaskResult, store: Store) -> str:
    """The worst items, with their sound."""
    found = worst(task.rows, task.metrics)
    if not found:
        return ""
    rows = [(escape(row.id), _score(row, metric), _shown(row), _player(row, store)) for row, metric in found]
    return f"<h3>The worst {len(rows)}</h3>" + table(("Item", "Score", "What was said", "Sound"), rows)


def worst(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[tuple[Row, Metric]]:
    """The items that cost their first metric most (a language has its own), failures first among equals."""
    ranked = []
    for row in rows:
        metric = next((each for each in metrics if not each.measured and row.scores.get(each.name, [0, 0])[1]), None)
        if metric is not None:
            top, bottom = row.scores[metric.name]
            badness = top / bottom if metric.better == "lower" else -top / bottom
            ranked.append((-badness, row.error is None, row, metric))
    ranked.sort(key=lambda each: each[:2])
    return [(row, metric) for _, _, row, metric in ranked[:WORST]]


def _score(row: Row, metric: Metric) -> str:
    top, bottom = row.scores[metric.name]
    value = f"{top:g} of {bottom:g}" if metric.form == "ratio" else words.number(top / bottom, metric)
    return f"{escape(metric.name)}: {value}"


def _shown(row: Row) -> str:
    lines = [
        f'<span class="faint">{escape(name)}:</span> <pre>{escape(text)}</pre>' for name, text in row.shown.items()
    ]
    if row.error:
        lines.append(f'<span class="bad">{escape(row.error)}</span>')
    return "".join(f"<div>{line}</div>" for line in lines)


def _player(row: Row, store: Store) -> str:
    """The sound itself, small enough to lie in the page."""
    from stepaudio.audio.encode import Encoder
    from stepaudio.audio.io import read

    if row.audio is None:
        return "none"
    try:
        samples = read(store.root / row.audio, rate=24_000)
    except (StepAudioError, OSError):
        return "lost"
    encoder = Encoder("opus", 24_000, _BIT_RATE)
    data = encoder.push(samples[: int(_PLAYER_SECONDS * 24_000)]) + encoder.flush()
    source = f"data:audio/ogg;base64,{base64.b64encode(data).decode()}"
    return f'<audio controls preload="none" src="{source}" aria-label="{escape(row.id)}"></audio>'


def _published(each: published.Table) -> str:
    rows = [
        (escape(name), *("–" if value is None else f"{value:g}" for value in values))
        for name, values in each.rows.items()
    ]
    unit = f", {each.unit}" if each.unit else ""
    told = escape(f"{each.title}{unit}; {each.better} is better. Source: {each.source}.")
    caption = f"{told} <b>{published.MARK}.</b>"
    return table(("Model", *map(escape, each.columns)), rows, caption=caption, kind="published")


def _failed(count: int) -> str:
    return f'<span class="bad">{count}</span>' if count else "0"
