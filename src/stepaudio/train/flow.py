"""Training of the flow: codes to mel frames in the voice of another clip of the same speaker.

    for line in train_flow(manifest, LoopConfig(out, steps=4000)):
        print(line["step"], line["loss"])

Whatever may be missing at inference is missing now and then in training: the prompt (half of the time), all conditions
at once (for guidance), the speaker, one of the two codebooks. Chunks of streaming are drawn as well, so that one model
speaks in one piece or live.

Shapes: B clips, R rows, T mel frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW, Optimizer

from stepaudio.decoder.checkpoint import load_flow, save_flow
from stepaudio.decoder.chunks import Schedule as Chunks
from stepaudio.decoder.dit import DiTConfig
from stepaudio.decoder.encoder import EncoderConfig
from stepaudio.decoder.flow import AlignedFlow, FlowBatch, FlowConfig, build
from stepaudio.decoder.mel import MelSpec
from stepaudio.decoder.timbre import TIMBRE, TimbreConfig, TimbreEncoder, load_timbre, save_timbre
from stepaudio.decoder.tokens import PAD
from stepaudio.errors import InputError
from stepaudio.train.begin import code_vectors
from stepaudio.train.clips import FRAMES, Recordings
from stepaudio.train.log import Line
from stepaudio.train.loop import Epochs, Loop, LoopConfig, Loss, Task, checkpoints
from stepaudio.train.speech import batches

MEAN, STD = -5.0, 3.1
"""Of log-mel values at a peak of 0.7."""
NANO = FlowConfig(
    estimator=DiTConfig(dim=160, depth=5, heads=5, head_dim=32, ffn=640, frequencies=128),
    encoder=EncoderConfig(dim=160, heads=5, ffn=640, blocks=2, up_blocks=1),
    embedding=160,
    speaker=128,
    mel_mean=MEAN,
    mel_std=STD,
)
NANO_TIMBRE = TimbreConfig(mel_mean=MEAN, mel_std=STD)
_REFERENCE = 200
"""Mel frames of a reference at most: 4 s."""
_CHUNKS = (None, Chunks(), Chunks((6, 12, 24)))


@dataclass(frozen=True)
class FlowTraining:
    """Sizes, and how often what is dropped. `init` is a folder with weights to begin with, whose sizes they keep."""

    flow: FlowConfig = NANO
    timbre: TimbreConfig = NANO_TIMBRE
    init: Path | None = None
    batch_seconds: float = 32.0
    learning_rate: float = 1e-3
    drop: float = 0.1
    """All conditions together, for guidance."""
    drop_speaker: float = 0.1
    drop_codebook: float = 0.1
    """For each of the two."""
    prior: float = 0.5
    seed: int = 0

    @property
    def spec(self) -> MelSpec:
        """The mel it makes; the window is four hops long."""
        return MelSpec(self.flow.rate, 4 * self.flow.hop, self.flow.hop, self.flow.mels)


@dataclass
class Clips:
    """Padded clips and, for each, another clip of its speaker."""

    rows: Tensor
    row_lengths: Tensor
    mel: Tensor
    reference: Tensor
    reference_lengths: Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(*(tensor.to(device) for tensor in vars(self).values()))


Item = list[tuple[int, int, float]]
"""Clips of a micro-batch, their references, and where in these to begin, from 0 to 1."""


class Speech(nn.Module):
    """The flow and the timbre encoder that listens for it."""

    def __init__(self, flow: AlignedFlow, timbre: TimbreEncoder) -> None:
        super().__init__()
        self.flow = flow
        self.timbre = timbre


def train_flow(
    manifest: Path, config: LoopConfig, training: FlowTraining | None = None, *, tokenizer: str = "nano-tokenizer"
) -> Iterator[Line]:
    """Learn from a tokenized manifest's split train, or go on where a run in `config.out` stopped, giving its log; at
    the end the folder has `flow.safetensors` and `timbre.safetensors`. Raises MissingError and InputError."""
    training = training or FlowTraining()
    speech = None
    if training.init is not None:
        speech = load_speech(training.init)
        training = replace(training, flow=speech.flow.config, timbre=speech.timbre.config)
    task = FlowTask(training, Recordings.read(manifest, tokenizer, training.spec), speech)
    if speech is None and not checkpoints(config.out):
        begin_codes(task.model.flow, tokenizer)
    loop = Loop(task, config)
    yield from loop.run()
    with loop.averaged():
        save_speech(task.model, config.out)


def save_speech(speech: Speech, folder: Path) -> None:
    """Write both models as they are shipped, in float16."""
    save_flow(speech.flow, folder, dtype=torch.float16)
    save_timbre(speech.timbre, folder / TIMBRE, dtype=torch.float16)


def load_speech(folder: Path) -> Speech:
    """What `save_speech` wrote, to learn further. Raises MissingError and InputError."""
    flow = load_flow(folder, dtype=torch.float32)
    if not isinstance(flow, AlignedFlow):
        raise InputError(f"{folder} has a flow of the 22.05 kHz generation; only the 24 kHz one is learned here")
    return Speech(flow, load_timbre(folder / TIMBRE))


class FlowTask(Task[Item, Clips]):
    """Codes and a voice to mel."""

    model: Speech

    def __init__(self, config: FlowTraining, recordings: Recordings, model: Speech | None = None) -> None:
        self.config, self.recordings = config, recordings
        torch.manual_seed(config.seed)
        self.model = model or new_speech(config)
        self.by_speaker: dict[str, list[int]] = {}
        for index, speaker in enumerate(recordings.speakers):
            self.by_speaker.setdefault(speaker, []).append(index)
        self.cursor = Epochs(self._plan)
        chosen = {name: value for name, value in asdict(config).items() if name != "init"}
        self.identity = chosen | {"clips": [len(recordings.seconds), round(float(sum(recordings.seconds)), 3)]}

    def optimizers(self) -> list[Optimizer]:
        return [AdamW(self.model.parameters(), lr=self.config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)]

    def _plan(self, epoch: int) -> list[Item]:
        config = self.config
        rng = np.random.default_rng((config.seed, epoch, 1))
        seconds = self.recordings.seconds
        return [
            [(index, self._another(index, rng), float(rng.random())) for index in group]
            for group in batches(seconds, seconds=config.batch_seconds, seed=config.seed, epoch=epoch)
        ]

    def _another(self, index: int, rng: np.random.Generator) -> int:
        """Another clip of the same speaker, or itself if there is none."""
        own = self.by_speaker[self.recordings.speakers[index]]
        others = [other for other in own if other != index] or own
        return others[int(rng.integers(len(others)))]

    def load(self, item: Item) -> Clips:
        clips = [self.recordings[index] for index, _, _ in item]
        references = []
        for _, other, begin in item:
            mel_TM = self.recordings[other].mel
            start = int(begin * max(0, len(mel_TM) - _REFERENCE))
            references.append(mel_TM[start : start + _REFERENCE].float())
        return Clips(
            pad_sequence([clip.rows.long() for clip in clips], batch_first=True),
            torch.tensor([len(clip.rows) for clip in clips]),
            pad_sequence([clip.mel.float() for clip in clips], batch_first=True),
            pad_sequence(references, batch_first=True),
            torch.tensor([len(reference) for reference in references]),
        )

    def loss(self, batch: Clips, turn: int) -> Loss:
        config = self.config
        speaker_BS = self.model.timbre(batch.reference, batch.reference_lengths)
        drawn_3B = torch.rand(3, len(speaker_BS)).to(speaker_BS.device)
        speaker_BS = speaker_BS * (drawn_3B[0] >= config.drop_speaker)[:, None]
        rows_BR2 = without_codes(batch.rows, drawn_3B[1] < config.drop_codebook, drawn_3B[2] < config.drop_codebook)
        chunks = _CHUNKS[int(torch.randint(len(_CHUNKS), ()))]
        ends = None if chunks is None else torch.tensor(chunks.ends(rows_BR2.shape[1]), device=rows_BR2.device)
        lengths_B = batch.row_lengths
        flow_batch = FlowBatch(rows_BR2, lengths_B, batch.mel, FRAMES * lengths_B, speaker_BS)
        mean = self.model.flow.loss(
            flow_batch, torch.default_generator, drop=config.drop, prior=config.prior, ends=ends
        )
        frames = float(FRAMES * lengths_B.sum())
        return Loss(mean * frames, frames)


def without_codes(rows_BR2: Tensor, linguistic_B: Tensor, semantic_B: Tensor) -> Tensor:
    """Rows whose clips have lost their linguistic or their semantic codes, where true; none loses both."""
    lost_B12 = torch.stack([linguistic_B, semantic_B & ~linguistic_B], dim=-1)[:, None]
    return torch.where(lost_B12, PAD, rows_BR2)


def new_speech(config: FlowTraining) -> Speech:
    """New models: blocks that begin as the identity, and no velocity at first (adaLN-zero, arXiv 2212.09748)."""
    flow = build(config.flow)
    assert isinstance(flow, AlignedFlow)
    for module in flow.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.trunc_normal_(module.weight, std=(module.weight[0].numel()) ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    zero: list[nn.Linear] = [block.adaLN_modulation[1] for block in flow.estimator.blocks]
    for linear in (*zero, flow.estimator.final_layer.adaLN_modulation[1], flow.estimator.final_layer.linear):
        nn.init.zeros_(linear.weight)
    return Speech(flow, TimbreEncoder(config.timbre))


@torch.no_grad()
def begin_codes(flow: AlignedFlow, tokenizer: str) -> None:
    """Let the table of codes begin as a random projection of the vectors that they stand for, if the tokenizer is one
    of ours: codes that are near in its eyes are near in the flow's, and most of 4096 codes are rare."""
    table = flow.input_embedding.embedding.weight
    at = 0
    for vectors_KD in code_vectors(tokenizer).values():  # linguistic, then, behind PAD, semantic
        count, width = vectors_KD.shape
        scaled_KD = (vectors_KD - vectors_KD.mean(0)) / vectors_KD.std(0).clamp(min=1e-3)
        table[at : at + count] = scaled_KD @ torch.randn(width, table.shape[1]) * width**-0.5
        at += count + 1
