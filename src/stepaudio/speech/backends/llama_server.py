"""llama.cpp's server engine inside this process, without its side effects on the process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stepaudio.errors import IntegrityError, MissingError
from stepaudio.speech.threads import sleeping_openmp

# Prompts are evaluated in steps of this many tokens. llama.cpp looks at cancellations, and at the other slots,
# between steps only; steps of 512 would be 15 % quicker on a long prompt.
_STEP_TOKENS = 32
# Evaluated prompts of conversations that lost their slot are kept in host memory up to this size
# (28 KiB per token with a 1.5B Qwen2.5, 12 KiB with a 0.5B).
_CACHE_MIB = 512
_NICENESS = 19  # a seventieth of what a thread of ordinary priority gets beside it
_SIGACTION_BYTES = 256  # more than `struct sigaction` takes on any platform


def load(model: Path, *, context: int, slots: int, threads: int, key: str) -> Any:
    """An `xllamacpp.Server` with `slots` slots of `context` tokens, its HTTP side closed to whoever lacks `key`.

    Raises MissingError and IntegrityError.
    """
    xllamacpp = _import()
    _check_gguf(model)
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = context * slots
    params.n_parallel = slots
    params.n_batch = params.n_ubatch = _STEP_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = _CACHE_MIB
    params.fit_params = False
    params.verbosity = -1
    # The binding always opens an HTTP server on a free loopback port; nobody else may use it.
    params.api_keys = [key]
    params.ui = False
    params.n_threads_http = 1
    try:
        # The model's threads inherit the priority of the thread that starts them.
        with _signals_kept(), ThreadPoolExecutor(1, initializer=_give_way) as loader:
            return loader.submit(xllamacpp.Server, params).result()
    except RuntimeError as error:
        raise IntegrityError(
            f"llama.cpp cannot load {model}: the file is damaged or of a kind it does not know, or memory ran out; "
            "fetch it again with `stepaudio pull`"
        ) from error


def _import() -> Any:
    try:
        with sleeping_openmp():
            import xllamacpp
    except ImportError as error:
        raise MissingError(
            f"xllamacpp cannot be imported ({error}); run: pip install 'stepaudio[local]', "
            "and install libgomp (Debian: apt install libgomp1) if that is what is missing"
        ) from error
    return xllamacpp


def _check_gguf(model: Path) -> None:
    if not model.is_file():
        raise MissingError(f"there is no model file {model}; fetch it with `stepaudio pull`")
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise IntegrityError(f"{model} is not a GGUF file; fetch it again with `stepaudio pull`")


def _give_way() -> None:
    """Let this thread, and all that it starts, yield to the rest of the process where they share a core.

    The text of a reply is soon ahead of its audio, but a first clause that is spoken late keeps somebody waiting.
    """
    if sys.platform == "linux":  # elsewhere priorities belong to processes, not threads
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep this process's SIGINT and SIGTERM handlers, which llama.cpp's server replaces with its own.

    Goes through libc, since Python's `signal` module may only be used from the main thread and cannot see what C
    code installed.
    """
    if os.name != "posix":
        yield
        return
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, action in kept.items():
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(int(number), action, None)
