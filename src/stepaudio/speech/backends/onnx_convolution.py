"""Integer convolutions of an ONNX model as matrix products, which onnxruntime computes two to three times as fast.

Its `ConvInteger` takes the processor's 8-bit dot products (VNNI) neither for unsigned nor for signed weights;
`MatMulInteger` takes them when one side is unsigned and the other signed. A convolution in one dimension

    y[o, t] = sum over c, k of (w[o, c, k] - w0) * (x[c, t + k * dilation] - x0)

is the product of the weights [O, K * C] and the K shifted copies of x, one below the other [K * C, T]. x is quantised
to signed numbers instead of unsigned ones, which takes 128 off every x and off x0: the same integers come out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepaudio.speech.backends.onnx_graph import INT8, Node, constant, node, write_session

_END = np.iinfo(np.int64).max
_FLIP = "stepaudio_flip"
_ORDER = "stepaudio_order"


class Products:
    """An `Edit` that turns the `ConvInteger`s of one model, over what `DynamicQuantizeLinear` gives, into products.

    Strided, grouped and otherwise special ones stay as they are, and so do all where `exact` is false.
    """

    def __init__(self, *, threads: int) -> None:
        self._wanted = exact(threads)
        self._quantised: dict[str, Node] = {}
        self._signed: set[str] = set()
        self._begun = False

    def __call__(self, each: Node) -> bytes:
        if each.operator == "DynamicQuantizeLinear":
            self._quantised[each.outputs[0]] = each
        if not self._wanted or each.operator != "ConvInteger" or each.inputs[0] not in self._quantised:
            return each.message
        shape = _shape(each)
        return each.message if shape is None else self._product(each, shape)

    def _product(self, each: Node, shape: _Shape) -> bytes:
        x, weights, _, weights_zero = each.inputs
        (name,) = each.outputs
        parts = [] if self._begun else [constant(_FLIP, np.array(128, np.uint8)), constant(_ORDER, np.array([0, -1]))]
        self._begun = True
        signed, zero = f"{x}_signed", f"{x}_signed_zero"
        if x not in self._signed:
            self._signed.add(x)
            parts += _signed(self._quantised[x], signed, zero)
        if any(shape.pads):
            padding = constant(f"{name}_pads", np.array([0, 0, shape.pads[0], 0, 0, shape.pads[1]]))
            parts += [padding, node("Pad", [signed, f"{name}_pads", zero], f"{name}_padded")]
            signed = f"{name}_padded"
        if shape.taps > 1:
            parts += _shifted(signed, shape, name)
            signed = f"{name}_shifted"
        return b"".join(
            [
                *parts,
                node("Transpose", [weights], f"{name}_turned", perm=(0, 2, 1)),
                node("Reshape", [f"{name}_turned", _ORDER], f"{name}_weights"),
                node("MatMulInteger", [f"{name}_weights", signed, weights_zero, zero], name),
            ]
        )


@dataclass(frozen=True, slots=True)
class _Shape:
    taps: int
    dilation: int
    pads: tuple[int, int]


def _shape(each: Node) -> _Shape | None:
    """None for what is no plain convolution in one dimension with zero points on both sides and pads in numbers."""
    given = {"strides": (1,), "group": 1, "auto_pad": b"NOTSET", "pads": (0, 0), "dilations": (1,), **each.attributes}
    match given:
        case {
            "kernel_shape": (int(taps),),
            "strides": (1,),
            "group": 1,
            "auto_pad": b"NOTSET",
            "pads": (int(before), int(after)),
            "dilations": (int(dilation),),
        } if len(each.inputs) == 4:
            return _Shape(taps, dilation, (before, after))
    return None


def _signed(quantised: Node, values: str, zero: str) -> list[bytes]:
    """What was quantised to [0, 255], in [-128, 127]: the same scale, the zero point less 128."""
    (x,), (_, scale, unsigned_zero) = quantised.inputs, quantised.outputs
    return [
        node("BitwiseXor", [unsigned_zero, _FLIP], f"{zero}_bits"),
        node("Cast", [f"{zero}_bits"], zero, to=INT8),
        node("QuantizeLinear", [x, scale, zero], values),
    ]


def _shifted(x: str, shape: _Shape, name: str) -> list[bytes]:
    """x [1, C, T + (K - 1) dilation] to [1, K C, T]."""
    parts, copies = [constant(f"{name}_axis", np.array([2]))], []
    for tap in range(shape.taps):
        behind = (shape.taps - 1 - tap) * shape.dilation
        begin, end, copy = f"{name}_from_{tap}", f"{name}_to_{tap}", f"{name}_tap_{tap}"
        parts += [
            constant(begin, np.array([tap * shape.dilation])),
            constant(end, np.array([-behind if behind else _END])),
            node("Slice", [x, begin, end, f"{name}_axis"], copy),
        ]
        copies.append(copy)
    return [*parts, node("Concat", copies, f"{name}_shifted", axis=1)]


def exact(threads: int) -> bool:
    """Whether products of unsigned and signed bytes are exact here. x86 processors before VNNI add pairs of them in 16
    bits, which do not hold 2 * 255 * 127."""
    unsigned, signed = np.full((16, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    parts = [constant("unsigned", unsigned), constant("signed", signed)]
    graph = write_session([*parts, node("MatMulInteger", ["unsigned", "signed"], "y")], outputs=["y"], threads=threads)
    (product,) = graph.run(None, {})
    return bool((product == unsigned.astype(np.int32) @ signed).all())
