"""Training of the tokenizer's encoders, with exact resumption.

    train(TrainConfig(manifest, out))                   # semantic: FSQ or VQ inside the recogniser
    linguistic = TrainConfig(manifest, out2, linguistic_recipe())
    train(linguistic), fit_linguistic(linguistic)       # linguistic: an encoder, then k-means on its outputs

`out` holds what `stepaudio.train.loop` keeps of a run, `front.pt` (what was fitted to the manifest before) and at the
end `semantic.safetensors` with `reader.safetensors`, or `linguistic.safetensors`. A run that was cut
off goes on from its last checkpoint and ends with the same weights as one that was not. When the manifest has grown
meanwhile, a new epoch begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
from stepaudio.train.loop import Epochs, Loop, LoopConfig, Loss, Schedule, Task
from stepaudio.train.pieces import Pieces
from stepaudio.train.reader import FILE as READER
from stepaudio.train.reader import Literate, save_reader
from stepaudio.train.speech import batches, fit_frontend, phoneme_labels, phoneme_shares, samples


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
    """Last part of the steps, in which the learning rate falls to a fiftieth."""
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


Item = tuple[int, list[int]]
"""An epoch, and the utterances of a batch in it."""


class _Heard(Epochs[Item]):
    """Batches of a manifest that may have grown when a run goes on: a new epoch begins then."""

    def __init__(self, plan: Callable[[int], Sequence[Item]], heard: list[int]) -> None:
        self._heard = heard
        super().__init__(plan)

    def state(self) -> dict[str, Any]:
        return super().state() | {"heard": self._heard}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["heard"] == self._heard:
            super().restore(state)
        else:
            self._go(state["epoch"] + 1, 0)


class TokenizerTask(Task[Item, Batch]):
    """A recogniser that has to say what is said, through a bottleneck that becomes the tokenizer."""

    model: Recognizer

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.utterances = read_manifest(config.manifest, split="train")
        self.frontend, self.pieces, symbols = self._front()
        self.phonemes = {symbol: index for index, symbol in enumerate(symbols)}
        torch.manual_seed(config.seed)
        self.model = Recognizer(config.model, len(self.pieces), len(self.phonemes)).train()
        seconds = sum(utterance.duration for utterance in self.utterances)
        self.cursor = _Heard(self._plan, [len(self.utterances), round(seconds)])
        self._counts = np.zeros(self.model.quantizer.codes if self.model.quantizer else 0, dtype=np.int64)

    @property
    def identity(self) -> dict[str, Any]:  # type: ignore[override]
        """All but where the run lies, how long it goes on and how often it reports."""
        fields = asdict(self.config)
        for name in ("manifest", "out", "sentences", "steps", "log_every", "save_every"):
            del fields[name]
        return fields

    def _front(self) -> tuple[LfrFrontend, Pieces, list[str]]:
        """What is fitted to the manifest before training, and kept when the manifest grows."""
        model, path = self.config.model, self.config.out / "front.pt"
        if not path.is_file():
            frontend = fit_frontend(self.utterances, stack=model.stack, skip=model.skip)
            pieces = Pieces.of((u.words for u in self.utterances), model.pieces)
            fitted = {
                "shift": torch.from_numpy(frontend.shift),
                "scale": torch.from_numpy(frontend.scale),
                "pieces": torch.frombuffer(bytearray(pieces.model), dtype=torch.uint8),
                "phonemes": sorted({symbol for utterance in self.utterances for symbol in utterance.phonemes}),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(".half")
            torch.save(fitted, half)
            half.replace(path)
        fitted = torch.load(path, weights_only=True)
        frontend = LfrFrontend(fitted["shift"].numpy(), fitted["scale"].numpy(), model.stack, model.skip)
        return frontend, Pieces(bytes(fitted["pieces"].tolist())), fitted["phonemes"]

    def _plan(self, epoch: int) -> list[Item]:
        config, durations = self.config, [utterance.duration for utterance in self.utterances]
        plan = batches(durations, seconds=config.batch_seconds, seed=config.seed, epoch=epoch)
        return [(epoch, indices) for indices in plan]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        config = self.config
        return [
            torch.optim.AdamW(
                self.model.parameters(),
                lr=config.learning_rate,
                betas=(0.9, 0.98),
                weight_decay=config.weight_decay,
            )
        ]

    def load(self, item: Item) -> Batch:
        """The batch of these utterances, augmented as it always is in this epoch."""
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
        start_B = torch.randint(0, self.config.model.position_reach, (len(batch.x_BTI),))
        losses: Losses = self.model(batch, start_B.to(batch.x_BTI.device))
        self._counts += np.bincount(losses.codes.cpu().numpy(), minlength=len(self._counts))
        frames = int(batch.lengths_B.sum())
        names = ("ctc", "attention", "phonemes", "commitment", "error")
        return Loss(losses.total * frames, frames, {name: (getattr(losses, name), 1.0) for name in names})

    def evaluate(self) -> dict[str, float]:
        """How the codes were used since the last time."""
        counts, self._counts = self._counts, np.zeros_like(self._counts)
        return {"usage": usage(counts), "perplexity": perplexity(counts)} if len(counts) else {}

    def branch(self) -> SanmBranch:
        """The tokenizer branch that was trained. Raises InputError when the model has no quantiser."""
        encoder, quantizer = self.model.bottleneck()
        if quantizer is None:
            raise InputError("this encoder has no quantiser: fit one with stepaudio.train.kmeans")
        return SanmBranch(self.frontend, encoder, quantizer)


def begin(task: TokenizerTask) -> Loop[Item, Batch]:
    """The run of a task, standing where it was cut off if it was."""
    config = task.config
    schedule = Schedule(config.warmup, config.cooldown, floor=0.02)
    return Loop(
        task,
        LoopConfig(
            config.out,
            config.steps,
            schedule=schedule,
            clip=config.clip,
            bf16=config.bf16,
            seed=config.seed,
            log_every=config.log_every,
            save_every=config.save_every,
            evaluate_every=config.log_every,
        ),
    )


def train(config: TrainConfig, log: Callable[[dict[str, Any]], None] = lambda line: None) -> TokenizerTask:
    """Train to the end, or go on with a run that was cut off, and export it. `log` gets each line of the log, with the
    seconds of audio learned in a second."""
    task = TokenizerTask(config)
    for line in begin(task).run():
        log(line | {"audio_seconds_per_second": line["tokens_per_second"] / task.frontend.codes_per_second})
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
    task = TokenizerTask(config)
    begin(task)  # brings the weights back
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
