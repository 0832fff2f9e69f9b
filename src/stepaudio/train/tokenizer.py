"""Training of the tokenizer's encoders, with exact resumption.

    train(TrainConfig(manifest, out))                   # semantic: FSQ or VQ inside the recogniser
    linguistic = TrainConfig(manifest, out2, linguistic_recipe())
    train(linguistic), fit_linguistic(linguistic)       # linguistic: an encoder, then k-means on its outputs

`out` holds the loop's checkpoints and log (`stepaudio.train.loop`) and at the end `semantic.safetensors` with
`reader.safetensors`, or `linguistic.safetensors`. A run that was cut off goes on and ends with the same weights as one
that was not; when the manifest has grown meanwhile, a new epoch begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW, Optimizer

from stepaudio.data.augment import augment
from stepaudio.data.manifest import Utterance, read_manifest
from stepaudio.errors import InputError
from stepaudio.files import read_text, replacing
from stepaudio.tokenizer import checkpoint
from stepaudio.tokenizer.gain import normalise_peak
from stepaudio.tokenizer.lfr import LfrFrontend
from stepaudio.tokenizer.linguistic import SanmBranch
from stepaudio.train.asr import IGNORE, N_MELS, Batch, Losses, Recognizer, RecognizerConfig
from stepaudio.train.codes import perplexity, usage
from stepaudio.train.kmeans import encoder_vectors, fit_codebook
from stepaudio.train.lexicon import Lexicon
from stepaudio.train.log import Line
from stepaudio.train.loop import Epochs, Loop, LoopConfig, Loss, Schedule, Task
from stepaudio.train.pieces import Pieces
from stepaudio.train.reader import FILE as READER
from stepaudio.train.reader import Literate, save_reader
from stepaudio.train.speech import batches, fit_frontend, phoneme_labels, phoneme_shares, samples

Item = tuple[int, list[int]]
"""Epoch and utterances of a batch."""


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


class TokenizerTask(Task[Item, Batch]):
    """A recogniser that learns to transcribe through the bottleneck that gives codes.

    What it was begun with, labels and the features' normalisation, lies in `out/begun.pt`: a manifest that grows later
    changes none of it.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.utterances = read_manifest(config.manifest, split="train")
        begun = self._begun()
        shift, scale = (vector.numpy() for vector in begun["frontend"])
        if len(shift) != config.model.stack * N_MELS:
            raise InputError(f"{config.out} is the folder of the other branch's run: choose another one")
        self.frontend = LfrFrontend(shift, scale, config.model.stack, config.model.skip)
        self.pieces = Pieces(bytes(begun["pieces"].tolist()))
        self.phonemes = {symbol: index for index, symbol in enumerate(begun["phonemes"])}
        torch.manual_seed(config.seed)
        self.model: Recognizer = Recognizer(config.model, len(self.pieces), len(self.phonemes))
        self.cursor = _Plan(config, self.utterances)
        sizes = {"batch_seconds": config.batch_seconds, "augment": config.augment}
        rates = [config.learning_rate, config.weight_decay]
        self.identity = {"model": asdict(config.model), "rates": rates, **sizes}
        self._counts = self._no_counts()

    def _begun(self) -> dict[str, Any]:
        path = self.config.out / "begun.pt"
        if not path.is_file():
            frontend = fit_frontend(self.utterances, stack=self.config.model.stack, skip=self.config.model.skip)
            pieces = Pieces.of((u.words for u in self.utterances), self.config.model.pieces)
            begun = {
                "frontend": [torch.from_numpy(frontend.shift), torch.from_numpy(frontend.scale)],
                "pieces": torch.frombuffer(bytearray(pieces.model), dtype=torch.uint8),
                "phonemes": sorted({symbol for utterance in self.utterances for symbol in utterance.phonemes}),
            }
            self.config.out.mkdir(parents=True, exist_ok=True)
            with replacing(path) as half:
                torch.save(begun, half)
        known: dict[str, Any] = torch.load(path, weights_only=True)
        return known

    def optimizers(self) -> list[Optimizer]:
        c = self.config
        return [AdamW(self.model.parameters(), c.learning_rate, betas=(0.9, 0.98), weight_decay=c.weight_decay)]

    def load(self, item: Item) -> Batch:
        """The batch of these utterances, augmented as they always are in this epoch."""
        epoch, indices = item
        rows = []
        for index in indices:
            utterance = self.utterances[index]
            heard, stretch = samples(utterance), 1.0
            if self.config.augment:
                heard, stretch = augment(heard, np.random.default_rng((self.config.seed, epoch, index)))
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

    def loss(self, batch: Batch, turn: int) -> Loss:
        """The recogniser's losses are means of their own kinds: of pieces, of frames. They count by frames."""
        start_B = torch.randint(0, self.config.model.position_reach, (len(batch.x_BTI),)).to(batch.x_BTI.device)
        losses: Losses = self.model(batch, start_B)
        self._counts += np.bincount(losses.codes.cpu().numpy(), minlength=len(self._counts))
        frames = int(batch.lengths_B.sum())
        names = ("ctc", "attention", "phonemes", "commitment", "error")
        return Loss(losses.total * frames, frames, {name: (getattr(losses, name), 1.0) for name in names})

    def evaluate(self) -> dict[str, float]:
        """How the codes were used since it was last asked."""
        counts, self._counts = self._counts, self._no_counts()
        return {"usage": usage(counts), "perplexity": perplexity(counts)} if len(counts) else {}

    def _no_counts(self) -> NDArray[np.int64]:
        return np.zeros(self.model.quantizer.codes if self.model.quantizer else 0, dtype=np.int64)

    def branch(self) -> SanmBranch:
        """The tokenizer branch that was trained. Raises InputError when the model has no quantiser."""
        encoder, quantizer = self.model.bottleneck()
        if quantizer is None:
            raise InputError("this encoder has no quantiser: fit one with stepaudio.train.kmeans")
        return SanmBranch(self.frontend, encoder, quantizer)


class _Plan(Epochs[Item]):
    """Batches of utterances, epoch after epoch; a manifest that has grown meanwhile begins a new one."""

    def __init__(self, config: TrainConfig, utterances: Sequence[Utterance]) -> None:
        self._heard = [len(utterances), round(sum(utterance.duration for utterance in utterances))]

        def plan(epoch: int) -> list[Item]:
            durations = [utterance.duration for utterance in utterances]
            cut = batches(durations, seconds=config.batch_seconds, seed=config.seed, epoch=epoch)
            return [(epoch, indices) for indices in cut]

        super().__init__(plan)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "heard": self._heard}

    def restore(self, state: Mapping[str, Any]) -> None:
        same = state["heard"] == self._heard
        super().restore(state if same else {"epoch": state["epoch"] + 1, "position": 0})


def loop(task: TokenizerTask) -> Loop[Item, Batch]:
    """The run of a task, from where it was."""
    c = task.config
    schedule = Schedule(c.warmup, c.cooldown, 0.02)
    return Loop(
        task,
        LoopConfig(
            c.out, c.steps, schedule=schedule, clip=c.clip, bf16=c.bf16, seed=c.seed,
            log_every=c.log_every, save_every=c.save_every, evaluate_every=c.log_every,
        ),
    )  # fmt: skip


def train(config: TrainConfig, log: Callable[[Line], None] = lambda line: None) -> TokenizerTask:
    """Train to the end, or go on with a run that was cut off. `log` gets each line that is written to the log."""
    task = TokenizerTask(config)
    for line in loop(task).run():
        log(line)
    if task.model.quantizer is not None:
        checkpoint.save_branch(config.out / checkpoint.SEMANTIC, task.branch(), dtype=torch.float16)
        lexicon = Lexicon.of([*((u.spoken, u.phonemes) for u in task.utterances), *_sentences(config.sentences)])
        save_reader(
            config.out / READER,
            Literate(
                task.model.reader,
                task.pieces.names,
                list(task.phonemes),
                phoneme_shares(task.utterances, task.phonemes),
                lexicon,
            ),
        )
    return task


def _sentences(path: Path | None) -> list[tuple[str, str]]:
    if path is None:
        return []
    rows = [line.split("\t") for line in read_text(path).splitlines()]
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
    task = TokenizerTask(config)
    loop(task)  # which takes up what was learned
    encoder, _ = task.model.bottleneck()
    heard = task.utterances[:: -(-len(task.utterances) // most)]
    vectors = list(encoder_vectors(task.frontend, encoder, heard))
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
    branch = SanmBranch(task.frontend, encoder, codebook)
    checkpoint.save_branch(config.out / checkpoint.LINGUISTIC, branch, dtype=torch.float16)
    return branch
