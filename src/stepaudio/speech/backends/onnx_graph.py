"""Sessions of ONNX models that also tell how long each phoneme lasts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from stepaudio.errors import BackendError, Cancelled, MissingError


def open_session(path: Path, *, durations: str, threads: int) -> Any:
    """An onnxruntime session of the model at `path` with its inner tensor `durations` as one more output.

    Both voices compute the frames per phoneme and keep them to themselves. Two protobuf messages one after the other
    are read as one merged message (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so a graph that
    holds nothing but the output is put behind the model; no ONNX library is needed to edit it.
    Raises MissingError when the file or onnxruntime is not there, BackendError when the model does not load.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingError('speaking needs onnxruntime: pip install "stepaudio[local]"') from error
    if not path.is_file():
        raise MissingError(f"the voice model {path} is not there; `stepaudio doctor` says how to get it")
    graph, output, name = 7, 12, 1  # field numbers: ModelProto.graph, GraphProto.output, ValueInfoProto.name
    tail = _field(graph, _field(output, _field(name, durations.encode())))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path.read_bytes() + tail, options, providers=["CPUExecutionProvider"])
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


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    head = []
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])
