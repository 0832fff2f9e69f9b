"""The one training loop: everything that is trained here is a `Task` that `Loop` learns.

    for line in Loop(task, LoopConfig(out, steps=2000)).run():
        print(line["step"], line["loss"])

A step draws `micro_batches` items from the task's cursor, sums their losses, and divides the gradient by the number of
trained tokens in all of them, on all ranks. So a long micro-batch weighs more than a short one, and how a step is cut
into micro-batches, or how many processes share them, does not change what is learned.

Exact resumption rests on two rules. Everything random is a function of the seed and the place in the run: torch is
seeded anew for every micro-batch. And the cursor that is saved is that of the step that was learned, however far ahead
batches were prepared. A run killed at any moment goes on from its last checkpoint and ends with the same weights.

Started plainly it is one process; started by `torchrun` the same code shards parameters, gradients and optimisers with
FSDP2. A checkpoint holds whole tensors: it can be continued by another number of processes that divides
`micro_batches`. They are gathered in the memory of each rank one at a time, and kept by rank 0.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepaudio.errors import BackendError, InputError
from stepaudio.train.log import Line, Log, Meter
from stepaudio.train.world import World

AHEAD = 2
"""Steps whose batches are prepared while one is learned."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate's factor: a linear warm-up, a constant stretch, and a fall over the last part of the run.

    `cooldown` is the part of all steps in which it falls to `floor`; 1 with "cosine" is the usual cosine. A run that
    has not begun to fall can be given more or fewer steps and be continued.
    """

    warmup: int = 100
    cooldown: float = 0.3
    floor: float = 0.0
    shape: Literal["linear", "cosine"] = "linear"

    def factor(self, step: int, steps: int) -> float:
        """For the update after `step` others, of `steps`."""
        left = min(1.0, (steps - step) / max(1.0, self.cooldown * steps))
        fall = left if self.shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
        return min(1.0, (step + 1) / max(1, self.warmup)) * (self.floor + (1 - self.floor) * fall)


@dataclass(frozen=True)
class LoopConfig:
    """How a task is learned. `steps` are updates, each of `micro_batches` items of the cursor over all ranks."""

    out: Path
    steps: int
    micro_batches: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    clip: float = 1.0
    """Largest norm of one optimiser's gradient."""
    ema: float = 0.0
    """Decay of the averaged weights, which follow faster in the beginning; 0 keeps none."""
    bf16: bool = True
    """Autocast to bfloat16: two to three times faster on processors that have it."""
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    evaluate_every: int = 0
    """0: never."""
    keep: int = 2
    """Checkpoints that are kept."""


class Batch(Protocol):
    def to(self, device: torch.device) -> Self: ...


Item = TypeVar("Item")
Drawn = TypeVar("Drawn", covariant=True)
B = TypeVar("B", bound=Batch)


class Cursor(Protocol[Drawn]):
    """An endless stream of what micro-batches consist of: small, the same on every rank, quick to draw.

    `state` says where it stands, in plain numbers, strings, lists and tensors; `restore` goes there.
    """

    def __next__(self) -> Drawn: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class Epochs(Generic[Item]):
    """A cursor through `plan(epoch)`, one epoch after the other. The same epoch must give the same plan."""

    def __init__(self, plan: Callable[[int], Sequence[Item]]) -> None:
        self._plan = plan
        self._go(0, 0)

    def __next__(self) -> Item:
        if self.position == len(self._items):
            self._go(self.epoch + 1, 0)
        self.position += 1
        return self._items[self.position - 1]

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._go(state["epoch"], state["position"])

    def _go(self, epoch: int, position: int) -> None:
        self.epoch, self.position, self._items = epoch, position, self._plan(epoch)
        if not self._items:
            raise InputError("there is nothing to train on")


@dataclass
class Loss:
    """What a micro-batch gave: the loss summed over its `count` trained tokens (frames, samples).

    `figures` are logged as the ratio of two sums, over all micro-batches and ranks between two lines. `flops` is the
    arithmetic of the forward and backward pass, from which the log tells how well the hardware is used.
    """

    total: Tensor
    count: float
    figures: Mapping[str, tuple[Tensor | float, float]] = field(default_factory=dict)
    flops: float = 0.0


class Task(ABC, Generic[Item, B]):
    """What is learned.

    `identity` (plain JSON) must be equal for a checkpoint to be continued: sizes, data, losses.
    """

    model: nn.Module
    cursor: Cursor[Item]
    identity: Mapping[str, Any]

    @abstractmethod
    def optimizers(self) -> Sequence[Optimizer]:
        """One optimiser, or several that take turns within a step. Each group's `lr` is its peak: groups have rates of
        their own, and the schedule scales them all."""

    @abstractmethod
    def load(self, item: Item) -> B:
        """The micro-batch of an item, prepared in a thread beside the loop."""

    @abstractmethod
    def loss(self, batch: B, turn: int) -> Loss:
        """The loss that optimiser number `turn` lowers. Gradients of the others' parameters are thrown away."""

    def shards(self) -> Iterable[nn.Module]:
        """The modules that FSDP2 gathers one at a time, inner ones first; each must be called as a module."""
        return [self.model]

    def evaluate(self) -> Mapping[str, float]:
        """Figures of held-out data; called with the averaged weights if there are any, without gradients."""
        return {}


class Loop(Generic[Item, B]):
    """A run: the state of learning a task, continued from `config.out` if it holds a checkpoint."""

    def __init__(self, task: Task[Item, B], config: LoopConfig, world: World | None = None) -> None:
        self.task, self.config, self.world = task, config, world or World.from_environment()
        if config.micro_batches % self.world.size:
            raise InputError(
                f"{config.micro_batches} micro-batches cannot be shared evenly by {self.world.size} processes"
            )
        self.world.shard(task.model, task.shards(), bf16=config.bf16)
        self.optimizers = list(task.optimizers())
        self.rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.averages = [p.detach().clone() for p in task.model.parameters()] if config.ema else []
        self.step = 0
        self.cursor = task.cursor.state()
        self.meter = Meter(self.world)
        self._resume()

    def run(self) -> Iterator[Line]:
        """Learn to the last step, giving the log's lines as they are written; saves on the way and at the end."""
        config = self.config
        log = Log(config.out, self.step) if self.world.first else None
        with ThreadPoolExecutor(1) as pool:
            prepared = self._prepared(pool)
            while self.step < config.steps:
                micros, self.cursor = next(prepared)
                self._learn([micro.result() for micro in micros])
                self.step += 1
                last = self.step == config.steps
                judged = config.evaluate_every > 0 and (last or self.step % config.evaluate_every == 0)
                line = self._line(judged) if judged or last or self.step % config.log_every == 0 else None
                if line is not None and log is not None:
                    log.write(line)
                # After the line, so that a run that goes on from here does not count these steps again.
                if last or self.step % config.save_every == 0:
                    self.save()
                if line is not None:
                    yield line

    def _prepared(self, pool: ThreadPoolExecutor) -> Iterator[tuple[list[Future[B]], dict[str, Any]]]:
        """Each step's micro-batches of this rank, and where the cursor stands behind the step's items."""
        self.task.cursor.restore(self.cursor)
        waiting: deque[tuple[list[Future[B]], dict[str, Any]]] = deque()
        left = self.config.steps - self.step
        while left or waiting:
            while left and len(waiting) <= AHEAD:
                items = [next(self.task.cursor) for _ in range(self.config.micro_batches)]
                own = [pool.submit(self.task.load, item) for item in items[self.world.rank :: self.world.size]]
                waiting.append((own, self.task.cursor.state()))
                left -= 1
            yield waiting.popleft()

    def _learn(self, batches: Sequence[B]) -> None:
        """One update of every optimiser."""
        factor = self.config.schedule.factor(self.step, self.config.steps)
        batches = [batch.to(self.world.device) for batch in batches]
        for turn, (optimizer, rates) in enumerate(zip(self.optimizers, self.rates, strict=True)):
            self.task.model.train().zero_grad(set_to_none=True)
            count = sum(self._backward(batch, index, turn) for index, batch in enumerate(batches))
            norm = self._normalise(optimizer, self.world.sum(count))
            self.meter.add("gradient" if turn == 0 else f"gradient_{turn}", norm, 1.0)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        self.task.model.zero_grad(set_to_none=True)
        self.meter.steps += 1
        if self.averages:
            decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
            for average, parameter in zip(self.averages, self.task.model.parameters(), strict=True):
                average.lerp_(parameter.detach(), 1 - decay)

    def _backward(self, batch: B, index: int, turn: int) -> float:
        """Add the gradient of a micro-batch; returns its count of trained tokens."""
        number = self.step * self.config.micro_batches + index * self.world.size + self.world.rank
        torch.manual_seed((self.config.seed * 1_000_003 + number) * len(self.optimizers) + turn)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.bf16):
            loss = self.task.loss(batch, turn)
        loss.total.backward()  # type: ignore[no-untyped-call]
        self.meter.add("loss" if turn == 0 else f"loss_{turn}", loss.total, loss.count)
        for name, (value, weight) in loss.figures.items():
            self.meter.add(name, value, weight)
        self.meter.work(loss.count if turn == 0 else 0.0, loss.flops)
        return loss.count

    def _normalise(self, optimizer: Optimizer, count: float) -> float:
        """Make an optimiser's gradient the mean over all trained tokens, clipped; returns its norm before clipping."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scale = 1 / max(count, 1.0)
        norm = float(self.world.whole(torch.nn.utils.get_total_norm(gradients))) * scale
        if not math.isfinite(norm):
            raise BackendError(
                f"the gradient is not finite at step {self.step + 1}; the last checkpoint is sound: go on from it with "
                "a lower learning rate or another seed"
            )
        for gradient in gradients:
            gradient.mul_(scale * min(1.0, self.config.clip / (norm + 1e-6)))
        return norm

    def _line(self, judged: bool) -> Line:
        steps = self.config.steps
        line: Line = {"step": self.step, "steps": steps, "rate": self.config.schedule.factor(self.step - 1, steps)}
        line |= self.meter.line(steps - self.step)
        if judged:
            with self.averaged(), torch.no_grad():
                self.task.model.eval()
                line |= self.task.evaluate()
            self.meter.since = time.perf_counter()  # judging is not learning
        return line

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its averaged weights, if there are any, inside a `with`."""
        parameters = list(self.task.model.parameters()) if self.averages else []
        learned = [parameter.detach().clone() for parameter in parameters]
        _assign(parameters, self.averages)
        try:
            yield self.task.model
        finally:
            _assign(parameters, learned)

    # ------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write the whole state under a new name, and remove the oldest beyond `keep`."""
        whole = self.world.whole
        state = {
            "identity": _identity(self.task, self.config),
            "step": self.step,
            "cursor": self.cursor,
            "meter": self.meter.sums,
            "model": {name: whole(tensor) for name, tensor in self.task.model.state_dict().items()},
            "averages": [whole(average) for average in self.averages],
            "optimizers": [_mapped(optimizer.state_dict(), whole) for optimizer in self.optimizers],
        }
        if self.world.first:
            self.config.out.mkdir(parents=True, exist_ok=True)
            half = self.config.out / "checkpoint.half"
            try:
                with half.open("wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
            except (OSError, RuntimeError) as error:  # the latter is how torch puts the former
                half.unlink(missing_ok=True)
                raise BackendError(
                    f"the checkpoint of step {self.step} cannot be written to {self.config.out}: "
                    f"{error.__context__ or error}; make room and start the run again, it goes on from the one before"
                ) from error
            os.replace(half, self.config.out / f"checkpoint-{self.step:08}.pt")
            for old in checkpoints(self.config.out)[: -self.config.keep]:
                old.unlink()
        self.world.wait()

    def _resume(self) -> None:
        saved = checkpoints(self.config.out)
        if not saved:
            return
        try:
            state = torch.load(saved[-1], weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(f"{saved[-1]} is damaged: remove it, and the run goes on from the one before") from error
        if state["identity"] != _identity(self.task, self.config):
            raise InputError(f"{saved[-1]} is of another model, data, rate or seed: choose another folder")
        like = self.world.like
        current = self.task.model.state_dict()
        self.task.model.load_state_dict({name: like(state["model"][name], current[name]) for name in current})
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, values in own["state"].items():
                own["state"][index] = {name: like(value, parameters[index]) for name, value in values.items()}
            optimizer.load_state_dict(own)
        _assign(self.averages, [like(t, a) for t, a in zip(state["averages"], self.averages, strict=True)])
        self.step, self.cursor, self.meter.sums = state["step"], state["cursor"], state["meter"]


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    return sorted(out.glob("checkpoint-*.pt"))


def _identity(task: Task[Any, Any], config: LoopConfig) -> str:
    """What must be equal for a checkpoint to be continued: not where it lies, how long it goes on or what it logs."""
    own = {"seed": config.seed, "micro_batches": config.micro_batches, "ema": config.ema > 0}
    return json.dumps({**own, **task.identity}, sort_keys=True)


@torch.no_grad()
def _assign(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nest of dictionaries and lists with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    return [_mapped(one, change) for one in value] if isinstance(value, list) else value
