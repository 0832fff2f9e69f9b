"""Conditional flow matching: from noise to mel frames that say the tokens in the speaker's voice.

Two generations share the solver, the conditions and the training objective:

- `InterleavedFlow` (22.05 kHz, Step-Audio-TTS-3B): interleaved tokens are embedded as they are, encoded, stretched to
  mel frames; the estimator is a U-Net. Mel length is int(tokens / token rate * sample rate / hop).
- `AlignedFlow` (24 kHz, Step-Audio-EditX): tokens become rows of two codes at 25 Hz, the encoder doubles their rate;
  the estimator is a DiT. This one streams.

The flow starts from noise that depends on the seed and on the frame's position alone, so that a frame gets the same
noise however a stream is cut. Source: arXiv 2210.02747, 2407.05407; guidance as arXiv 2207.12598.

Shapes: B batch, N tokens, R rows, T mel frames, M mel channels, S speaker vector, C encoder width, K = 3 M.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stepaudio.decoder.dit import DiT, DiTConfig
from stepaudio.decoder.encoder import EncoderConfig, LengthRegulator, TokenConformer, UpsampleConformer, stretch
from stepaudio.decoder.layers import pack, valid
from stepaudio.decoder.solver import Noise, cosine_grid, euler, guided
from stepaudio.decoder.tokens import TABLE_ROWS, realign
from stepaudio.decoder.unet import UNet, UNetConfig
from stepaudio.errors import InputError
from stepaudio.tokenizer.interleave import Codes, deinterleave

SIGMA_MIN = 1e-6
PACKED_ROWS = 192
"""Frames that layers are laid out for: a chunk of 96, with and without conditions."""


@dataclass(frozen=True)
class FlowConfig:
    """Everything that shapes a model; the estimator's kind decides the generation. The defaults are those of the
    24 kHz one.

    `embedding` is the width of an embedded token or row. A mel is normalised as (mel - `mel_mean`) / `mel_std` inside;
    the released models take it as it is. `token_rate` (per second) is used by the 22.05 kHz generation only.
    """

    estimator: DiTConfig | UNetConfig = field(default_factory=DiTConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vocab: int = TABLE_ROWS
    embedding: int = 512
    mels: int = 80
    speaker: int = 192
    rate: int = 24000
    hop: int = 480
    token_rate: float = 125 / 3
    mel_mean: float = 0.0
    mel_std: float = 1.0


RELEASED_24K = FlowConfig()
RELEASED_22K = FlowConfig(estimator=UNetConfig(), vocab=5120, rate=22050, hop=256)


@dataclass(frozen=True)
class Sampling:
    """How the flow is followed: steps of the solver, guidance (0 costs half), size of the noise, its seed."""

    steps: int = 10
    guidance: float = 0.7
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Reference:
    """Whose voice: a speaker vector [S] and, unless empty, audio tokens with their mel [M, T] to continue from."""

    speaker: Tensor
    tokens: ArrayLike = ()
    mel: Tensor | None = None

    def __post_init__(self) -> None:
        if (len(self.tokens) == 0) != (self.mel is None):  # type: ignore[arg-type]
            raise InputError("a reference needs both the tokens and the mel of its clip, or neither", param="reference")


@dataclass(frozen=True)
class FlowBatch:
    """What one step of training sees. Padding may hold anything valid.

    `tokens` are audio tokens [B, N] for the 22.05 kHz generation and rows [B, R, 2] for the 24 kHz one; `mel` [B, T,
    M] the whole clip; `speaker` [B, S]; lengths [B].
    """

    tokens: Tensor
    token_lengths: Tensor
    mel: Tensor
    mel_lengths: Tensor
    speaker: Tensor


# ---------------------------------------------------------------- models


class _Decoder(nn.Module):
    """Only there for the released tensor names."""

    def __init__(self, estimator: nn.Module) -> None:
        super().__init__()
        self.estimator = estimator


class FlowModel(nn.Module):
    """What both generations have in common. `InterleavedFlow` and `AlignedFlow` are made by `build`."""

    def __init__(self, config: FlowConfig, estimator: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)
        self.encoder_proj = nn.Linear(config.encoder.dim, config.mels)
        self.decoder = _Decoder(estimator)

    @property
    def estimator(self) -> Any:
        return self.decoder.estimator

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def frames(self, tokens: ArrayLike) -> int:
        """Mel frames that audio tokens become."""

    @abstractmethod
    def _encode(self, tokens: Sequence[ArrayLike], references: Sequence[Reference]) -> tuple[Tensor, list[int]]:
        """Encoded frames [B, T, M] of references followed by tokens, and how many are the references'."""

    @abstractmethod
    def _encode_batch(self, batch: FlowBatch, ends: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded frames [B, T, M] for training, the mel of the same length, and lengths [B]."""

    # ------------------------------------------------ inference

    @torch.inference_mode()
    def generate(
        self,
        tokens: Sequence[ArrayLike],
        references: Sequence[Reference],
        sampling: Sampling = Sampling(),
    ) -> list[Tensor]:
        """The mel [M, T], float32, of each sequence of audio tokens (0..5119), said as its reference.

        Every frame sees all others and the reference, as in the released offline decoder. A sequence gets what it
        would get alone. Raises InputError for tokens that are not in 2:3 order, a speaker vector or mel of the wrong
        size, or fewer than one step.
        """
        if len(tokens) != len(references):
            raise InputError(f"{len(tokens)} sequences of tokens for {len(references)} references")
        if not tokens:
            return []
        if not any(map(self.frames, tokens)):
            return [torch.zeros(self.config.mels, 0)] * len(tokens)
        mu_BTM, prompts = self._encode(tokens, references)
        lengths = [prompt + self.frames(own) for prompt, own in zip(prompts, tokens, strict=True)]
        mels = [self.reference_mel(ref, prompt) for ref, prompt in zip(references, prompts, strict=True)]
        fixed_BTK = self.conditions(mu_BTM, torch.stack([self.speaker(r) for r in references]), mels)
        lengths_B = None if len(set(lengths)) == 1 else torch.tensor(lengths, device=self.device)
        if lengths_B is not None and sampling.guidance:
            lengths_B = lengths_B.repeat(2)
        times = self.times(sampling)
        noise_TM = self.noise(sampling).frames(0, mu_BTM.shape[1])
        x_BTM = self.follow(lambda x_BTI, k: self.estimator(x_BTI, times[k], lengths_B), noise_TM, fixed_BTK, sampling)
        return [
            self.denormalise(x_TM[prompt:length]).T
            for x_TM, prompt, length in zip(x_BTM, prompts, lengths, strict=True)
        ]

    def times(self, sampling: Sampling) -> list[Any]:
        """What the estimator is told about the time, for each step of the solver."""
        grid = cosine_grid(sampling.steps)
        return self.estimator.times(grid[:-1].to(self.device), self.dtype)  # type: ignore[no-any-return]

    def noise(self, sampling: Sampling) -> Noise:
        return Noise(sampling.seed, self.config.mels)

    def follow(
        self, velocity: Callable[[Tensor, int], Tensor], noise_TM: Tensor, fixed_BTK: Tensor, sampling: Sampling
    ) -> Tensor:
        """Normalised mel [B, T, M], float32, to which `velocity(inputs_BTI, step)` leads from one noise for all."""
        start_BTM = (noise_TM * sampling.temperature).to(self.device).expand(len(fixed_BTK), -1, -1)
        return euler(guided(velocity, fixed_BTK, sampling.guidance), start_BTM, cosine_grid(sampling.steps))

    def for_inference(self, dtype: torch.dtype = torch.bfloat16) -> FlowModel:
        """Convert to `dtype` and lay out the weights for this CPU; the model cannot be trained or saved any more."""
        self.to(dtype).eval().requires_grad_(False)
        pack(self, PACKED_ROWS)
        return self

    def conditions(self, mu_BTM: Tensor, speaker_BS: Tensor, mels: Sequence[Tensor]) -> Tensor:
        """What the estimator is told beside x, [B, T, K]: encoded tokens, speaker, prompt (`mels` [T, M])."""
        prompt_BTM = torch.zeros_like(mu_BTM)
        for prompt_TM, mel_TM in zip(prompt_BTM, mels, strict=True):
            prompt_TM[: len(mel_TM)] = mel_TM
        speaker_B1M = self.spk_embed_affine_layer(F.normalize(speaker_BS, dim=1))[:, None]
        return torch.cat([mu_BTM, speaker_B1M.expand_as(mu_BTM), prompt_BTM], dim=-1)

    def reference_mel(self, reference: Reference, frames: int) -> Tensor:
        """Normalised mel [frames, M] of a reference, its frames repeated or left out to be that many."""
        if reference.mel is None:
            return torch.zeros(0, self.config.mels, dtype=self.dtype, device=self.device)
        if reference.mel.ndim != 2 or reference.mel.shape[0] != self.config.mels or not reference.mel.shape[1]:
            shape = list(reference.mel.shape)
            raise InputError(f"the reference's mel must be [{self.config.mels}, T], not {shape}", param="reference")
        mel_TM = reference.mel.T.to(self.device)
        return self._normalise(nearest(mel_TM, frames)).to(self.dtype)

    def speaker(self, reference: Reference) -> Tensor:
        """The speaker vector [S] of a reference."""
        if tuple(reference.speaker.shape) != (self.config.speaker,):
            shape = list(reference.speaker.shape)
            raise InputError(f"the speaker vector must be [{self.config.speaker}], not {shape}", param="reference")
        return reference.speaker.to(self.device, self.dtype)

    def _normalise(self, mel: Tensor) -> Tensor:
        return (mel - self.config.mel_mean) / self.config.mel_std

    def denormalise(self, x: Tensor) -> Tensor:
        """The flow's frames as a mel."""
        return x * self.config.mel_std + self.config.mel_mean

    # ------------------------------------------------ training

    def loss(
        self,
        batch: FlowBatch,
        random: torch.Generator,
        *,
        drop: float = 0.2,
        prior: float = 0.0,
        ends: Tensor | None = None,
    ) -> Tensor:
        """The mean squared error of the velocity at a random time of each clip, a scalar to minimise.

        As CosyVoice is trained (arXiv 2407.05407): half of the clips show a prefix of up to 30 % of their mel, all
        conditions are dropped together with probability `drop`. `prior` weighs the squared error of the encoded tokens
        taken for a mel, from which an encoder learns sooner than through the estimator (arXiv 2105.06337). `random` is
        a CPU generator. `ends` trains the 24 kHz generation for streaming: rows at which chunks stop, the last at R.
        """
        mu_BTM, mel_BTM, lengths_B = self._encode_batch(batch, ends)
        count, steps = mu_BTM.shape[:2]
        u_B, prefix_B, shown_B, dropped_B = torch.rand(4, count, generator=random).to(mu_BTM.device)
        t_B = 1 - torch.cos(u_B * math.pi / 2)  # where the solver's grid is dense
        noise_BTM = torch.randn(mel_BTM.shape, generator=random).to(mu_BTM)
        t_B11 = t_B[:, None, None].to(mu_BTM.dtype)
        x_BTM = (1 - (1 - SIGMA_MIN) * t_B11) * noise_BTM + t_B11 * mel_BTM
        prompts_B = (prefix_B * 0.3 * lengths_B * (shown_B < 0.5)).long()
        mels = [mel_TM[:prompt] for mel_TM, prompt in zip(mel_BTM, prompts_B.tolist(), strict=True)]
        fixed_BTK = self.conditions(mu_BTM, batch.speaker.to(mu_BTM), mels)
        fixed_BTK = fixed_BTK * (dropped_B >= drop)[:, None, None]
        extra = {} if ends is None else {"ends": ends * self.config.encoder.upsample}
        time = self.estimator.time_of_each(t_B, mu_BTM.dtype)
        v_BTM = self.estimator(torch.cat([x_BTM, fixed_BTK], dim=-1), time, lengths_B, **extra)
        error_BTM = (v_BTM - (mel_BTM - (1 - SIGMA_MIN) * noise_BTM)).float().square()
        if prior:
            error_BTM = error_BTM + prior * (mu_BTM - mel_BTM).float().square()
        mask_BT1 = valid(lengths_B, steps)[..., None]
        loss: Tensor = (error_BTM * mask_BT1).sum() / (mask_BT1.sum() * self.config.mels)
        return loss


class InterleavedFlow(FlowModel):
    """The 22.05 kHz generation."""

    def __init__(self, config: FlowConfig) -> None:
        if not isinstance(config.estimator, UNetConfig):
            raise InputError("the 22.05 kHz generation has a U-Net")
        super().__init__(config, UNet(config.mels, config.estimator))
        self.input_embedding = nn.Embedding(config.vocab, config.embedding)
        self.encoder = TokenConformer(config.embedding, config.encoder)
        self.length_regulator = LengthRegulator(config.mels, config.encoder.regulator)

    def frames(self, tokens: ArrayLike) -> int:
        return self.frames_of(len(tokens))  # type: ignore[arg-type]

    def frames_of(self, tokens: int) -> int:
        """Mel frames of so many tokens."""
        return int(tokens / self.config.token_rate * self.config.rate / self.config.hop)

    def _encode(self, tokens: Sequence[ArrayLike], references: Sequence[Reference]) -> tuple[Tensor, list[int]]:
        prompts = [0 if r.mel is None else r.mel.shape[-1] for r in references]
        pieces = [
            [(checked(ref.tokens), prompt), (checked(own), self.frames(own))]
            for own, ref, prompt in zip(tokens, references, prompts, strict=True)
        ]
        return self.encode_pieces(pieces), prompts

    def encode_pieces(self, sequences: Sequence[Sequence[tuple[Codes, int]]]) -> Tensor:
        """Encoded frames [B, T, M] of sequences of pieces (tokens, frames), each piece stretched by itself."""
        ids = [torch.cat([torch.from_numpy(codes) for codes, _ in pieces]) for pieces in sequences]
        lengths_B = torch.tensor([len(own) for own in ids], device=self.device)
        encoded_BNM = self._project(pad_sequence(ids, batch_first=True).to(self.device), lengths_B)
        stretched = []
        for encoded_NM, pieces in zip(encoded_BNM, sequences, strict=True):
            counts = [len(codes) for codes, _ in pieces]
            parts = zip(encoded_NM.split([*counts, len(encoded_NM) - sum(counts)]), pieces, strict=False)
            stretched.append(torch.cat([stretch(part, frames) for part, (_, frames) in parts]))
        frames_B = torch.tensor([len(own) for own in stretched], device=self.device)
        return self.length_regulator(pad_sequence(stretched, batch_first=True), frames_B)  # type: ignore[no-any-return]

    def _project(self, ids_BN: Tensor, lengths_B: Tensor) -> Tensor:
        embedded_BNC = self.input_embedding(ids_BN) * valid(lengths_B, ids_BN.shape[1])[..., None]
        return self.encoder_proj(self.encoder(embedded_BNC, lengths_B))  # type: ignore[no-any-return]

    def _encode_batch(self, batch: FlowBatch, ends: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if ends is not None:
            raise InputError("only the 24 kHz generation is trained in chunks", param="ends")
        encoded_BNM = self._project(batch.tokens, batch.token_lengths)
        counts = zip(encoded_BNM, batch.token_lengths.tolist(), batch.mel_lengths.tolist(), strict=True)
        stretched = [stretch(encoded[:tokens], frames) for encoded, tokens, frames in counts]
        mu_BTM = self.length_regulator(pad_sequence(stretched, batch_first=True), batch.mel_lengths)
        mel_BTM = self._normalise(batch.mel[:, : mu_BTM.shape[1]]).to(mu_BTM)
        return mu_BTM, mel_BTM, batch.mel_lengths


class _DualEmbedding(nn.Module):
    """Both codes of a row by one table, side by side."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width // 2)

    def forward(self, rows_BR2: Tensor) -> Tensor:
        return self.embedding(rows_BR2).flatten(-2)  # type: ignore[no-any-return]


class AlignedFlow(FlowModel):
    """The 24 kHz generation."""

    def __init__(self, config: FlowConfig) -> None:
        if not isinstance(config.estimator, DiTConfig):
            raise InputError("the 24 kHz generation has a DiT")
        super().__init__(config, DiT(config.mels, config.estimator))
        self.input_embedding = _DualEmbedding(config.vocab, config.embedding)
        self.encoder = UpsampleConformer(config.embedding, config.encoder)

    def frames(self, tokens: ArrayLike) -> int:
        return len(realign(tokens)) * self.config.encoder.upsample

    def _encode(self, tokens: Sequence[ArrayLike], references: Sequence[Reference]) -> tuple[Tensor, list[int]]:
        heads = [realign(ref.tokens) for ref in references]
        rows = [torch.cat([self.rows(head), self.rows(realign(own))]) for head, own in zip(heads, tokens, strict=True)]
        lengths_B = torch.tensor([len(own) for own in rows], device=self.device)
        mu_BTM = self._project(pad_sequence(rows, batch_first=True), lengths_B, None)
        return mu_BTM, [len(head) * self.config.encoder.upsample for head in heads]

    def rows(self, rows: Codes) -> Tensor:
        """Rows [R, 2] as a tensor on the model's device."""
        return torch.from_numpy(rows).to(self.device)

    def _project(self, rows_BR2: Tensor, lengths_B: Tensor, ends: Tensor | None) -> Tensor:
        return self.encoder_proj(self.encoder(self.input_embedding(rows_BR2), lengths_B, ends))  # type: ignore[no-any-return]

    def _encode_batch(self, batch: FlowBatch, ends: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        mu_BTM = self._project(batch.tokens, batch.token_lengths, ends)
        lengths_B = batch.token_lengths * self.config.encoder.upsample
        counts = zip(batch.mel, batch.mel_lengths.tolist(), lengths_B.tolist(), strict=True)
        mels = [nearest(mel_TM[:has], needs) for mel_TM, has, needs in counts]
        mel_BTM = self._normalise(pad_sequence(mels, batch_first=True)).to(mu_BTM)
        return mu_BTM, F.pad(mel_BTM, (0, 0, 0, mu_BTM.shape[1] - mel_BTM.shape[1])), lengths_B


def build(config: FlowConfig) -> FlowModel:
    """The model of a configuration, its weights not yet of use."""
    return InterleavedFlow(config) if isinstance(config.estimator, UNetConfig) else AlignedFlow(config)


def checked(tokens: ArrayLike) -> Codes:
    """Audio tokens as an array. Raises InputError for what is not in 2:3 order."""
    deinterleave(tokens)
    return np.asarray(tokens, dtype=np.int64)


def nearest(x_TM: Tensor, frames: int) -> Tensor:
    """[T, M] to [frames, M], frames repeated or left out evenly."""
    return x_TM[torch.arange(frames, device=x_TM.device) * x_TM.shape[0] // max(frames, 1)]
