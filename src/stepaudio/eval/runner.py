"""Runs tasks: asks the system, keeps what it gives, scores it, and counts what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from stepaudio.errors import StepAudioError
from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Item, Output, Request
from stepaudio.eval.results import Row, TaskResult, figures
from stepaudio.eval.store import Store, key
from stepaudio.eval.systems import System
from stepaudio.eval.tasks.base import Task

SCORERS = 2
"""Items that are scored at once: two verdicts share every pass over the weights of a judge that is here."""
Doing = Callable[[str, int], Callable[[], None]]
"""Called with what is done next and in how many steps; returns what to call after each."""


def run_task(
    task: Task,
    items: Sequence[Item],
    system: System,
    store: Store,
    instruments: Instruments,
    *,
    seed: int = 0,
    doing: Doing = lambda description, steps: lambda: None,
) -> TaskResult:
    """One task on one system. Outputs and what instruments made of them are kept in the store as they come, so a run
    that was cut off goes on where it stopped. Nothing a system does ends the run: what it raises is that item's
    failure."""
    started = time.perf_counter()
    items = task.prepare(items, seed)
    outputs = collect(items, system, store, doing=doing)
    step = doing(f"{task.name}: scoring", len(items))
    metrics = task.metrics(items, instruments)

    def score(item: Item, made: tuple[Output, str]) -> Row:
        row = _row(task, item, *made, store, instruments)
        step()
        return row

    with ThreadPoolExecutor(SCORERS) as pool:
        rows = list(pool.map(score, items, outputs))
    counted = task.counted(rows)
    return TaskResult(
        task.name,
        task.title,
        task.version,
        task.protocol,
        metrics,
        figures(metrics, counted),
        rows,
        task.notes(rows, instruments),
        task.extra(rows, instruments),
        time.perf_counter() - started,
    )


def collect(
    items: Sequence[Item],
    system: System,
    store: Store,
    *,
    doing: Doing = lambda description, steps: lambda: None,
) -> list[tuple[Output, str]]:
    """The output for each item and the name that it is kept under, in order; as many at once as the system takes."""
    if not items:
        return []
    kind = items[0].request.kind
    step = doing(f"{system.name}: {kind}", len(items))

    def one(item: Item) -> tuple[Output, str]:
        found = ask(item.request, system, store)
        step()
        return found

    system.prepare(kind)
    with ThreadPoolExecutor(system.parallel(kind)) as pool:
        return list(pool.map(one, items))


def ask(request: Request, system: System, store: Store) -> tuple[Output, str]:
    """The output for one request: the one that is kept, or a new one."""
    try:
        name = key("output", system.fingerprint, request.id, request.content())
    except OSError as error:  # the recording is gone
        return Output(error=str(error)), ""
    kept = store.output(name)
    if kept is not None:
        return kept, name
    try:
        output = Output(system.run(request))
    except StepAudioError as error:
        return Output(error=str(error) or type(error).__name__), name
    except Exception as error:  # a defect of the system under test is its failure, not ours
        return Output(error=f"{type(error).__name__}: {error}"), name
    if empty(request, output):
        return Output(error="the output is empty"), name
    store.keep(name, output)
    # What is scored is what was kept (16-bit audio), so that a run that goes on is the run that was not cut off.
    return store.output(name) or output, name


def empty(request: Request, output: Output) -> bool:
    """Whether there is nothing in it of the kind that was asked for."""
    if not output.replies:
        return True
    if request.kind in ("say", "resynthesise"):
        return output.reply.audio is None or not output.reply.audio.samples.any()
    if request.kind == "transcribe":
        return not output.reply.text.strip()
    return not any(reply.text.strip() or reply.calls for reply in output.replies)


def _row(task: Task, item: Item, output: Output, name: str, store: Store, instruments: Instruments) -> Row:
    scored = task.score(item, output, instruments)
    audio = store.audio(name, len(output.replies) - 1) if output.reply.audio is not None else None
    return Row(
        item.id,
        item.group,
        item.language,
        item.cluster or item.id,
        {metric: [float(top), float(bottom)] for metric, (top, bottom) in scored.scores.items()},
        output.error,
        scored.problems,
        scored.shown,
        str(audio.relative_to(store.root)) if audio is not None else None,
    )
