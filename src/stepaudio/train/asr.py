"""A speech recogniser with a bottleneck: what trains a supervised tokenizer.

SANM encoder, quantiser, second SANM encoder with positions of its own, and two heads that must read the text
through the codes: CTC and an attention decoder. Afterwards only the first encoder and the quantiser are
kept. Sources: arXiv 2407.05407 section 2.1 (the quantiser in the middle of an ASR encoder), arXiv 1609.06773
(both losses).

Shapes: B utterances, T frames, I feature width, D model width, U characters, V vocabulary.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.tokenizer.quantize import Codebook, EmaCodebook, FiniteScalarQuantizer, Quantizer
from stepaudio.tokenizer.sanm import SanmConfig, SanmEncoder, sinusoids

BLANK, UNKNOWN, END = 0, 1, 2
"""CTC's blank, a character outside the vocabulary, and the start and end of a sentence for the attention
decoder."""
SPECIAL = 3

N_MELS = 80


class Characters:
    """Text as character ids: compatibility-normalised, lower case, white space as one space."""

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = list(characters)
        self._ids = {character: SPECIAL + index for index, character in enumerate(self.characters)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """The characters that occur in the texts."""
        return cls(sorted({character for text in texts for character in cls.normalise(text)}))

    @staticmethod
    def normalise(text: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", text).lower().split())

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(character, UNKNOWN) for character in self.normalise(text)]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[i - SPECIAL] if i >= SPECIAL else "" for i in ids)

    def __len__(self) -> int:
        return SPECIAL + len(self.characters)


@dataclass(frozen=True)
class RecognizerConfig:
    """Sizes of the recogniser. `width` is the dial: heads of 48 or more, feed-forward four times as wide.

    The defaults make the semantic tokenizer: one feature per 40 ms, steps of 240 ms, 4096 codes, 4 M
    parameters with a small alphabet. `quantizer="none"` trains an encoder for a k-means codebook;
    `upper_blocks` is then 0.
    """

    width: int = 192
    lower_blocks: int = 4
    upper_blocks: int = 4
    stack: int = 5
    skip: int = 4
    chunk: int = 6
    quantizer: Literal["fsq", "vq", "none"] = "fsq"
    levels: tuple[int, ...] = (8, 8, 8, 8)
    codes: int = 4096
    ctc_upsample: int = 1
    """Labels that CTC may give per frame: 2 for frames of 60 ms, which fast speech outruns."""
    decoder_blocks: int = 1
    dropout: float = 0.1
    ctc_weight: float = 0.5
    commitment_weight: float = 0.25
    label_smoothing: float = 0.1
    position_reach: int = 20_000
    """Positions are shifted at random by up to this many frames, so that hours-long streams are nothing
    new."""

    def sanm(self, input_dim: int, blocks: int) -> SanmConfig:
        return SanmConfig(
            input_dim=input_dim,
            dim=self.width,
            heads=max(1, self.width // 48),
            ffn_dim=4 * self.width,
            blocks=blocks,
            chunk=self.chunk,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class Losses:
    """Losses of a batch, and the codes of its real frames [N] (empty without a quantiser)."""

    total: Tensor
    ctc: Tensor
    attention: Tensor
    commitment: Tensor
    codes: Tensor
    error: Tensor
    """Mean squared distance between frames and their quantised form, relative to the frames' own variance."""


class Recognizer(nn.Module):
    """Features to characters, through the bottleneck."""

    def __init__(self, config: RecognizerConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.lower = SanmEncoder(config.sanm(N_MELS * config.stack, config.lower_blocks))
        self.quantizer = _quantizer(config)
        self.upper = SanmEncoder(config.sanm(config.width, config.upper_blocks)) if config.upper_blocks else None
        self.ctc = nn.Linear(config.width, vocabulary * config.ctc_upsample)
        self.embedding = nn.Embedding(vocabulary, config.width)
        layer = nn.TransformerDecoderLayer(
            config.width,
            max(1, config.width // 48),
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
        x_BTD, _ = self.lower(x_BTI, lengths_B, self.lower.initial_state(len(x_BTI), start_B))
        codes, commitment, error = lengths_B.new_zeros(0), x_BTD.new_zeros(()), x_BTD.new_zeros(())
        if self.quantizer is not None:
            real_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < lengths_B[:, None]
            frames_ND = x_BTD[real_BT].float()
            quantised_ND, codes, commitment = self.quantizer(frames_ND)
            error = ((quantised_ND - frames_ND).square().mean() / frames_ND.var()).detach()
            x_BTD = torch.zeros_like(x_BTD, dtype=quantised_ND.dtype).masked_scatter(real_BT[..., None], quantised_ND)
        if self.upper is not None:
            x_BTD, _ = self.upper(x_BTD, lengths_B, self.upper.initial_state(len(x_BTI), start_B))
        return x_BTD, codes, commitment, error

    def ctc_scores(self, x_BTD: Tensor) -> Tensor:
        """Log-probabilities [B, T * ctc_upsample, V]."""
        b, t, _ = x_BTD.shape
        scores: Tensor = self.ctc(x_BTD).float().view(b, t * self.config.ctc_upsample, -1)
        return scores.log_softmax(dim=-1)

    def forward(
        self,
        x_BTI: Tensor,
        lengths_B: Tensor,
        labels_BU: Tensor,
        label_lengths_B: Tensor,
        start_B: Tensor | int = 0,
    ) -> Losses:
        c = self.config
        x_BTD, codes, commitment, error = self.encode(x_BTI, lengths_B, start_B)
        ctc = F.ctc_loss(
            self.ctc_scores(x_BTD).transpose(0, 1),
            labels_BU,
            lengths_B * c.ctc_upsample,
            label_lengths_B,
            blank=BLANK,
            zero_infinity=True,
        )
        attention = self._attention_loss(x_BTD, lengths_B, labels_BU, label_lengths_B)
        total = c.ctc_weight * ctc + (1 - c.ctc_weight) * attention + c.commitment_weight * commitment
        return Losses(total, ctc.detach(), attention.detach(), commitment.detach(), codes, error)

    def _attention_loss(self, x_BTD: Tensor, lengths_B: Tensor, labels_BU: Tensor, label_lengths_B: Tensor) -> Tensor:
        index = torch.arange(labels_BU.shape[1] + 1, device=labels_BU.device)
        before_BU = F.pad(labels_BU, (1, 0), value=END)
        after_BU = F.pad(labels_BU, (0, 1)).masked_fill(index == label_lengths_B[:, None], END)
        after_BU = after_BU.masked_fill(index > label_lengths_B[:, None], -100)
        embedded = self.embedding(before_BU)
        embedded = embedded + sinusoids(torch.zeros_like(lengths_B), len(index), self.config.width)
        padding_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) >= lengths_B[:, None]
        causal = nn.Transformer.generate_square_subsequent_mask(len(index), device=x_BTD.device)
        decoded = self.decoder(
            embedded,
            x_BTD.to(embedded.dtype),
            tgt_mask=causal,
            memory_key_padding_mask=padding_BT,
            tgt_is_causal=True,
        )
        scores = self.output(decoded).float().flatten(0, 1)
        return F.cross_entropy(scores, after_BU.flatten(), label_smoothing=self.config.label_smoothing)

    @torch.no_grad()
    def transcribe(self, x_BTI: Tensor, lengths_B: Tensor, characters: Characters) -> list[str]:
        """Greedy CTC text of each utterance: what the codes alone still say."""
        scores = self.ctc_scores(self.encode(x_BTI, lengths_B)[0])
        texts = []
        for best, length in zip(scores.argmax(dim=-1), lengths_B * self.config.ctc_upsample, strict=True):
            labels = torch.unique_consecutive(best[: int(length)])
            texts.append(characters.decode(labels[labels != BLANK].tolist()))
        return texts

    def bottleneck(self) -> tuple[SanmEncoder, Quantizer | None]:
        """The part that makes the tokenizer, as modules of their own for inference, without dropout."""
        encoder = SanmEncoder(replace(self.lower.config, dropout=0.0))
        encoder.load_state_dict(self.lower.state_dict())
        if isinstance(self.quantizer, EmaCodebook):
            return encoder, Codebook(self.quantizer.vectors.clone())
        return encoder, self.quantizer


def _quantizer(config: RecognizerConfig) -> EmaCodebook | FiniteScalarQuantizer | None:
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(config.levels, config.width)
    if config.quantizer == "vq":
        return EmaCodebook(config.codes, config.width)
    return None
