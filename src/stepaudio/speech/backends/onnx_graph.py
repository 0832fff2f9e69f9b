"""ONNX models that are edited or written here, and their sessions, without an ONNX library."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stepaudio.errors import BackendError, Cancelled, MissingError


def open_session(
    path: Path, *, threads: int, outputs: Sequence[str], patch: bytes = b"", renamed: Mapping[str, str] | None = None
) -> Any:
    """An onnxruntime session of the model at `path` with the inner tensors `outputs` as more outputs.

    Both voices compute the frames per phoneme and keep them to themselves. Two protobuf messages one after the other
    are read as one merged message (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so a graph that
    holds nothing but the outputs is put behind the model; no ONNX library is needed to edit it.

    `patch` is more of that graph: the `node`s and `float_input`s or `integer_input`s of this module, joined. With
    `renamed`, the nodes of the model that read the tensor of the first name read that of the second, as long, instead.
    Raises MissingError when the file or onnxruntime is not there, BackendError when the model does not load.
    """
    if not path.is_file():
        raise MissingError(f"the voice model {path} is not there; `stepaudio doctor` says how to get it")
    model = path.read_bytes()
    for old, new in (renamed or {}).items():
        read = _field(_NODE_INPUT, old.encode())
        if read not in model or len(new) != len(old):
            raise BackendError(f"the voice model {path} is not the one that is known here")
        model = model.replace(read, _field(_NODE_INPUT, new.encode()))
    tail = patch + b"".join(map(_output, outputs))
    return _session(model + _field(_GRAPH, tail), threads, f"the voice model {path}")


def write_session(parts: Iterable[bytes], *, outputs: Sequence[str], threads: int) -> Any:
    """An onnxruntime session of a graph that is written here: `parts` are its nodes, inputs and constants.

    Raises MissingError when onnxruntime is not there, BackendError when it does not know the operators.
    """
    graph = b"".join([_field(_GRAPH_NAME, b"graph"), *parts, *map(_output, outputs)])
    versions = ((b"", _STANDARD), (b"com.microsoft", 1))
    opsets = (_field(_OPSET, _field(1, domain) + _number(2, version)) for domain, version in versions)
    return _session(_number(_IR, _IR_VERSION) + b"".join(opsets) + _field(_GRAPH, graph), threads, "a graph")


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
# TypeProto.Tensor.elem_type; TensorProto.dims, .data_type, .name, .raw_data; AttributeProto.name, .i, .ints, .type.
_IR, _GRAPH, _OPSET = 1, 7, 8
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_CONSTANT, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_VALUE_NAME, _VALUE_TYPE, _TENSOR_TYPE, _ELEMENT_TYPE = 1, 2, 1, 1
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_INTS, _ATTRIBUTE_TYPE = 1, 3, 8, 20
_FLOAT, _UINT8, _INT64 = 1, 2, 7
_ELEMENTS = {"float32": _FLOAT, "uint8": _UINT8, "int64": _INT64}
_IR_VERSION, _STANDARD = 10, 20  # of the format, and of the standard operators


def node(
    operator: str, inputs: Sequence[str], *outputs: str, domain: str = "", **attributes: int | Sequence[int]
) -> bytes:
    """A node; an input that is left out is an empty name."""
    read = b"".join(_field(_NODE_INPUT, name.encode()) for name in inputs)
    written = b"".join(_field(_NODE_OUTPUT, name.encode()) for name in outputs)
    kind = _field(_NODE_TYPE, operator.encode()) + (_field(_NODE_DOMAIN, domain.encode()) if domain else b"")
    given = b"".join(_field(_NODE_ATTRIBUTE, _attribute(*each)) for each in attributes.items())
    return _field(_GRAPH_NODE, read + written + kind + given)


def constant(name: str, values: NDArray[Any]) -> bytes:
    """A tensor of float32, uint8 or int64."""
    dims = b"".join(_number(_DIMS, size) for size in values.shape)
    kind = _number(_DATA_TYPE, _ELEMENTS[values.dtype.name])
    return _field(_GRAPH_CONSTANT, dims + kind + _field(_TENSOR_NAME, name.encode()) + _field(_RAW, values.tobytes()))


def float_input(name: str) -> bytes:
    """A float input of any shape."""
    return _input(name, _FLOAT)


def integer_input(name: str) -> bytes:
    """An int64 input of any shape."""
    return _input(name, _INT64)


def _input(name: str, element: int) -> bytes:
    kind = _field(_VALUE_TYPE, _field(_TENSOR_TYPE, _number(_ELEMENT_TYPE, element)))
    return _field(_GRAPH_INPUT, _field(_VALUE_NAME, name.encode()) + kind)


def _output(name: str) -> bytes:
    """An output, of the type that the graph gives it."""
    return _field(_GRAPH_OUTPUT, _field(_VALUE_NAME, name.encode()))


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        content, kind = _number(_ATTRIBUTE_INT, value), 2
    else:
        content, kind = b"".join(_number(_ATTRIBUTE_INTS, each) for each in value), 7
    return _field(_ATTRIBUTE_NAME, name.encode()) + content + _number(_ATTRIBUTE_TYPE, kind)


def _number(number: int, value: int) -> bytes:
    """A protobuf field that is an integer, not below zero."""
    return _varint(number << 3) + _varint(value)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    head = []
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])
