"""The decoder of a CTranslate2 Whisper as ONNX graphs, its weights in 8 bits, each block of 32 with a scale of its own.

Shapes: B hypotheses, T new tokens, P tokens in all, S encoder states, H heads of D dimensions, C = H * D channels,
V tokens of the vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stepaudio.speech.backends.onnx_graph import constant, float_input, integer_input, node, write_session

Weights = Mapping[str, NDArray[Any]]

_BLOCK = 32
NEVER, _AS_IT_IS = np.float32(-1e9), np.float32(0)
"""Added to a score: what must not be, and what may."""
_TYPES = ("<f4", "i1", "<i2", "<i4", "<f2")  # of CTranslate2's files


def read_weights(path: Path) -> Weights:
    """The decoder's arrays in a CTranslate2 file, without `decoder/` before their names.

    Raises struct.error, IndexError or ValueError for a file that is damaged or quantised. The format is that of
    ctranslate2.specs.model_spec: version, name and revision of the model, then name, shape, type and bytes of each
    array.
    """
    weights: dict[str, NDArray[Any]] = {}
    with path.open("rb") as file:
        _integer(file), _name(file), _integer(file)
        for _ in range(_integer(file)):
            name = _name(file)
            shape = [_integer(file) for _ in range(file.read(1)[0])]
            kind, size = file.read(1)[0], _integer(file)
            if not name.startswith("decoder/"):
                file.seek(size, 1)
                continue
            weights[name.removeprefix("decoder/")] = np.frombuffer(file.read(size), _TYPES[kind]).reshape(shape)
    if any(name.endswith("weight_scale") for name in weights):
        raise ValueError("the weights are quantised")
    return weights


def _integer(file: BinaryIO) -> int:
    return int(struct.unpack("<I", file.read(4))[0])


def _name(file: BinaryIO) -> str:
    (size,) = struct.unpack("<H", file.read(2))
    return file.read(size)[:-1].decode()


class DecoderGraphs:
    """Writes the graphs of the decoder with these weights."""

    def __init__(self, weights: Weights) -> None:
        self.heads = int(weights["num_heads"])
        self.layers = sum(name.endswith("/ffn/layer_norm/gamma") for name in weights)
        self.channels = weights["embeddings/weight"].shape[1]
        self._weights = {"projection/weight": weights["embeddings/weight"], **weights}
        self._parts: list[bytes] = []
        self._silence: list[str] = []
        self._hidden = self._sizes = ""

    def step(self, silence: Sequence[NDArray[np.float32]]) -> Any:
        """A session from embedded tokens `x` [B, T, C] and a `mask` [T, P], added to the scores of attention, to logits
        [B, T, V].

        Keys and values go in as `seen` [B, H, P - T, D], two a layer, and come out [B, H, P, D]; `memory` are the
        outputs of the other graph for what was heard, `silence` those for what follows it: its first states, as
        many as the integer `hidden` [1] says, are not attended to.
        """
        self._begin("x", "mask")
        self._parts.append(integer_input("hidden"))
        self._silence = [self._constant(values) for values in silence]
        states = silence[0].shape[-1]
        heard = self._node("Shape", ["memory 0"], start=3)
        hidden = self._node("Less", [self._constant(np.arange(states)), "hidden"])
        self._hidden = self._node(
            "Where", [hidden, self._constant(np.array(NEVER)), self._constant(np.array(_AS_IT_IS))]
        )
        self._sizes = self._node("Concat", [heard, self._constant(np.array([states]))], axis=0)
        x = "x"
        for layer in range(self.layers):
            x = self._add(x, self._self_attention(x, layer))
            x = self._add(x, self._cross_attention(x, layer))
            x = self._add(x, self._feed_forward(x, layer))
        logits = self._linear(self._norm(x, "layer_norm"), "projection")
        return self._end([logits, *(f"now {index}" for index in range(2 * self.layers))])

    def memory(self) -> Any:
        """A session from encoder `states` [S, C] to the keys [H, 1, D, S] and values [H, 1, S, D] of each layer."""
        self._begin("states")
        outputs = []
        for layer in range(self.layers):
            both = self._linear("states", f"layer_{layer}/attention/linear_1")
            keys, values = self._split(both, 2, axis=1)
            for part, order in ((keys, (1, 2, 3, 0)), (values, (1, 2, 0, 3))):
                outputs.append(self._node("Transpose", [self._reshape(part, "one head each")], perm=order))
        return self._end(outputs)

    def _self_attention(self, x: str, layer: int) -> str:
        name = f"layer_{layer}/self_attention"
        both = self._linear(self._norm(x, f"{name}/layer_norm"), f"{name}/linear_0", queries=True)
        queries, keys, values = (self._turned(part, (0, 2, 1, 3)) for part in self._split(both, 3, axis=2))
        for index, new in ((2 * layer, keys), (2 * layer + 1, values)):
            self._parts.append(float_input(f"seen {index}"))
            self._parts.append(node("Concat", [f"seen {index}", new], f"now {index}", axis=2))
        keys = self._node("Transpose", [f"now {2 * layer}"], perm=(0, 1, 3, 2))
        scores = self._add(self._node("MatMul", [queries, keys]), "mask")
        heard = self._node("MatMul", [self._node("Softmax", [scores]), f"now {2 * layer + 1}"])
        return self._linear(self._flat(heard, (0, 2, 1, 3)), f"{name}/linear_1")

    def _cross_attention(self, x: str, layer: int) -> str:
        # Heads come first and hypotheses second: the keys of a head are then in the cache for all hypotheses.
        name, keys, values = f"layer_{layer}/attention", f"memory {2 * layer}", f"memory {2 * layer + 1}"
        self._parts += float_input(keys), float_input(values)
        queries = self._linear(self._norm(x, f"{name}/layer_norm"), f"{name}/linear_0", queries=True)
        queries = self._turned(queries, (2, 0, 1, 3))
        silent_keys, silent_values = self._silence[2 * layer : 2 * layer + 2]
        silent = self._add(self._node("MatMul", [queries, silent_keys]), self._hidden)
        scores = self._node("Concat", [self._node("MatMul", [queries, keys]), silent], axis=3)
        weights = self._split(self._node("Softmax", [scores]), 2, axis=3, sizes=self._sizes)
        heard, after = (self._node("MatMul", list(each)) for each in zip(weights, (values, silent_values), strict=True))
        return self._linear(self._flat(self._add(heard, after), (1, 2, 0, 3)), f"{name}/linear_2")

    def _feed_forward(self, x: str, layer: int) -> str:
        name = f"layer_{layer}/ffn"
        inner = self._node("Gelu", [self._linear(self._norm(x, f"{name}/layer_norm"), f"{name}/linear_0")])
        return self._linear(inner, f"{name}/linear_1")

    # ------------------------------------------------------------ operators

    def _linear(self, x: str, name: str, *, queries: bool = False) -> str:
        """With `queries`, the first C outputs are divided by the square root of D."""
        weight_OI = self._weights[f"{name}/weight"].astype(np.float32)
        outputs, inputs = weight_OI.shape
        bias_O = self._weights.get(f"{name}/bias", np.zeros(outputs)).astype(np.float32)
        blocks = weight_OI.reshape(outputs, inputs // _BLOCK, _BLOCK)
        largest = np.maximum(blocks.max(axis=2), -blocks.min(axis=2))
        scales = np.maximum(largest, np.float32(1e-8)) / np.float32(127)
        blocks /= scales[..., None]
        blocks += np.float32(128.5)  # rounds, and moves zero to 128
        numbers = blocks.astype(np.uint8)
        if queries:
            scales[: self.channels] /= np.float32(np.sqrt(self.channels // self.heads))
            bias_O[: self.channels] /= np.float32(np.sqrt(self.channels // self.heads))
        given = [self._constant(numbers), self._constant(scales.reshape(-1)), "", "", self._constant(bias_O)]
        sizes = {"K": inputs, "N": outputs, "bits": 8, "block_size": _BLOCK, "accuracy_level": 4}
        return self._node("MatMulNBits", [x, *given], domain="com.microsoft", **sizes)

    def _norm(self, x: str, name: str) -> str:
        given = [self._constant(self._weights[f"{name}/{part}"].astype(np.float32)) for part in ("gamma", "beta")]
        return self._node("LayerNormalization", [x, *given])

    def _add(self, first: str, second: str) -> str:
        return self._node("Add", [first, second])

    def _split(self, x: str, count: int, *, axis: int, sizes: str = "") -> list[str]:
        """In equal parts, or in parts of these sizes."""
        names = [f"{x} part {index}" for index in range(count)]
        if sizes:
            self._parts.append(node("Split", [x, sizes], *names, axis=axis))
        else:
            self._parts.append(node("Split", [x], *names, axis=axis, num_outputs=count))
        return names

    def _turned(self, x: str, order: Sequence[int]) -> str:
        """[B, T, C] to [B, T, H, D] in another order."""
        return self._node("Transpose", [self._reshape(x, "heads")], perm=order)

    def _flat(self, x: str, order: Sequence[int]) -> str:
        """Brought to the order [B, T, H, D], to [B, T, C]."""
        return self._reshape(self._node("Transpose", [x], perm=order), "flat")

    def _reshape(self, x: str, shape: str) -> str:
        return self._node("Reshape", [x, shape])

    def _node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{operator} {len(self._parts)}"
        self._parts.append(node(operator, inputs, output, **attributes))
        return output

    def _constant(self, values: NDArray[Any]) -> str:
        name = f"constant {len(self._parts)}"
        self._parts.append(constant(name, values))
        return name

    def _begin(self, *inputs: str) -> None:
        depth = self.channels // self.heads
        # A zero stands for the size that is there.
        shapes = {"heads": (0, 0, self.heads, depth), "one head each": (0, self.heads, 1, depth), "flat": (0, 0, -1)}
        self._parts = [constant(name, np.array(shape, dtype=np.int64)) for name, shape in shapes.items()]
        self._parts += map(float_input, inputs)

    def _end(self, outputs: Sequence[str]) -> Any:
        session = write_session(self._parts, outputs=outputs, threads=1)
        self._parts = []
        return session
