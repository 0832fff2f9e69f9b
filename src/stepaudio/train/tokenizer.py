"""Training of the tokenizer's encoders, with exact resumption.

    train(TrainConfig(manifest, out))                   # semantic: FSQ or VQ inside the recogniser
    linguistic = TrainConfig(manifest, out2, linguistic_recipe())
    train(linguistic), fit_linguistic(linguistic)       # linguistic: an encoder, then k-means on its outputs

`out` holds `checkpoint.pt` (everything needed to go on), `log.jsonl` (one line per `log_every` steps) and at
the end `semantic.safetensors` or `linguistic.safetensors`. A run that was cut off goes on from its last
checkpoint and ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepaudio.errors import InputError
from stepaudio.tokenizer import checkpoint
from stepaudio.tokenizer.lfr import LfrFrontend
from stepaudio.tokenizer.linguistic import SanmBranch
from stepaudio.train.asr import Characters, Losses, Recognizer, RecognizerConfig
from stepaudio.train.codes import perplexity, usage
from stepaudio.train.kmeans import encoder_vectors, fit_codebook
from stepaudio.train.speech import Utterance, batches, fit_frontend, read_manifest


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    manifest: Path
    out: Path
    model: RecognizerConfig = field(default_factory=RecognizerConfig)
    steps: int = 10_000
    batch_seconds: float = 120.0
    learning_rate: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    bf16: bool = True
    """Autocast to bfloat16: two to three times faster on processors that have it."""
    log_every: int = 50
    save_every: int = 500


def linguistic_recipe(width: int = 144) -> RecognizerConfig:
    """An encoder for linguistic codes: the released chunking, 60 ms features, no quantiser of its own."""
    return RecognizerConfig(
        width=width,
        lower_blocks=4,
        upper_blocks=0,
        stack=7,
        skip=6,
        chunk=4,
        quantizer="none",
        ctc_upsample=2,
    )


class Trainer:
    """The state of a run, and one step of it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.utterances = read_manifest(config.manifest)
        self.characters = Characters.of(utterance.text for utterance in self.utterances)
        torch.manual_seed(config.seed)
        self.model = Recognizer(config.model, len(self.characters)).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
        )
        self.step = 0
        self.epoch = 0
        self.position = 0  # batches of this epoch that are done
        self.frontend: LfrFrontend
        if self._checkpoint.is_file():
            self._load()
        else:
            self.frontend = fit_frontend(self.utterances, stack=config.model.stack, skip=config.model.skip)

    @property
    def _checkpoint(self) -> Path:
        return self.config.out / "checkpoint.pt"

    def save(self) -> None:
        """Write the whole state; a crash while writing leaves the one before."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "progress": [self.step, self.epoch, self.position],
            "frontend": [torch.from_numpy(self.frontend.shift), torch.from_numpy(self.frontend.scale)],
            "characters": self.characters.characters,
            "config": self._identity(),
        }
        self.config.out.mkdir(parents=True, exist_ok=True)
        half = self._checkpoint.with_suffix(".half")
        torch.save(state, half)
        os.replace(half, self._checkpoint)

    def _load(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        if state["config"] != self._identity() or state["characters"] != self.characters.characters:
            raise InputError(f"{self._checkpoint} is of another model, seed or data: choose another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step, self.epoch, self.position = state["progress"]
        shift, scale = (vector.numpy() for vector in state["frontend"])
        self.frontend = LfrFrontend(shift, scale, self.config.model.stack, self.config.model.skip)

    def _identity(self) -> str:
        """What must be equal for a checkpoint to be continued: all but where it lies and how often it
        reports."""
        fields = asdict(self.config)
        for name in ("manifest", "out", "log_every", "save_every"):
            del fields[name]
        return json.dumps(fields, sort_keys=True)

    def run(self) -> Iterator[dict[str, Any]]:
        """Train to the last step, giving the log lines; saves on the way and at the end."""
        config = self.config
        meter = _Meter(self.model.quantizer.codes if self.model.quantizer else 0)
        while self.step < config.steps:
            plan = batches(
                [u.duration for u in self.utterances],
                seconds=config.batch_seconds,
                seed=config.seed,
                epoch=self.epoch,
            )
            for indices in plan[self.position :]:
                seconds, losses = self.train_step([self.utterances[i] for i in indices])
                self.position += 1
                if self.position == len(plan):
                    self.epoch, self.position = self.epoch + 1, 0
                meter.add(losses, seconds)
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self.save()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    yield meter.line(self.step, self.epoch, self.optimizer.param_groups[0]["lr"])
                if self.step == config.steps:
                    break

    def train_step(self, utterances: list[Utterance]) -> tuple[float, Losses]:
        """One update; gives the seconds of audio and the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        x_BTI, lengths_B = self.features(utterances)
        labels = [torch.tensor(self.characters.encode(u.text)) for u in utterances]
        labels_BU = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
        label_lengths_B = torch.tensor([len(label) for label in labels])
        start_B = torch.randint(0, self.config.model.position_reach, (len(utterances),))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            losses: Losses = self.model(x_BTI, lengths_B, labels_BU, label_lengths_B, start_B)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        return sum(u.duration for u in utterances), losses

    def features(self, utterances: list[Utterance]) -> tuple[Tensor, Tensor]:
        """Padded features [B, T, I] and their lengths [B]. Raises InputError for a recording without a frame."""
        rows = [torch.from_numpy(self.frontend(utterance.samples())) for utterance in utterances]
        for utterance, row in zip(utterances, rows, strict=True):
            if len(row) == 0:
                raise InputError(f"{utterance.audio} is too short to train on: take it out of the manifest")
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to a tenth."""
        c = self.config
        if self.step < c.warmup:
            return c.learning_rate * (self.step + 1) / c.warmup
        done = (self.step - c.warmup) / max(1, c.steps - c.warmup)
        return c.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

    def branch(self) -> SanmBranch:
        """The tokenizer branch that was trained. Raises InputError when the model has no quantiser."""
        encoder, quantizer = self.model.bottleneck()
        if quantizer is None:
            raise InputError("this encoder has no quantiser: fit one with stepaudio.train.kmeans")
        return SanmBranch(self.frontend, encoder, quantizer)


class _Meter:
    """Means since the last log line."""

    def __init__(self, codes: int) -> None:
        self._codes = codes
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._seconds = 0.0
        self._counts = np.zeros(self._codes, dtype=np.int64)
        self._since = time.perf_counter()

    def add(self, losses: Losses, seconds: float) -> None:
        for name in ("total", "ctc", "attention", "commitment", "error"):
            self._sums[name] = self._sums.get(name, 0.0) + float(getattr(losses, name).detach())
        self._counts += np.bincount(losses.codes.numpy(), minlength=self._codes)
        self._steps += 1
        self._seconds += seconds

    def line(self, step: int, epoch: int, learning_rate: float) -> dict[str, Any]:
        line: dict[str, Any] = {"step": step, "epoch": epoch, "learning_rate": learning_rate}
        line |= {name: total / self._steps for name, total in self._sums.items()}
        if self._codes:
            line |= {"usage": usage(self._counts), "perplexity": perplexity(self._counts)}
        line["audio_seconds_per_second"] = self._seconds / (time.perf_counter() - self._since)
        self._clear()
        return line


def train(config: TrainConfig) -> Trainer:
    """Train to the end, or go on with a run that was cut off, with a progress bar and a log."""
    from rich.progress import Progress

    trainer = Trainer(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with Progress() as progress, (config.out / "log.jsonl").open("a", encoding="utf-8") as log:
        task = progress.add_task("training", total=config.steps, completed=trainer.step)
        for line in trainer.run():
            log.write(json.dumps(line) + "\n")
            log.flush()
            progress.update(task, completed=line["step"], description=f"loss {line['total']:.3f}")
    if trainer.model.quantizer is not None:
        checkpoint.save_branch(config.out / checkpoint.SEMANTIC, trainer.branch())
    return trainer


def fit_linguistic(config: TrainConfig, *, codes: int = 1024, iterations: int = 30) -> SanmBranch:
    """The k-means codebook on the outputs of an encoder that `train` has finished, resumable like it.

    Writes `linguistic.safetensors` and one line per iteration to `kmeans.jsonl` in the run's folder.
    """
    trainer = Trainer(config)
    encoder, _ = trainer.model.bottleneck()
    with (config.out / "kmeans.jsonl").open("a", encoding="utf-8") as log:
        codebook = fit_codebook(
            lambda: encoder_vectors(trainer.frontend, encoder, trainer.utterances),
            codes,
            iterations=iterations,
            seed=config.seed,
            checkpoint=config.out / "kmeans.pt",
            log=lambda line: print(json.dumps(line), file=log, flush=True),
        )
    branch = SanmBranch(trainer.frontend, encoder, codebook)
    checkpoint.save_branch(config.out / checkpoint.LINGUISTIC, branch)
    return branch
