"""A recogniser with a bottleneck: what trains a supervised tokenizer.

SANM encoder, quantiser, reader, and heads that must say through the codes what is said: CTC on the reader, an
attention decoder beside it and, where the recordings tell when each phoneme sounds, the phonemes of each frame, from
its code alone and from the reader. Afterwards only the encoder and the quantiser are the tokenizer; the reader is
kept to measure it. Sources: arXiv 2407.05407 section 2.1 (the quantiser in the middle of an ASR encoder), arXiv
1609.06773 (CTC and attention). The loss on phonemes is ours: teachers give their alignments away, and with them a
small encoder learns in minutes what CTC alone takes hours to find.

Shapes: B utterances, T frames, I feature width, D model width, U pieces, V vocabulary, P phonemes per frame.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.errors import InputError
from stepaudio.tokenizer.quantize import Codebook, EmaCodebook, FiniteScalarQuantizer, Quantizer
from stepaudio.tokenizer.sanm import SanmConfig, SanmEncoder, sinusoids
from stepaudio.train.pieces import BLANK, END
from stepaudio.train.reader import Reader, ReaderConfig

N_MELS = 80
IGNORE = -100
"""A label that counts for nothing."""


@dataclass(frozen=True)
class RecognizerConfig:
    """Sizes of the recogniser. `width` is the dial: heads of 48 or more, feed-forward four times as wide.

    The defaults make the semantic tokenizer: one feature per 40 ms, steps of 240 ms, 4096 codes. `quantizer="none"`
    trains an encoder for a k-means codebook.
    """

    width: int = 192
    blocks: int = 4
    reader_blocks: int = 3
    stack: int = 5
    skip: int = 4
    chunk: int = 6
    quantizer: Literal["fsq", "vq", "none"] = "fsq"
    levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    codes: int = 4096
    pieces: int = 500
    phonemes_per_frame: int = 2
    decoder_blocks: int = 1
    dropout: float = 0.0
    """Every sentence is heard once or twice: there is nothing to learn by heart, and random numbers are slow."""
    ctc_weight: float = 0.3
    attention_weight: float = 0.2
    phoneme_weight: float = 1.0
    commitment_weight: float = 0.25
    label_smoothing: float = 0.1
    position_reach: int = 20_000
    """Positions are shifted at random by up to this many frames, so that hours-long streams are nothing
    new."""

    def __post_init__(self) -> None:
        heads = max(1, self.width // 48)
        if self.width < 2 or self.width % (2 * heads):
            raise InputError(
                f"a width of {self.width} cannot be shared by {heads} heads: take a multiple of 48, such as 96 or 192",
                param="width",
            )

    def sanm(self) -> SanmConfig:
        return SanmConfig(
            input_dim=N_MELS * self.stack,
            dim=self.width,
            heads=max(1, self.width // 48),
            ffn_dim=4 * self.width,
            blocks=self.blocks,
            kernel=7,
            chunk=self.chunk,
            left=2,
            dropout=self.dropout,
        )

    def reader(self) -> ReaderConfig:
        return ReaderConfig(
            self.width, self.reader_blocks, phonemes_per_frame=self.phonemes_per_frame, dropout=self.dropout
        )


@dataclass(frozen=True)
class Batch:
    """Features [B, T, I] with lengths [B], pieces [B, U] with lengths [B], phonemes [B, T, P] (IGNORE: not known)."""

    x_BTI: Tensor
    lengths_B: Tensor
    labels_BU: Tensor
    label_lengths_B: Tensor
    phonemes_BTP: Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Losses:
    """Losses of a batch, and the codes of its real frames [N] (empty without a quantiser)."""

    total: Tensor
    ctc: Tensor
    attention: Tensor
    phonemes: Tensor
    commitment: Tensor
    codes: Tensor
    error: Tensor
    """Mean squared distance between frames and their quantised form, relative to the frames' own variance."""


class Recognizer(nn.Module):
    """Features to pieces of text, through the bottleneck."""

    def __init__(self, config: RecognizerConfig, vocabulary: int, phonemes: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = SanmEncoder(config.sanm())
        self.quantizer = _quantizer(config)
        self.phonemes = nn.Linear(config.width, config.phonemes_per_frame * phonemes) if phonemes else None
        self.reader = Reader(config.reader(), vocabulary, phonemes)
        self.embedding = nn.Embedding(vocabulary, config.width)
        layer = nn.TransformerDecoderLayer(
            config.width,
            config.reader().heads,
            4 * config.width,
            config.dropout,
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, config.decoder_blocks, nn.LayerNorm(config.width))
        self.output = nn.Linear(config.width, vocabulary)

    def encode(
        self, x_BTI: Tensor, lengths_B: Tensor, start_B: Tensor | int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames [B, T, D] after the bottleneck, codes [N], commitment loss and relative error."""
        x_BTD, _ = self.encoder(x_BTI, lengths_B, self.encoder.initial_state(len(x_BTI), start_B))
        real_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < lengths_B[:, None]
        if self.quantizer is None:
            # Frames past the end are undefined, and what is undefined must not reach the reader.
            nothing = x_BTD.new_zeros(())
            return x_BTD * real_BT[..., None], lengths_B.new_zeros(0), nothing, nothing
        frames_ND = x_BTD[real_BT].float()
        quantised_ND, codes, commitment = self.quantizer(frames_ND)
        error = ((quantised_ND - frames_ND).square().mean() / frames_ND.var()).detach()
        x_BTD = torch.zeros_like(x_BTD, dtype=quantised_ND.dtype).masked_scatter(real_BT[..., None], quantised_ND)
        return x_BTD, codes, commitment, error

    def forward(self, batch: Batch, start_B: Tensor | int = 0) -> Losses:
        c = self.config
        coded_BTD, codes, commitment, error = self.encode(batch.x_BTI, batch.lengths_B, start_B)
        x_BTD = self.reader(coded_BTD, batch.lengths_B)
        ctc = F.ctc_loss(
            self.reader.scores(x_BTD).transpose(0, 1),
            batch.labels_BU,
            batch.lengths_B,
            batch.label_lengths_B,
            blank=BLANK,
            zero_infinity=True,
        )
        attention = self._attention_loss(x_BTD, batch)
        phonemes = _phoneme_loss(self.phonemes, coded_BTD, batch.phonemes_BTP)
        phonemes = phonemes + _phoneme_loss(self.reader.phonemes, x_BTD, batch.phonemes_BTP)
        total = c.ctc_weight * ctc + c.attention_weight * attention
        total = total + c.phoneme_weight * phonemes + c.commitment_weight * commitment
        return Losses(total, ctc.detach(), attention.detach(), phonemes.detach(), commitment.detach(), codes, error)

    def _attention_loss(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        labels_BU, ends_B = batch.labels_BU, batch.label_lengths_B
        index = torch.arange(labels_BU.shape[1] + 1, device=labels_BU.device)
        before_BU = F.pad(labels_BU, (1, 0), value=END)
        after_BU = F.pad(labels_BU, (0, 1)).masked_fill(index == ends_B[:, None], END)
        after_BU = after_BU.masked_fill(index > ends_B[:, None], IGNORE)
        embedded = self.embedding(before_BU)
        embedded = embedded + sinusoids(torch.zeros_like(ends_B), len(index), self.config.width)
        padding_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) >= batch.lengths_B[:, None]
        causal = nn.Transformer.generate_square_subsequent_mask(len(index), device=x_BTD.device)
        decoded = self.decoder(
            embedded,
            x_BTD.to(embedded.dtype),
            tgt_mask=causal,
            memory_key_padding_mask=padding_BT,
            tgt_is_causal=True,
        )
        scores = self.output(decoded).float().flatten(0, 1)
        return F.cross_entropy(
            scores, after_BU.flatten(), ignore_index=IGNORE, label_smoothing=self.config.label_smoothing
        )

    def bottleneck(self) -> tuple[SanmEncoder, Quantizer | None]:
        """The part that makes the tokenizer, as modules of their own for inference, without dropout."""
        encoder = SanmEncoder(replace(self.encoder.config, dropout=0.0))
        encoder.load_state_dict(self.encoder.state_dict())
        if isinstance(self.quantizer, EmaCodebook):
            return encoder, Codebook(self.quantizer.vectors.clone())
        return encoder, self.quantizer


def _phoneme_loss(head: nn.Linear | None, x_BTD: Tensor, phonemes_BTP: Tensor) -> Tensor:
    if head is None or bool((phonemes_BTP == IGNORE).all()):
        return x_BTD.new_zeros(())
    scores = head(x_BTD).float().view(*phonemes_BTP.shape, -1)
    return F.cross_entropy(scores.flatten(0, 2), phonemes_BTP.flatten(), ignore_index=IGNORE)


def _quantizer(config: RecognizerConfig) -> EmaCodebook | FiniteScalarQuantizer | None:
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(config.levels, config.width)
    if config.quantizer == "vq":
        return EmaCodebook(config.codes, config.width)
    return None
