"""One step of generation over many sequences: new tokens go in, next-token logits come out.

A step is a list of spans, each some new tokens of one sequence: its next token when decoding, a piece of its
prompt when prefilling. `NativeRunner` (a CPU with a C++ compiler) does a step in one call whatever the
mixture; `TorchRunner` runs anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stepaudio.lm.attention import attend, attend_cached
from stepaudio.lm.cache import Cache
from stepaudio.lm.step1 import Step1

log = logging.getLogger(__name__)

VISIBLE_STEP = 256
"""Keys that a batched decoding step looks at are rounded up to this, so that few shapes are compiled."""


@dataclass(frozen=True, slots=True)
class Span:
    """The next tokens of the sequence in a slot; at least one."""

    slot: int
    tokens: Sequence[int]


class Runner(Protocol):
    """Carries out steps on one model and one cache."""

    cache: Cache

    def step(self, spans: Sequence[Span]) -> Tensor:
        """Logits [len(spans), V] (float32) after the last token of each span, whose tokens are then in the
        cache.

        Slots are distinct. Raises InputError when a span does not fit into its slot; nothing was done then.
        """
        ...


def make_runner(model: Step1, cache: Cache) -> Runner:
    """The fastest runner that this machine and this model allow."""
    if cache.keys.device.type == "cpu":
        from stepaudio.lm.native import NativeRunner, why_not

        reason = why_not(model, cache)
        if reason is None:
            return NativeRunner(model, cache)
        log.info("language model runs on plain torch: %s", reason)
    return TorchRunner(model, cache, compiled=cache.keys.is_cuda)


class TorchRunner:
    """Steps made of torch operations: all spans of one token together, longer ones one after the other."""

    def __init__(self, model: Step1, cache: Cache, *, compiled: bool = False) -> None:
        self.model = model.eval()
        self.cache = cache
        self._decode: Any = torch.compile(self._decode_eager, dynamic=True) if compiled else self._decode_eager

    @torch.inference_mode()
    def step(self, spans: Sequence[Span]) -> Tensor:
        for span in spans:
            self.cache.require_room(span.slot, len(span.tokens))
        rows: dict[int, Tensor] = {}
        single = [i for i, span in enumerate(spans) if len(span.tokens) == 1]
        if single:
            rows |= zip(single, self._decode_spans([spans[i] for i in single]), strict=True)
        for i, span in enumerate(spans):
            if len(span.tokens) > 1:
                rows[i] = self._prefill(span)
        for span in spans:
            self.cache.append(span.slot, span.tokens)
        return torch.stack([rows[i] for i in range(len(spans))]).float()

    def _decode_spans(self, spans: Sequence[Span]) -> Tensor:
        device = self.cache.keys.device
        lengths = [len(self.cache.sequences[span.slot]) for span in spans]
        visible = min(-(-(max(lengths) + 1) // VISIBLE_STEP) * VISIBLE_STEP, self.cache.tokens)
        tokens_B, slots_B, positions_B = (
            torch.tensor(column, device=device)
            for column in ([span.tokens[0] for span in spans], [span.slot for span in spans], lengths)
        )
        logits_BV: Tensor = self._decode(tokens_B, slots_B, positions_B, visible)
        return logits_BV

    def _decode_eager(self, tokens_B: Tensor, slots_B: Tensor, positions_B: Tensor, visible: int) -> Tensor:
        cache, slopes_H = self.cache, self.model.slopes

        def attention(layer: int, q_B1HD: Tensor, k_B1GD: Tensor, v_B1GD: Tensor) -> Tensor:
            keys_SGTD, values_SGTD = cache.keys[layer], cache.values[layer]
            keys_SGTD[slots_B, :, positions_B] = k_B1GD[:, 0].to(keys_SGTD.dtype)
            values_SGTD[slots_B, :, positions_B] = v_B1GD[:, 0].to(values_SGTD.dtype)
            k_BGSD = keys_SGTD[:, :, :visible][slots_B].to(q_B1HD.dtype)
            v_BGSD = values_SGTD[:, :, :visible][slots_B].to(q_B1HD.dtype)
            return attend_cached(q_B1HD[:, 0], k_BGSD, v_BGSD, positions_B, slopes_H)[:, None]

        hidden_B1C = self.model.hidden(tokens_B[:, None], attention)
        logits_BV: Tensor = self.model.lm_head(hidden_B1C[:, 0])
        return logits_BV

    def _prefill(self, span: Span) -> Tensor:
        cache, slot, start = self.cache, span.slot, len(self.cache.sequences[span.slot])
        stop = start + len(span.tokens)

        def attention(layer: int, q_1THD: Tensor, k_1TGD: Tensor, v_1TGD: Tensor) -> Tensor:
            cache.write(layer, slot, start, k_1TGD[0], v_1TGD[0])
            k_1SGD = cache.keys[layer, slot, :, :stop].transpose(0, 1)[None].to(q_1THD.dtype)
            v_1SGD = cache.values[layer, slot, :, :stop].transpose(0, 1)[None].to(q_1THD.dtype)
            return attend(q_1THD, k_1SGD, v_1SGD, self.model.slopes)

        tokens_1T = torch.tensor([list(span.tokens)], device=cache.keys.device)
        hidden_1TC = self.model.hidden(tokens_1T, attention)
        logits_V: Tensor = self.model.lm_head(hidden_1TC[0, -1])
        return logits_V
