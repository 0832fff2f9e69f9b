"""The key-value cache: a fixed number of slots, one sequence each.

A slot is a contiguous stretch of memory, so that a sequence's keys are read in one sweep and forking a
sequence at a position is one copy. Pages of memory that no token was written to are never touched, so a long
`tokens` costs address space rather than memory on a CPU.

Shapes: L layers, S slots, G groups, T tokens per slot, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepaudio.errors import BusyError, InputError
from stepaudio.lm.step1 import Config


class Cache:
    """Keys and values [L, S, G, T, D] and the tokens that each slot holds.

    `sequences[slot]` are the ids whose keys and values are in the slot: its length is where the next token
    goes.
    """

    def __init__(
        self,
        config: Config,
        *,
        slots: int,
        tokens: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        if slots < 1 or tokens < 1:
            raise InputError("a cache needs at least one slot and one token")
        shape = (config.num_hidden_layers, slots, config.num_attention_groups, tokens, config.head_dim)
        # Zeros rather than empty: padded attention multiplies unused rows by a probability of 0, and 0 * NaN
        # is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.sequences: list[list[int]] = [[] for _ in range(slots)]
        self.tokens = tokens
        self._free = set(range(slots))

    def allocate(self) -> int:
        """Take an empty slot. Raises BusyError when there is none."""
        if not self._free:
            raise BusyError(f"all {len(self.sequences)} sequences of the language model are in use")
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back; its content is forgotten."""
        self.sequences[slot] = []
        self._free.add(slot)

    @property
    def free(self) -> int:
        """Number of slots that can be allocated."""
        return len(self._free)

    def fork(self, slot: int, length: int) -> int:
        """Copy the first `length` tokens of a slot into a new one and return it. Raises BusyError,
        InputError."""
        if not 0 <= length <= len(self.sequences[slot]):
            raise InputError(f"cannot fork at token {length}: the sequence has {len(self.sequences[slot])}")
        copy = self.allocate()
        self.keys[:, copy, :, :length] = self.keys[:, slot, :, :length]
        self.values[:, copy, :, :length] = self.values[:, slot, :, :length]
        self.sequences[copy] = self.sequences[slot][:length]
        return copy

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of a slot."""
        del self.sequences[slot][length:]

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Note that these tokens' keys and values were written. Raises InputError when the slot is full."""
        self.require_room(slot, len(tokens))
        self.sequences[slot].extend(tokens)

    def require_room(self, slot: int, count: int) -> None:
        """Raises InputError unless `count` more tokens fit into the slot."""
        if len(self.sequences[slot]) + count > self.tokens:
            raise InputError(
                f"{len(self.sequences[slot]) + count} tokens do not fit into the {self.tokens} of a "
                "sequence; shorten the prompt or raise the context length"
            )

    def write(self, layer: int, slot: int, start: int, k_TGD: Tensor, v_TGD: Tensor) -> None:
        """Write keys and values of consecutive tokens from position `start`."""
        stop = start + k_TGD.shape[0]
        self.keys[layer, slot, :, start:stop] = k_TGD.transpose(0, 1).to(self.keys.dtype)
        self.values[layer, slot, :, start:stop] = v_TGD.transpose(0, 1).to(self.values.dtype)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading ids that two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
