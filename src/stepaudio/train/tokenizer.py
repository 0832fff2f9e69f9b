"""Training of the tokenizer's encoders, with exact resumption.

    train(TrainConfig(manifest, out))                   # semantic: FSQ or VQ inside the recogniser
    linguistic = TrainConfig(manifest, out2, linguistic_recipe())
    train(linguistic), fit_linguistic(linguistic)       # linguistic: an encoder, then k-means on its outputs

`out` holds `checkpoint.pt` (everything needed to go on) and the one before it, `log.jsonl` (one line per `log_every`
steps) and at the end `semantic.safetensors` with `reader.safetensors`, or `linguistic.safetensors`. A run that was cut
off goes on from its last checkpoint and ends with the same weights as one that was not. When the manifest has grown
meanwhile, a new epoch begins.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stepaudio.data.augment import augment
from stepaudio.data.manifest import Utterance, read_manifest
from stepaudio.errors import InputError
from stepaudio.tokenizer import checkpoint
from stepaudio.tokenizer.gain import normalise_peak
from stepaudio.tokenizer.lfr import LfrFrontend
from stepaudio.tokenizer.linguistic import SanmBranch
from stepaudio.train.asr import IGNORE, Batch, Losses, Recognizer, RecognizerConfig
from stepaudio.train.codes import perplexity, usage
from stepaudio.train.kmeans import encoder_vectors, fit_codebook
from stepaudio.train.lexicon import Lexicon
from stepaudio.train.pieces import Pieces
from stepaudio.train.reader import FILE as READER
from stepaudio.train.reader import Literate, save_reader
from stepaudio.train.speech import batches, fit_frontend, phoneme_labels, phoneme_shares, samples

AHEAD = 4
"""Batches that are prepared while one is learned."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    manifest: Path
    out: Path
    model: RecognizerConfig = field(default_factory=RecognizerConfig)
    sentences: Path | None = None
    """More text for the reader's lexicon: a sentence per line, its words and after a tab its phonemes."""
    steps: int = 5000
    batch_seconds: float = 40.0
    learning_rate: float = 2e-3
    warmup: int = 150
    cooldown: float = 0.3
    """Last part of the steps, in which the learning rate falls to a fiftieth. A run that has not reached it can be
    given more or fewer steps and be continued."""
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    augment: bool = True
    bf16: bool = True
    """Autocast to bfloat16: two to three times faster on processors that have it."""
    log_every: int = 50
    save_every: int = 200


def linguistic_recipe(width: int = 144) -> RecognizerConfig:
    """An encoder for linguistic codes: the released chunking, 60 ms features, no quantiser of its own."""
    return RecognizerConfig(
        width=width, blocks=4, reader_blocks=2, stack=7, skip=6, chunk=4, quantizer="none", phonemes_per_frame=3
    )


class Trainer:
    """The state of a run, and one step of it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.utterances = read_manifest(config.manifest, split="train")
        self.step = 0
        self.epoch = 0
        self.position = 0  # batches of this epoch that are done
        self.frontend: LfrFrontend
        self.pieces: Pieces
        saved = self._saved()
        if saved is None:
            self.frontend = fit_frontend(self.utterances, stack=config.model.stack, skip=config.model.skip)
            self.pieces = Pieces.of((u.words for u in self.utterances), config.model.pieces)
            symbols = sorted({symbol for utterance in self.utterances for symbol in utterance.phonemes})
        else:
            shift, scale = (vector.numpy() for vector in saved["frontend"])
            self.frontend = LfrFrontend(shift, scale, config.model.stack, config.model.skip)
            self.pieces = Pieces(bytes(saved["pieces"].tolist()))
            symbols = saved["phonemes"]
        self.phonemes = {symbol: index for index, symbol in enumerate(symbols)}
        torch.manual_seed(config.seed)
        self.model = Recognizer(config.model, len(self.pieces), len(self.phonemes)).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
        )
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["rng"])
            self.step, self.epoch, self.position = saved["progress"]
            if saved["heard"] != self._heard():
                self.epoch, self.position = self.epoch + 1, 0

    @property
    def _checkpoint(self) -> Path:
        return self.config.out / "checkpoint.pt"

    def save(self) -> None:
        """Write the whole state and keep the one before; a crash while writing leaves that."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "progress": [self.step, self.epoch, self.position],
            "frontend": [torch.from_numpy(self.frontend.shift), torch.from_numpy(self.frontend.scale)],
            "pieces": torch.frombuffer(bytearray(self.pieces.model), dtype=torch.uint8),
            "phonemes": list(self.phonemes),
            "heard": self._heard(),
            "config": self._identity(),
        }
        self.config.out.mkdir(parents=True, exist_ok=True)
        half = self._checkpoint.with_suffix(".half")
        torch.save(state, half)
        if self._checkpoint.is_file():
            os.replace(self._checkpoint, self.config.out / "checkpoint-before.pt")
        os.replace(half, self._checkpoint)

    def _saved(self) -> dict[str, Any] | None:
        if not self._checkpoint.is_file():
            return None
        state: dict[str, Any] = torch.load(self._checkpoint, weights_only=True)
        if state["config"] != self._identity():
            raise InputError(f"{self._checkpoint} is of another model or seed: choose another folder")
        return state

    def _identity(self) -> str:
        """What must be equal for a checkpoint to be continued: all but where it lies, how long it goes on and how
        often it reports."""
        fields = asdict(self.config)
        for name in ("manifest", "out", "sentences", "steps", "log_every", "save_every"):
            del fields[name]
        return json.dumps(fields, sort_keys=True)

    def _heard(self) -> list[int]:
        """What tells that the manifest has grown since a checkpoint: its lines and seconds."""
        return [len(self.utterances), round(sum(utterance.duration for utterance in self.utterances))]

    def run(self) -> Iterator[dict[str, Any]]:
        """Train to the last step, giving the log lines; saves on the way and at the end."""
        config = self.config
        meter = _Meter(self.model.quantizer.codes if self.model.quantizer else 0, self.frontend.codes_per_second)
        while self.step < config.steps:
            plan = batches(
                [u.duration for u in self.utterances],
                seconds=config.batch_seconds,
                seed=config.seed,
                epoch=self.epoch,
            )
            for batch in _prepared(self._prepare, plan[self.position :]):
                losses = self.train_step(batch)
                self.position += 1
                if self.position == len(plan):
                    self.epoch, self.position = self.epoch + 1, 0
                meter.add(losses, int(batch.lengths_B.sum()))
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self.save()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    yield meter.line(self.step, self.epoch, self.optimizer.param_groups[0]["lr"])
                if self.step == config.steps:
                    break

    def train_step(self, batch: Batch) -> Losses:
        """One update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        start_B = torch.randint(0, self.config.model.position_reach, (len(batch.x_BTI),))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            losses: Losses = self.model(batch, start_B)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        return losses

    def _prepare(self, indices: list[int]) -> Batch:
        """The batch of these utterances, augmented as it always is in this epoch."""
        rows = []
        for index in indices:
            utterance = self.utterances[index]
            heard, stretch = samples(utterance), 1.0
            if self.config.augment:
                heard, stretch = augment(heard, np.random.default_rng((self.config.seed, self.epoch, index)))
                heard = normalise_peak(heard)
            rows.append((utterance, torch.from_numpy(self.frontend(heard)), stretch))
        return self.batch(rows)

    def batch(self, rows: list[tuple[Utterance, Tensor, float]]) -> Batch:
        """Utterances with their features [T, I] and stretch as one batch. Raises InputError for a recording without
        a frame."""
        per_frame = self.config.model.phonemes_per_frame
        for utterance, x_TI, _ in rows:
            if len(x_TI) == 0:
                raise InputError(f"{utterance.audio} is too short to train on: take it out of the manifest")
        labels = [torch.tensor(self.pieces.encode(utterance.words), dtype=torch.long) for utterance, _, _ in rows]
        phonemes = [
            torch.from_numpy(
                phoneme_labels(utterance, self.phonemes, self.frontend, len(x_TI), per_frame, stretch, IGNORE)
            )
            if utterance.phonemes
            else torch.full((len(x_TI), per_frame), IGNORE)
            for utterance, x_TI, stretch in rows
        ]
        return Batch(
            pad_sequence([x_TI for _, x_TI, _ in rows], batch_first=True),
            torch.tensor([len(x_TI) for _, x_TI, _ in rows]),
            pad_sequence(labels, batch_first=True),
            torch.tensor([len(label) for label in labels]),
            pad_sequence(phonemes, batch_first=True, padding_value=IGNORE),
        )

    def _learning_rate(self) -> float:
        """Linear warm-up, a constant stretch, and a linear fall at the end."""
        c = self.config
        left = (c.steps - self.step) / max(1.0, c.cooldown * c.steps)
        return c.learning_rate * min((self.step + 1) / c.warmup, max(left, 0.02), 1.0)

    def branch(self) -> SanmBranch:
        """The tokenizer branch that was trained. Raises InputError when the model has no quantiser."""
        encoder, quantizer = self.model.bottleneck()
        if quantizer is None:
            raise InputError("this encoder has no quantiser: fit one with stepaudio.train.kmeans")
        return SanmBranch(self.frontend, encoder, quantizer)


def _prepared(prepare: Callable[[list[int]], Batch], plan: list[list[int]]) -> Iterator[Batch]:
    """The batches of a plan in order, made ahead in a thread of their own."""
    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[Batch]] = []
        for indices in plan:
            waiting.append(pool.submit(prepare, indices))
            if len(waiting) > AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


class _Meter:
    """Means since the last log line."""

    def __init__(self, codes: int, codes_per_second: float) -> None:
        self._codes, self._codes_per_second = codes, codes_per_second
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._frames = 0
        self._counts = np.zeros(self._codes, dtype=np.int64)
        self._since = time.perf_counter()

    def add(self, losses: Losses, frames: int) -> None:
        for name in ("total", "ctc", "attention", "phonemes", "commitment", "error"):
            self._sums[name] = self._sums.get(name, 0.0) + float(getattr(losses, name).detach())
        self._counts += np.bincount(losses.codes.numpy(), minlength=self._codes)
        self._steps += 1
        self._frames += frames

    def line(self, step: int, epoch: int, learning_rate: float) -> dict[str, Any]:
        line: dict[str, Any] = {"step": step, "epoch": epoch, "learning_rate": learning_rate}
        line |= {name: total / self._steps for name, total in self._sums.items()}
        if self._codes:
            line |= {"usage": usage(self._counts), "perplexity": perplexity(self._counts)}
        wall = time.perf_counter() - self._since
        line |= {"codes_per_second": self._frames / wall}
        line["audio_seconds_per_second"] = self._frames / wall / self._codes_per_second
        self._clear()
        return line


def train(config: TrainConfig, log: Callable[[dict[str, Any]], None] = lambda line: None) -> Trainer:
    """Train to the end, or go on with a run that was cut off. `log` gets each line that is written to the log."""
    trainer = Trainer(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with (config.out / "log.jsonl").open("a", encoding="utf-8") as file:
        for line in trainer.run():
            file.write(json.dumps(line) + "\n")
            file.flush()
            log(line)
    if trainer.model.quantizer is not None:
        checkpoint.save_branch(config.out / checkpoint.SEMANTIC, trainer.branch(), dtype=torch.float16)
        lexicon = Lexicon.of([*((u.spoken, u.phonemes) for u in trainer.utterances), *_sentences(config.sentences)])
        save_reader(
            config.out / READER,
            Literate(
                trainer.model.reader,
                trainer.pieces.names,
                list(trainer.phonemes),
                phoneme_shares(trainer.utterances, trainer.phonemes),
                lexicon,
            ),
        )
    return trainer


def _sentences(path: Path | None) -> list[tuple[str, str]]:
    if path is None:
        return []
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise InputError(f"line {number} of {path} is not words, a tab and phonemes")
    return [(words, phonemes) for words, phonemes in rows]


def fit_linguistic(
    config: TrainConfig,
    *,
    codes: int = 1024,
    iterations: int = 15,
    most: int = 2000,
    log: Callable[[dict[str, Any]], None] = lambda line: None,
) -> SanmBranch:
    """The k-means codebook on the outputs of an encoder that `train` has finished, resumable like it.

    At most `most` evenly spread utterances are read. Writes `linguistic.safetensors` and one line per iteration to
    `kmeans.jsonl` in the run's folder.
    """
    trainer = Trainer(config)
    encoder, _ = trainer.model.bottleneck()
    heard = trainer.utterances[:: -(-len(trainer.utterances) // most)]
    vectors = list(encoder_vectors(trainer.frontend, encoder, heard))
    with (config.out / "kmeans.jsonl").open("a", encoding="utf-8") as file:

        def report(line: dict[str, Any]) -> None:
            print(json.dumps(line), file=file, flush=True)
            log(line)

        codebook = fit_codebook(
            lambda: vectors,
            codes,
            iterations=iterations,
            seed=config.seed,
            checkpoint=config.out / "kmeans.pt",
            log=report,
        )
    branch = SanmBranch(trainer.frontend, encoder, codebook)
    checkpoint.save_branch(config.out / checkpoint.LINGUISTIC, branch, dtype=torch.float16)
    return branch
