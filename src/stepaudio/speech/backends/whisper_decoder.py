"""Whisper's decoder (Radford et al. 2022) for turns that are heard again while they grow, on onnxruntime.

Most of what CTranslate2's decoder does for a short question is done for silence, the same each time, and for words that
were found before. Here keys and values of the ready-made silence are kept, and a *guess*, what was found in the
beginning of the same utterance, is read in one step.

The search: a path is followed as long as its likeliest next token is sure, or is the guessed one, which a beam has
chosen before; from there on a beam search goes on. A guess is never believed, only looked up: what is not the likeliest
after what was said since is not taken.

Shapes: B hypotheses, T new tokens, P tokens in all, S encoder states, H heads of D dimensions, C = H * D channels,
V tokens of the vocabulary.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepaudio.errors import BackendError, Cancelled
from stepaudio.speech.backends.whisper_graph import NEVER, DecoderGraphs, read_weights

Array = NDArray[np.float32]

SURE = 0.6
"""Probability of a token from which on no other is tried."""


@dataclass(frozen=True, slots=True)
class Found:
    """Text tokens, the mean log-probability of a token and the end, and whether the end was found."""

    tokens: list[int]
    log_probability: float
    ended: bool


class _Path(NamedTuple):
    """A hypothesis: its tokens and the sum of their log-probabilities."""

    tokens: list[int]
    total: float


class WhisperDecoder:
    """The decoder of the CTranslate2 model in `folder`; `silence_SC` are the encoder states of ready-made silence.

    A call runs on one thread; several may run at once. `end` is the first token that is not text. Raises BackendError
    for weights that are not understood.
    """

    def __init__(self, folder: Path, silence_SC: Array, *, end: int) -> None:
        try:
            weights = read_weights(folder / "model.bin")
            graphs = DecoderGraphs(weights)
            config = json.loads((folder / "config.json").read_text("utf-8"))
            self._embedding_VC = weights["embeddings/weight"]
            self._positions_TC = weights["position_encodings/encodings"].astype(np.float32)
            self._not_first = list(config["suppress_ids_begin"])
            self._bias_V = np.zeros(len(self._embedding_VC), np.float32)
            self._bias_V[[token for token in config["suppress_ids"] if token >= 0]] = NEVER
        except (KeyError, IndexError, ValueError, struct.error) as error:
            raise BackendError(f"the Whisper model in {folder} is not understood: {error!r}") from error
        self._bias_V[end + 1 :] = NEVER
        self._end = end
        self._memory = graphs.memory()
        self._step = graphs.step(self.remember(silence_SC))
        self._silent_states = len(silence_SC)
        nothing = np.zeros((1, graphs.heads, 0, graphs.channels // graphs.heads), np.float32)
        self._nothing = [nothing] * 2 * graphs.layers

    def remember(self, states_SC: Array) -> list[Array]:
        """What the decoder looks at, before the silence: keys [H, 1, D, S] and values [H, 1, S, D] of encoder states,
        those of a layer after the other."""
        return list(self._memory.run(None, {"states": states_SC}))

    def likeliest(self, memory: Sequence[Array], start: Sequence[int], among: Sequence[int]) -> int:
        """Which of these tokens, text or not, follows `start`. The silence is left out: after a word alone it would
        sound like another language."""
        logits_TV, _ = self._run([start], self._nothing, memory, silence=False)
        return max(among, key=lambda token: float(logits_TV[-1, token]))

    def search(
        self,
        memory: Sequence[Array],
        start: Sequence[int],
        *,
        guess: Sequence[int] = (),
        beam: int,
        most: int,
        cancel: Event | None = None,
    ) -> Found:
        """The text tokens that follow `start`, at most `most`. Raises Cancelled, between steps of some milliseconds."""
        most = min(most, len(self._positions_TC) - len(start))
        guess = guess[:most]
        logits_TV, seen = self._read([[*start, *guess]], self._nothing, memory, cancel)
        logits_TV = logits_TV[len(start) - 1 :]
        logits_TV[0, self._not_first] = NEVER
        path, row = _Path([], 0.0), 0
        while True:
            logs_V = _log_softmax(logits_TV[row])
            token = int(logs_V.argmax())
            guessed = row < len(guess) and guess[row] == token
            if len(path.tokens) == most or not (guessed or logs_V[token] > math.log(SURE)):
                break
            path = _Path([*path.tokens, token], path.total + float(logs_V[token]))
            if token == self._end:
                return _found(path, self._end)
            if guessed:
                row += 1
                continue
            seen = [state[:, :, : len(start) + len(path.tokens) - 1] for state in seen]
            logits_TV, seen = self._read([[token]], seen, memory, cancel)
            guess, row = (), 0
        seen = [state[:, :, : len(start) + len(path.tokens)] for state in seen]
        return self._beams(memory, path, logs_V, seen, beam, most, cancel)

    def _beams(
        self,
        memory: Sequence[Array],
        path: _Path,
        logs_V: Array,
        seen: list[Array],
        beam: int,
        most: int,
        cancel: Event | None,
    ) -> Found:
        """Go on from `path` with `beam` hypotheses until as many have ended; the likeliest a token is taken."""
        running, ended = [path], []
        logs_BV = logs_V[None]
        while len(path.tokens) < most:
            likeliest_BK = np.argpartition(-logs_BV, 2 * beam, axis=1)[:, : 2 * beam]
            candidates = sorted(
                (
                    (path.total + float(logs_BV[row, token]), row, int(token))
                    for row, path in enumerate(running)
                    for token in likeliest_BK[row]
                ),
                reverse=True,
            )
            paths = [(_Path([*running[row].tokens, token], total), row) for total, row, token in candidates]
            ended += [path for path, _ in paths[:beam] if path.tokens[-1] == self._end]
            if len(ended) >= beam:
                break
            going = [(path, row) for path, row in paths if path.tokens[-1] != self._end][:beam]
            running, rows = [path for path, _ in going], [row for _, row in going]
            path = running[0]
            seen = [state[rows] for state in seen]
            logits_BV, seen = self._read([path.tokens[-1:] for path in running], seen, memory, cancel)
            logs_BV = _log_softmax(logits_BV)
        return _found(max(ended or running, key=lambda path: path.total / len(path.tokens)), self._end)

    def _read(
        self, tokens_BT: Sequence[Sequence[int]], seen: Sequence[Array], memory: Sequence[Array], cancel: Event | None
    ) -> tuple[Array, list[Array]]:
        """The logits of text after each of the tokens [B * T, V], and keys and values [B, H, P + T, D] of all, two a
        layer."""
        if cancel is not None and cancel.is_set():
            raise Cancelled("transcription was cancelled")
        logits, seen = self._run(tokens_BT, seen, memory)
        logits += self._bias_V
        return logits, seen

    def _run(
        self,
        tokens_BT: Sequence[Sequence[int]],
        seen: Sequence[Array],
        memory: Sequence[Array],
        *,
        silence: bool = True,
    ) -> tuple[Array, list[Array]]:
        """The same, with the tokens that are no text."""
        before, new = seen[0].shape[2], len(tokens_BT[0])
        x_BTC = self._embedding_VC[np.array(tokens_BT)] + self._positions_TC[before : before + new]
        mask_TP = np.triu(np.full((new, before + new), NEVER), before + 1)
        named = zip([*_names("seen", len(seen)), *_names("memory", len(memory))], [*seen, *memory], strict=True)
        hidden = np.array([memory[0].shape[-1] if silence else self._silent_states])
        logits_BTV, *seen = self._step.run(None, {"x": x_BTC, "mask": mask_TP, "hidden": hidden, **dict(named)})
        return logits_BTV.reshape(-1, len(self._bias_V)), list(seen)


def _found(path: _Path, end: int) -> Found:
    ended = path.tokens[-1] == end
    return Found(path.tokens[:-1] if ended else path.tokens, path.total / len(path.tokens), ended)


def _log_softmax(logits: Array) -> Array:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind} {index}" for index in range(count)]
