"""The flow in chunks: mel frames as their tokens come, at constant cost and memory however long it goes on.

Chunks are of 15, 24 and then 48 rows of 40 ms, and each waits for three rows more. What has been given is
never computed again.

- `AlignedStream` (24 kHz) keeps keys, values and the edges of convolutions. A chunk sees the reference, the latest
  frames before it (`window` of the estimator and of the encoder) and itself: exactly what the offline network gives
  with attention masked to that (`chunk_mask`).
- `InterleavedStream` (22.05 kHz) has a network without a causal form. A chunk is a flow of its own whose reference is
  the voice's, continued by the latest tokens and the mel that was given for them.

Either way chunks depend on how many tokens came, never on how they were cut.

Shapes: T mel frames, M mel channels, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, repeat
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from stepaudio.decoder.dit import BlockState, Time
from stepaudio.decoder.encoder import EncoderState
from stepaudio.decoder.flow import AlignedFlow, FlowModel, InterleavedFlow, Reference, Sampling, checked
from stepaudio.decoder.solver import Noise
from stepaudio.decoder.tokens import GROUP_ROWS, GROUP_TOKENS, RowBuffer, realign
from stepaudio.errors import InputError

CONTEXT = 75
"""Tokens before a chunk that the 22.05 kHz generation hears again: 1.8 s."""


@dataclass(frozen=True)
class Schedule:
    """Rows of successive chunks, the last number again and again; multiples of 3, so that a chunk is whole groups."""

    rows: tuple[int, ...] = (15, 24, 48)

    def __post_init__(self) -> None:
        if not self.rows or any(size < 1 or size % GROUP_ROWS for size in self.rows):
            raise InputError(f"chunks must be multiples of {GROUP_ROWS} rows, not {list(self.rows)}", param="schedule")

    def sizes(self) -> Iterator[int]:
        return chain(self.rows, repeat(self.rows[-1]))

    def ends(self, rows: int, lookahead: int = 3) -> list[int]:
        """Where the chunks of a stream of so many rows stop: what is left at the end is one chunk."""
        ends = []
        for end in accumulate(self.sizes()):
            if end + lookahead > rows:
                break
            ends.append(end)
        return [*ends, rows]


class FlowStream(Protocol):
    """Tokens to mel frames [M, T] of one utterance after another."""

    def push(self, tokens: ArrayLike) -> Tensor:
        """The frames that audio tokens (0..5119) complete. Raises InputError for tokens that are not in 2:3 order; the
        stream is then of use again after `reset`."""
        ...

    def flush(self) -> Tensor:
        """The rest of the utterance; the stream is then as new."""
        ...

    def reset(self) -> None:
        """Forget the utterance."""
        ...


@dataclass(frozen=True)
class Voice:
    """A reference that a model has read once, for any number of streams: they share what is remembered of it."""

    speaker_1S: Tensor
    reference: Reference
    sampling: Sampling
    times: list[Time]
    frames: int = 0
    encoder: EncoderState = field(default_factory=EncoderState)
    estimator: list[list[BlockState]] = field(default_factory=list)
    """By step of the solver and block."""


@torch.inference_mode()
def read_voice(model: FlowModel, reference: Reference, sampling: Sampling = Sampling()) -> Voice:  # noqa: B008
    """Read a reference. Raises InputError as `FlowModel.generate` does."""
    voice = Voice(model.speaker(reference)[None], reference, sampling, model.times(sampling))
    if isinstance(model, InterleavedFlow):
        frames = 0 if reference.mel is None else reference.mel.shape[1]
        checked(reference.tokens)
        model.reference_mel(reference, frames)
        return replace(voice, frames=frames)
    assert isinstance(model, AlignedFlow)
    voice = replace(voice, estimator=[[] for _ in range(sampling.steps)])
    rows = realign(reference.tokens)
    if not len(rows):
        return voice
    frames = len(rows) * model.config.encoder.upsample
    hidden_BFC, encoder = model.encoder.prompt(model.input_embedding(model.rows(rows)[None]))
    mel_TM = model.reference_mel(reference, frames)
    _, estimator = _follow(model, voice, hidden_BFC, voice.estimator, 0, model.noise(sampling), mel_TM)
    return replace(voice, frames=frames, encoder=encoder, estimator=estimator)


def _follow(
    model: AlignedFlow,
    voice: Voice,
    hidden_BFC: Tensor,
    states: list[list[BlockState]],
    start: int,
    noise: Noise,
    prompt_TM: Tensor | None = None,
) -> tuple[Tensor, list[list[BlockState]]]:
    """Normalised mel [T, M] of a chunk or, with `prompt_TM`, of a reference, and the states after it."""
    mu_BTM = model.encoder_proj(hidden_BFC)
    fixed_BTK = model.conditions(mu_BTM, voice.speaker_1S, [mu_BTM[0, :0] if prompt_TM is None else prompt_TM])
    after = list(states)

    def velocity(x_BTI: Tensor, k: int) -> Tensor:
        v_BTM, after[k] = model.estimator.chunk(x_BTI, voice.times[k], states[k], is_prompt=prompt_TM is not None)
        return v_BTM  # type: ignore[no-any-return]

    noise_TM = noise.frames(start, start + mu_BTM.shape[1])
    return model.follow(velocity, noise_TM, fixed_BTK, voice.sampling)[0], after


class AlignedStream:
    """A `FlowStream` of the 24 kHz generation."""

    def __init__(self, model: AlignedFlow, voice: Voice, schedule: Schedule = Schedule()) -> None:
        self._model = model
        self._voice = voice
        self._schedule = schedule
        self._nothing = torch.zeros(model.config.mels, 0, device=model.device)
        self.reset()

    def reset(self) -> None:
        self._noise = self._model.noise(self._voice.sampling)
        self._buffer = RowBuffer()
        self._rows = np.zeros((0, 2), dtype=np.int64)
        self._sizes = self._schedule.sizes()
        self._size = next(self._sizes)
        self._position = self._voice.frames
        self._encoder = self._voice.encoder
        self._estimator = self._voice.estimator

    @torch.inference_mode()
    def push(self, tokens: ArrayLike) -> Tensor:
        self._rows = np.concatenate([self._rows, self._buffer.push(tokens)])
        frames = [self._nothing]
        while len(self._rows) >= self._size + self._model.config.encoder.lookahead:
            frames.append(self._chunk(self._size))
            self._size = next(self._sizes)
        return torch.cat(frames, dim=1)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        self._rows = np.concatenate([self._rows, self._buffer.flush()])
        frames = self._chunk(len(self._rows)) if len(self._rows) else self._nothing
        self.reset()
        return frames

    def _chunk(self, size: int) -> Tensor:
        """Mel [M, T] of the next rows."""
        model = self._model
        x_BRI = model.input_embedding(model.rows(self._rows[: size + model.config.encoder.lookahead])[None])
        hidden_BFC, self._encoder = model.encoder.chunk(x_BRI, size, self._encoder)
        x_TM, self._estimator = _follow(model, self._voice, hidden_BFC, self._estimator, self._position, self._noise)
        self._rows = self._rows[size:]
        self._position += len(x_TM)
        return model.denormalise(x_TM).T


class InterleavedStream:
    """A `FlowStream` of the 22.05 kHz generation."""

    def __init__(self, model: InterleavedFlow, voice: Voice, schedule: Schedule = Schedule()) -> None:
        self._model = model
        self._voice = voice
        self._schedule = schedule
        self._prompt_tokens = checked(voice.reference.tokens)
        self._prompt_TM = model.reference_mel(voice.reference, voice.frames)
        self._nothing = torch.zeros(model.config.mels, 0, device=model.device)
        self.reset()

    def reset(self) -> None:
        self._noise = self._model.noise(self._voice.sampling)
        # Of all tokens, those from `_forgotten` on are in `_tokens`; those up to `_said` have their mel in `_given_TM`.
        self._tokens = np.zeros(0, dtype=np.int64)
        self._given_TM = self._prompt_TM[:0]
        self._said = self._forgotten = 0
        self._sizes = self._schedule.sizes()
        self._size = self._next_size()

    def _next_size(self) -> int:
        return next(self._sizes) // GROUP_ROWS * GROUP_TOKENS

    @torch.inference_mode()
    def push(self, tokens: ArrayLike) -> Tensor:
        new = np.asarray(tokens)
        if new.size:
            self._tokens = np.concatenate([self._tokens, new])
        frames = [self._nothing]
        while self._forgotten + len(self._tokens) >= self._said + self._size + GROUP_TOKENS:
            frames.append(self._chunk(self._size, GROUP_TOKENS))
            self._size = self._next_size()
        return torch.cat(frames, dim=1)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        left = self._forgotten + len(self._tokens) - self._said
        frames = self._chunk(left, 0) if left else self._nothing
        self.reset()
        return frames

    def _chunk(self, size: int, ahead: int) -> Tensor:
        """Mel [M, T] of the next `size` tokens, which `ahead` more of them follow."""
        model, start, end = self._model, self._said, self._said + size
        heard, new = np.split(self._tokens[: end + ahead - self._forgotten], [start - self._forgotten])
        begin, frames, follow = (model.frames_of(count) for count in (start, end, end + ahead))
        pieces = [
            (self._prompt_tokens, len(self._prompt_TM)),
            (heard, len(self._given_TM)),
            (checked(new), follow - begin),
        ]
        known_TM = torch.cat([self._prompt_TM, self._given_TM])
        mu_BTM = model.encode_pieces([pieces])
        fixed_BTK = model.conditions(mu_BTM, self._voice.speaker_1S, [known_TM])
        position = self._voice.frames + begin
        noise_TM = self._noise.frames(position - len(self._given_TM), position + follow - begin)
        noise_TM = torch.cat([self._noise.frames(0, self._voice.frames), noise_TM])
        times = self._voice.times
        x_TM = model.follow(
            lambda x_BTI, k: model.estimator(x_BTI, times[k]), noise_TM, fixed_BTK, self._voice.sampling
        )[0, len(known_TM) : len(known_TM) + frames - begin]
        self._remember(x_TM, end)
        return model.denormalise(x_TM).T

    def _remember(self, x_TM: Tensor, said: int) -> None:
        """Keep the latest CONTEXT tokens that were said, and their mel."""
        forgotten = max(0, said - CONTEXT)
        given_TM = torch.cat([self._given_TM, x_TM.to(self._given_TM)])
        keep = self._model.frames_of(said) - self._model.frames_of(forgotten)
        self._given_TM = given_TM[len(given_TM) - keep :].clone()
        self._tokens = self._tokens[forgotten - self._forgotten :]
        self._said, self._forgotten = said, forgotten


def flow_stream(model: FlowModel, voice: Voice, schedule: Schedule = Schedule()) -> FlowStream:
    """The stream that fits the model, in a voice that `read_voice` has read with it."""
    if isinstance(model, InterleavedFlow):
        return InterleavedStream(model, voice, schedule)
    assert isinstance(model, AlignedFlow)
    return AlignedStream(model, voice, schedule)
