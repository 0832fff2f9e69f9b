"""ONNX models that are edited or written here, and their sessions, without an ONNX library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stepaudio.errors import BackendError, Cancelled, MissingError

Value = int | tuple[int, ...] | bytes


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a model that is being edited; of its attributes the integers, lists of integers and strings."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Value]
    body: bytes

    @property
    def message(self) -> bytes:
        """The node as it stands in the model."""
        return _field(_GRAPH_NODE, self.body)

    def reading(self, names: Mapping[str, str]) -> Node:
        """The node, with the tensors of the second names as inputs instead of those of the first."""
        body = self.body
        for name in {*self.inputs} & {*names}:
            body = body.replace(_field(_NODE_INPUT, name.encode()), _field(_NODE_INPUT, names[name].encode()))
        return replace(self, inputs=tuple(names.get(name, name) for name in self.inputs), body=body)


Edit = Callable[[Node], bytes]
"""What stands in the place of a node: itself (`Node.message`), or other `node`s and `constant`s, joined."""


def open_session(
    path: Path, *, threads: int, outputs: Sequence[str], edit: Edit | None = None, patch: bytes = b""
) -> Any:
    """An onnxruntime session of the model at `path` with the inner tensors `outputs` as more outputs.

    Both voices compute the frames per phoneme and keep them to themselves. Two protobuf messages one after the other
    are read as one merged message (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so a graph that
    holds nothing but the outputs is put behind the model; no ONNX library is needed to edit it.

    `patch` is more of that graph: the `node`s and `float_input`s or `integer_input`s of this module, joined. `edit`
    is given each node of the model, in the model's order.
    Raises MissingError when the file or onnxruntime is not there, BackendError when the model does not load.
    """
    if not path.is_file():
        raise MissingError(f"the voice model {path} is not there; `stepaudio doctor` says how to get it")
    content, name = path.read_bytes(), f"the voice model {path}"
    if edit is not None:
        try:
            content = _edited(content, edit)
        except (IndexError, ValueError) as error:
            raise BackendError(f"{name} does not load: it is damaged") from error
    return _session(content + _field(_GRAPH, patch + b"".join(map(_output, outputs))), threads, name)


def write_session(parts: Iterable[bytes], *, outputs: Sequence[str], threads: int) -> Any:
    """An onnxruntime session of a graph that is written here: `parts` are its nodes, inputs and constants.

    Raises MissingError when onnxruntime is not there, BackendError when it does not know the operators.
    """
    return _session(model(parts, outputs), threads, "a graph")


def model(parts: Iterable[bytes], outputs: Sequence[str]) -> bytes:
    """An ONNX file of a graph: `parts` are its nodes, inputs and constants."""
    graph = b"".join([_field(_GRAPH_NAME, b"graph"), *parts, *map(_output, outputs)])
    versions = ((b"", _STANDARD), (b"com.microsoft", 1))
    opsets = (_field(_OPSET, _field(1, domain) + _number(2, version)) for domain, version in versions)
    return _number(_IR, _IR_VERSION) + b"".join(opsets) + _field(_GRAPH, graph)


def _session(model: bytes, threads: int, name: str) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingError('this needs onnxruntime: pip install "stepaudio[local]"') from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"{name} does not load: {error}") from error


def run(session: Any, feed: dict[str, Any], cancel: threading.Event | None) -> list[Any]:
    """All outputs of one run, which ends within some milliseconds of `cancel` being set, by raising Cancelled."""
    import onnxruntime as ort

    if cancel is None:
        outputs: list[Any] = session.run(None, feed)
        return outputs
    if cancel.is_set():
        raise Cancelled("speaking was cancelled")
    options = ort.RunOptions()
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.02):
            if cancel.is_set():
                options.terminate = True
                return

    watcher = threading.Thread(target=watch, name="stepaudio-cancel", daemon=True)
    watcher.start()
    try:
        outputs = session.run(None, feed, options)
    except Exception as error:
        if cancel.is_set():
            raise Cancelled("speaking was cancelled") from None
        raise BackendError(f"the voice failed: {error}") from error
    finally:
        finished.set()
        watcher.join()
    return outputs


# Field numbers: ModelProto.ir_version, .graph, .opset_import; GraphProto.node, .name, .initializer, .input, .output;
# NodeProto.input, .output, .op_type, .attribute, .domain; ValueInfoProto.name, .type; TypeProto.tensor_type;
# TypeProto.Tensor.elem_type; TensorProto.dims, .data_type, .name, .raw_data; AttributeProto.name, .i, .s, .ints, .type.
_IR, _GRAPH, _OPSET = 1, 7, 8
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_CONSTANT, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_VALUE_NAME, _VALUE_TYPE, _TENSOR_TYPE, _ELEMENT_TYPE = 1, 2, 1, 1
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_STRING, _ATTRIBUTE_INTS, _ATTRIBUTE_TYPE = 1, 3, 4, 8, 20
_FLOAT, _UINT8, INT8, INT64 = 1, 2, 3, 7
_ELEMENTS = {"float32": _FLOAT, "uint8": _UINT8, "int8": INT8, "int64": INT64}
_VARINT, _DELIMITED, _FIXED = 0, 2, {1: 8, 5: 4}  # how a field is written; bytes of those of one size
_IR_VERSION, _STANDARD = 10, 20  # of the format, and of the standard operators


def node(
    operator: str, inputs: Sequence[str], *outputs: str, domain: str = "", **attributes: int | Sequence[int] | bytes
) -> bytes:
    """A node; an input that is left out is an empty name."""
    read = b"".join(_field(_NODE_INPUT, name.encode()) for name in inputs)
    written = b"".join(_field(_NODE_OUTPUT, name.encode()) for name in outputs)
    kind = _field(_NODE_TYPE, operator.encode()) + (_field(_NODE_DOMAIN, domain.encode()) if domain else b"")
    given = b"".join(_field(_NODE_ATTRIBUTE, _attribute(*each)) for each in attributes.items())
    return _field(_GRAPH_NODE, read + written + kind + given)


def constant(name: str, values: NDArray[Any]) -> bytes:
    """A tensor of float32, uint8, int8 or int64."""
    dims = b"".join(_number(_DIMS, size) for size in values.shape)
    kind = _number(_DATA_TYPE, _ELEMENTS[values.dtype.name])
    return _field(_GRAPH_CONSTANT, dims + kind + _field(_TENSOR_NAME, name.encode()) + _field(_RAW, values.tobytes()))


def float_input(name: str) -> bytes:
    """A float input of any shape."""
    return _input(name, _FLOAT)


def integer_input(name: str) -> bytes:
    """An int64 input of any shape."""
    return _input(name, INT64)


def _input(name: str, element: int) -> bytes:
    kind = _field(_VALUE_TYPE, _field(_TENSOR_TYPE, _number(_ELEMENT_TYPE, element)))
    return _field(_GRAPH_INPUT, _field(_VALUE_NAME, name.encode()) + kind)


def _output(name: str) -> bytes:
    """An output, of the type that the graph gives it."""
    return _field(_GRAPH_OUTPUT, _field(_VALUE_NAME, name.encode()))


def _attribute(name: str, value: int | Sequence[int] | bytes) -> bytes:
    if isinstance(value, int):
        content, kind = _number(_ATTRIBUTE_INT, value), 2
    elif isinstance(value, bytes):
        content, kind = _field(_ATTRIBUTE_STRING, value), 3
    else:
        content, kind = b"".join(_number(_ATTRIBUTE_INTS, each) for each in value), 7
    return _field(_ATTRIBUTE_NAME, name.encode()) + content + _number(_ATTRIBUTE_TYPE, kind)


def _number(number: int, value: int) -> bytes:
    """A protobuf field that is an integer, not below zero."""
    return _varint(number << 3) + _varint(value)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | _DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    head = []
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])


def _edited(model: bytes, edit: Edit) -> bytes:
    """The model with what `edit` makes of the nodes of its graph. Raises ValueError or IndexError for what is no
    protobuf message."""
    parts: list[bytes | memoryview] = []
    for number, field, payload in _fields(memoryview(model)):
        if number != _GRAPH:
            parts.append(field)
            continue
        graph = [edit(_node(inner)) if each == _GRAPH_NODE else whole for each, whole, inner in _fields(payload)]
        size = sum(map(len, graph))
        parts += [_varint(_GRAPH << 3 | _DELIMITED), _varint(size), *graph]
    return b"".join(parts)


def _node(message: memoryview) -> Node:
    operator, inputs, outputs = "", list[str](), list[str]()
    attributes: dict[str, Value] = {}
    for number, _, payload in _fields(message):
        if number == _NODE_TYPE:
            operator = _text(payload)
        elif number == _NODE_INPUT:
            inputs.append(_text(payload))
        elif number == _NODE_OUTPUT:
            outputs.append(_text(payload))
        elif number == _NODE_ATTRIBUTE:
            attributes.update(_value(payload))
    return Node(operator, tuple(inputs), tuple(outputs), attributes, bytes(message))


def _value(attribute: memoryview) -> dict[str, Value]:
    """The name and the value of an attribute; nothing of one that is neither integer, nor integers, nor string."""
    name, several = "", list[int]()
    single: int | bytes | None = None
    for number, _, payload in _fields(attribute):
        if number == _ATTRIBUTE_NAME:
            name = _text(payload)
        elif number == _ATTRIBUTE_INT:
            (single,) = _varints(payload)
        elif number == _ATTRIBUTE_STRING:
            single = bytes(payload)
        elif number == _ATTRIBUTE_INTS:  # one to a field, or packed
            several += _varints(payload)
    if single is not None:
        return {name: single}
    return {name: tuple(several)} if several else {}


def _varints(payload: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(payload):
        value, at = _varint_at(payload, at)
        values.append(value)
    return values


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, the whole field, and the payload of every field."""
    start = 0
    while start < len(message):
        tag, at = _varint_at(message, start)
        kind = tag & 7
        if kind == _DELIMITED:
            size, at = _varint_at(message, at)
            end = at + size
        elif kind == _VARINT:
            end = _varint_at(message, at)[1]
        elif kind in _FIXED:
            end = at + _FIXED[kind]
        else:
            raise ValueError(f"a field of the kind {kind}")
        if end > len(message):
            raise ValueError("a field goes beyond the end")
        yield tag >> 3, message[start:end], message[at:end]
        start = end


def _varint_at(message: memoryview, at: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte <= 0x7F:
            return value, at


def _text(payload: memoryview) -> str:
    return str(payload, "utf-8")
