"""A whole run: which sets a task is given, one task after another, and the files in the end."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import stepaudio
from stepaudio.errors import InputError, NotFoundError
from stepaudio.eval import results
from stepaudio.eval.datasets import ADAPTERS, read_path, read_set
from stepaudio.eval.instruments import Instruments, Setup
from stepaudio.eval.items import Clip, Item, Kind, Turn
from stepaudio.eval.report.html import write_report
from stepaudio.eval.results import Run, TaskResult
from stepaudio.eval.runner import Doing, run_task
from stepaudio.eval.store import Store, key
from stepaudio.eval.systems import System, open_system
from stepaudio.eval.tasks import TASKS, open_task
from stepaudio.eval.tasks.base import Task
from stepaudio.eval.tasks.live import NAME as LIVE
from stepaudio.eval.tasks.live import run_live
from stepaudio.speech.bundle import load

SETS = Path("evals")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: `system` as `stepaudio.eval.systems` reads it, `on` as `stepaudio.eval.datasets` does (by default
    our own sets, which lie in `sets`). `limit` takes the first items of every language of a set."""

    tasks: tuple[str, ...]
    system: str
    on: tuple[str, ...] = ()
    sets: Path = SETS
    out: Path = Path("reports")
    name: str | None = None
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    key: str | None = None
    conversations: int = 2
    instruments: Setup = field(default_factory=Setup)


def run_suite(plan: Plan, doing: Doing) -> tuple[Run, Path]:
    """Run the tasks, each added to the run's folder as soon as it is done; the run and its folder. A task that the
    system has no ability for is left out when there are several, an error when it is the only one."""
    if len(plan.tasks) > 1 and plan.protocol != "strict":
        raise InputError(f"the protocol {plan.protocol} belongs to one task: run that task alone", param="protocol")
    store = Store(plan.out / "cache")
    system = open_system(plan.system, key=plan.key, store=store)
    instruments = Instruments(plan.instruments, store, sets=plan.sets)
    folder = plan.out / (plan.name or system.name)
    try:
        run = _begun(plan, system, folder)
        left_out = []
        for name in plan.tasks:
            if reason := _cannot(name, system, plan):
                left_out.append(reason)
                continue
            run.tasks[name] = _run_one(name, plan, system, store, instruments, doing)
            run.tasks = {each: run.tasks[each] for each in TASKS if each in run.tasks}
            results.save(run, folder)
            write_report(run, folder, store)
        if len(left_out) == len(plan.tasks):
            raise InputError("; ".join(left_out), param="task")
        return run, folder
    finally:
        instruments.close()
        system.close()


def _begun(plan: Plan, system: System, folder: Path) -> Run:
    """The run in the folder goes on if it is of the same system: other tasks' results stay."""
    setup = {
        "version": stepaudio.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "fingerprint": system.fingerprint,
        "seed": plan.seed,
    }
    tasks: dict[str, TaskResult] = {}
    if (folder / "run.json").is_file():
        before = results.load(folder)
        if before.setup.get("fingerprint") == system.fingerprint:
            tasks = before.tasks
    return Run(system.name, plan.system, tasks, setup)


def _cannot(name: str, system: System, plan: Plan) -> str | None:
    """Why a system cannot be asked a task; None if it can."""
    if name == LIVE and not plan.conversations:
        return "no conversations were asked for"
    kind: Kind = "converse" if name == LIVE else open_task(name).kind
    talks = not Path(plan.system).is_dir()
    if kind not in system.kinds or (name == LIVE and not talks):
        able = ", ".join(sorted(system.kinds))
        return f"{system.name} cannot be judged by '{name}': it has to {kind}, and it can {able}"
    return None


def _run_one(name: str, plan: Plan, system: System, store: Store, instruments: Instruments, doing: Doing) -> TaskResult:
    if name == LIVE:
        speaker = plan.instruments.asr
        return run_live(
            plan.system,
            key=plan.key,
            speaker=speaker,
            conversations=plan.conversations,
            seed=plan.seed,
            doing=doing,
        )
    task = open_task(name, plan.protocol)
    items = _some(read_items(task, plan), plan.limit)
    items = _spoken(items, plan.instruments.asr, store, doing)
    return run_task(task, items, system, store, instruments, seed=plan.seed, doing=doing)


def read_items(task: Task, plan: Plan) -> list[Item]:
    """What a task runs on. The names of items say their set where there are several. Raises InputError for a set of
    another kind."""
    if not plan.on:
        folder = plan.sets / task.own
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no folder {folder} of our own sets; run in the repository, name its evals folder with "
                "--sets, or a dataset with --on",
                param="sets",
            )
        found = read_path("sentences" if task.own == "tts" else "own", folder)
        return [_of_kind(item, task.kind) for item in found]
    items: list[Item] = []
    for written in plan.on:
        name = written.partition(":")[0]
        if name in ADAPTERS and task.kind not in _kinds(ADAPTERS[name].kind) and name != "own":
            raise InputError(f"the dataset {name} is not one to {task.kind}", param="on")
        found = [_of_kind(item, task.kind) for item in read_set(written)]
        if len(plan.on) > 1:
            found = [replace(item, request=replace(item.request, id=f"{written}/{item.id}")) for item in found]
        items += found
    return items


def _kinds(kind: Kind) -> tuple[Kind, ...]:
    """What the items of a set can be asked for: recordings can also be resynthesised."""
    return ("transcribe", "resynthesise") if kind == "transcribe" else (kind,)


def _of_kind(item: Item, kind: Kind) -> Item:
    return item if item.request.kind == kind else replace(item, request=replace(item.request, kind=kind))


def _some(items: Sequence[Item], limit: int | None) -> list[Item]:
    counts: dict[tuple[str, str], int] = {}
    kept = []
    for item in items:
        place = (item.language, item.group) if item.request.kind == "transcribe" else (item.language, "")
        counts[place] = counts.get(place, 0) + 1
        if limit is None or counts[place] <= limit:
            kept.append(item)
    return kept


def _spoken(items: Sequence[Item], speaker: str, store: Store, doing: Doing) -> list[Item]:
    """What users have only written, spoken by the teachers: systems are asked aloud."""
    silent = [item for item in items if any(turn.clip is None for turn in item.request.turns)]
    if not silent:
        return list(items)
    step = doing("speaking the questions", len(silent))
    bundle = load(speaker)  # closed with the instruments

    def speak(turn: Turn, language: str) -> Turn:
        if turn.clip is not None:
            return turn
        path = store.audio(key("spoken", bundle.name, turn.text, language), 0)
        if not path.is_file():
            from stepaudio.audio.encode import write

            path.parent.mkdir(parents=True, exist_ok=True)
            chunks = [speech.samples for speech in bundle.say(turn.text, language=language)]
            write(path, np.concatenate(chunks), bundle.speaker.rate)
        return Turn(turn.text, Clip(path))

    spoken = []
    for item in items:
        turns = tuple(speak(turn, item.language) for turn in item.request.turns)
        spoken.append(replace(item, request=replace(item.request, turns=turns)))
        if item in silent:
            step()
    return spoken
