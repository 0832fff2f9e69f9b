"""Sessions of ONNX models that also tell how long each phoneme lasts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingError('speaking needs onnxruntime: pip install "stepaudio[local]"') from error
    if not path.is_file():
        raise MissingError(f"the voice model {path} is not there; `stepaudio doctor` says how to get it")
    model = path.read_bytes()
    for old, new in (renamed or {}).items():
        read = _field(_NODE_INPUT, old.encode())
        if read not in model or len(new) != len(old):
            raise BackendError(f"the voice model {path} is not the one that is known here")
        model = model.replace(read, _field(_NODE_INPUT, new.encode()))
    tail = patch + b"".join(_field(_GRAPH_OUTPUT, _field(_VALUE_NAME, name.encode())) for name in outputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(model + _field(_GRAPH, tail), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"the voice model {path} does not load: {error}") from error


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


# Field numbers: ModelProto.graph; GraphProto.node, .input, .output; NodeProto.input, .output, .op_type;
# ValueInfoProto.name, .type; TypeProto.tensor_type; TypeProto.Tensor.elem_type.
_GRAPH, _GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT = 7, 1, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE = 1, 2, 4
_VALUE_NAME, _VALUE_TYPE, _TENSOR_TYPE, _ELEMENT_TYPE = 1, 2, 1, 1
_FLOAT, _INT64 = 1, 7


def node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    """A node without attributes."""
    read = b"".join(_field(_NODE_INPUT, name.encode()) for name in inputs)
    return _field(_GRAPH_NODE, read + _field(_NODE_OUTPUT, output.encode()) + _field(_NODE_TYPE, operator.encode()))


def float_input(name: str) -> bytes:
    """A float input of any shape."""
    return _input(name, _FLOAT)


def integer_input(name: str) -> bytes:
    """An int64 input of any shape."""
    return _input(name, _INT64)


def _input(name: str, element: int) -> bytes:
    tensor = _varint(_ELEMENT_TYPE << 3) + _varint(element)
    kind = _field(_VALUE_TYPE, _field(_TENSOR_TYPE, tensor))
    return _field(_GRAPH_INPUT, _field(_VALUE_NAME, name.encode()) + kind)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    head = []
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])
