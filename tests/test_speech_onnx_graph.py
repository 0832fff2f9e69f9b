"""Editing ONNX models: nothing changes that was not to change, and convolutions as products are the same integers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stepaudio.errors import BackendError
from stepaudio.speech.backends import onnx_convolution, onnx_graph
from stepaudio.speech.backends.onnx_convolution import Products, exact
from stepaudio.speech.backends.onnx_graph import Node, constant, float_input, node, open_session

pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)


def convolution(
    channels: int, filters: int, taps: int, name: str = "y", **attributes: int | tuple[int, ...] | bytes
) -> list[bytes]:
    """A `ConvInteger` over "q", with attributes as exporters write them."""
    group = attributes.get("group", 1)
    assert isinstance(group, int)
    weights = RNG.integers(0, 256, (filters, channels // group, taps)).astype(np.uint8)
    return [
        constant(f"{name}_w", weights),
        constant(f"{name}_w0", np.array(RNG.integers(0, 256), np.uint8)),
        node("ConvInteger", ["q", f"{name}_w", "zero", f"{name}_w0"], name, kernel_shape=(taps,), **attributes),
    ]


QUANTISED = [float_input("x"), node("DynamicQuantizeLinear", ["x"], "q", "scale", "zero")]


def write(path: Path, parts: list[bytes], *outputs: str) -> Path:
    file = path / "model.onnx"
    file.write_bytes(onnx_graph.model(parts, outputs))
    return file


def opened(file: Path, edit: Any = None) -> Any:
    return open_session(file, threads=1, outputs=[], edit=edit)


class Kinds:
    """An edit that notes which operators an edit leaves in the model."""

    def __init__(self, edit: onnx_graph.Edit) -> None:
        self.edit, self.text = edit, b""

    def __call__(self, each: Node) -> bytes:
        changed = self.edit(each)
        self.text += changed
        return changed


def signals() -> dict[str, NDArray[np.float32]]:
    x = RNG.standard_normal((1, 6, 41)).astype(np.float32)
    return {"both signs": x, "positive": np.abs(x) + 1, "negative": -np.abs(x) - 1, "silent": np.zeros_like(x)}


@pytest.mark.skipif(not exact(1), reason="this processor adds products of bytes in 16 bits")
@pytest.mark.parametrize(("taps", "dilation", "pads"), [(1, 1, (0, 0)), (3, 1, (1, 1)), (7, 3, (9, 9)), (2, 5, (0, 4))])
def test_products_are_the_same_integers(taps: int, dilation: int, pads: tuple[int, int], tmp_path: Path) -> None:
    file = write(tmp_path, [*QUANTISED, *convolution(6, 5, taps, dilations=(dilation,), pads=pads)], "y")
    edit = Kinds(Products(threads=1))
    before, after = opened(file), opened(file, edit)
    assert b"ConvInteger" not in edit.text
    assert b"MatMulInteger" in edit.text
    for name, x in signals().items():
        (expected,), (product,) = before.run(None, {"x": x}), after.run(None, {"x": x})
        np.testing.assert_array_equal(product, expected, err_msg=name)


def test_several_convolutions_read_one_signal(tmp_path: Path) -> None:
    parts = [*QUANTISED, *convolution(6, 5, 3, "a", pads=(1, 1)), *convolution(6, 4, 1, "b")]
    file = write(tmp_path, parts, "a", "b")
    x = signals()["both signs"]
    for before, after in zip(
        opened(file).run(None, {"x": x}), opened(file, Products(threads=1)).run(None, {"x": x}), strict=True
    ):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    "attributes", [{"strides": (2,)}, {"group": 2}, {"dilations": (1,), "auto_pad": b"SAME_UPPER"}]
)
def test_other_convolutions_stay(attributes: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path, [*QUANTISED, *convolution(6, 4, 3, **attributes)], "y")
    edit = Kinds(Products(threads=1))
    x = signals()["both signs"]
    np.testing.assert_array_equal(opened(file, edit).run(None, {"x": x})[0], opened(file).run(None, {"x": x})[0])
    assert b"ConvInteger" in edit.text


def test_nothing_changes_where_products_are_not_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Saturating:
        def run(self, outputs: None, feed: dict[str, Any]) -> list[NDArray[np.int32]]:
            return [np.full((16, 16), 32767 * 32, np.int32)]

    monkeypatch.setattr(onnx_convolution, "write_session", lambda *_, **__: Saturating())
    assert not exact(1)
    seen: list[Node] = []

    def edit(each: Node) -> bytes:
        seen.append(each)
        assert products(each) == each.message
        return each.message

    products = Products(threads=1)
    opened(write(tmp_path, [*QUANTISED, *convolution(6, 4, 3)], "y"), edit)
    assert [each.operator for each in seen] == ["DynamicQuantizeLinear", "ConvInteger"]
    assert seen[1].attributes == {"kernel_shape": (3,)}


def test_a_node_reads_another_tensor(tmp_path: Path) -> None:
    parts = [float_input("x"), node("Neg", ["x"], "half"), node("Exp", ["half"], "y"), node("Abs", ["x"], "longer")]

    def edit(each: Node) -> bytes:
        changed = each.reading({"half": "longer"})
        assert changed.outputs == each.outputs
        return changed.message

    x = np.array([-1, 2], np.float32)
    (y,) = opened(write(tmp_path, parts, "y"), edit).run(None, {"x": x})
    np.testing.assert_allclose(y, np.exp(np.abs(x)), rtol=1e-6)


def test_a_cut_model_is_an_error(tmp_path: Path) -> None:
    whole = onnx_graph.model([*QUANTISED, *convolution(6, 5, 3)], ["y"])
    file = tmp_path / "model.onnx"
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(BackendError):
            opened(file, Products(threads=1))
    for position in range(0, len(whole), 3):  # whatever else is wrong is an error too, or no matter
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with contextlib.suppress(BackendError):
            opened(file, Products(threads=1))
