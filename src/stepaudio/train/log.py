"""What is seen of a training run: its figures between two lines, and the files they are written to."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from stepaudio.files import replacing
from stepaudio.train.world import World

Line = dict[str, Any]


class Meter:
    """Ratios of sums since the last line, over all ranks, and the speed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.clear()

    def clear(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.steps, self._tokens, self._flops, self.since = 0, 0.0, 0.0, time.perf_counter()

    def add(self, name: str, value: Tensor | float, weight: float) -> None:
        value = float(value.detach()) if isinstance(value, Tensor) else value
        total, count = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = [total + value, count + weight]

    def work(self, tokens: float, flops: float) -> None:
        self._tokens += tokens
        self._flops += flops

    def line(self, left: int) -> Line:
        """Everything since the last line, and the seconds that `left` more steps will take; starts anew."""
        seconds = max(1e-9, time.perf_counter() - self.since)
        sums = self._world.gather(self.sums)
        line: Line = {}
        for name in sorted({name for own in sums for name in own}):
            total, count = (sum(own.get(name, (0.0, 0.0))[i] for own in sums) for i in (0, 1))
            line[name] = total / count if count else 0.0
        line["tokens_per_second"] = self._world.sum(self._tokens) / seconds
        if self._flops:
            line["mfu"] = self._flops / seconds / self._world.peak_flops
        line["seconds_left"] = left * seconds / max(1, self.steps)
        self.clear()
        return line


class Log:
    """`log.jsonl`, and TensorBoard's files where that package is installed. Lines of steps that were lost with a
    killed process are taken back."""

    def __init__(self, out: Path, step: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "log.jsonl"
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        with replacing(self._path) as half:
            half.write_text("".join(f"{line}\n" for line in lines if _step(line) <= step), encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board: Any = SummaryWriter(str(out / "tensorboard"), purge_step=step)
        except ImportError:
            self._board = None

    def write(self, line: Line) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                self._board.add_scalar(name, value, line["step"])
            self._board.flush()


def _step(line: str) -> float:
    """The step of a log's line; a line that was cut off while it was written belongs to none."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf
