"""The C++ step of the language model (`native.cpp`): compiled once per machine, called through ctypes.

It needs a C++ compiler that speaks GCC's vector extensions (g++ 12 or newer; anything else makes `library`
return None and torch does the work). OpenMP comes from the copy that torch has loaded, so that both share one
thread pool.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from stepaudio.lm.cache import Cache
from stepaudio.lm.quantize import Int8Linear
from stepaudio.lm.runner import Span
from stepaudio.lm.step1 import Block, Step1

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-fopenmp", "-w")
MAX_ROWS = 64
_WEIGHT_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_Pointer = ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = (("weight", _Pointer), ("scale", _Pointer))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "o", "gate_up", "down")),
        ("attention_norm", _Pointer),
        ("mlp_norm", _Pointer),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in (
                *("layers", "width", "heads", "groups", "head_width", "ff", "vocab"),
                *("weight_kind", "embedding_kind"),
            )
        ),
        ("epsilon", ctypes.c_float),
        ("layer", ctypes.POINTER(_Layer)),
        ("slopes", _Pointer),
        ("norm", _Pointer),
        ("head", _Matrix),
        ("embedding", _Pointer),
        ("keys", _Pointer),
        ("values", _Pointer),
        ("slots", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("roots", _Pointer),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled step, built at the first use on this machine; None, and a logged reason, where it
    cannot be."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        log.warning("no C++ compiler (g++) found; the language model decodes more slowly without one")
        return None
    try:
        loaded = ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        log.warning("the language model's C++ step cannot be used and torch does its work: %s", detail[-2000:])
        return None
    loaded.stepaudio_step.restype = None
    return loaded


def _build(compiler: str) -> Path:
    def run(*arguments: str) -> str:
        command = [compiler, *arguments]
        return subprocess.run(command, input="", capture_output=True, text=True, check=True, timeout=300).stdout

    # What the compiler predefines names its version and every feature of this CPU, so a home directory that
    # several machines share never serves one of them code for another.
    macros = run("-march=native", "-x", "c++", "-dM", "-E", "-")
    key = hashlib.sha256("\0".join((SOURCE.read_text(), macros, *FLAGS)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepaudio" / "native"
    target = folder / f"step-{key}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work)
            run(*FLAGS, "-c", str(SOURCE), "-o", str(made / "step.o"))
            # Linked without -fopenmp: its symbols are found in the OpenMP that torch brought into the
            # process.
            run("-shared", str(made / "step.o"), "-o", str(made / "step.so"))
            (made / "step.so").replace(target)
    return target


def _linears(model: Step1) -> list[nn.Linear | Int8Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | Int8Linear)]


def why_not(model: Step1, cache: Cache) -> str | None:
    """Why this model cannot run natively, or None when it can."""
    config = model.config
    dtypes = {linear.weight.dtype for linear in _linears(model)}
    if len(dtypes) != 1 or not dtypes <= _WEIGHT_KINDS.keys():
        return f"weights are {', '.join(map(str, dtypes))}"
    expected = torch.float32 if dtypes == {torch.float32} else torch.bfloat16
    if {cache.keys.dtype, model.model.embed_tokens.weight.dtype} != {expected}:
        return f"cache and embedding must be {expected}"
    widths = (config.hidden_size, config.intermediate_size, config.head_dim)
    loaded = library()
    if loaded is None:
        return "no native library"
    unroll = 2 * loaded.stepaudio_lanes()
    if any(width % unroll for width in widths):
        return f"widths {widths} are not multiples of {unroll}"
    return None


_moved: WeakSet[Step1] = WeakSet()  # moving a model again would pull the memory from under its other runners


def huge_pages(size: int) -> mmap.mmap:
    """Zeroed memory, in pages of 2 MiB where the system has them."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def move_to_huge_pages(model: Step1) -> None:
    """Move the matrices that every step reads into huge pages, in the order in which it does; the model stays the same.

    A step walks through all of them, and with pages of 4 KiB it spends a third of its time on finding the pages. The
    old storage of a matrix is freed as soon as it is copied.
    """
    _moved.add(model)
    groups = [group for block in model.model.layers for group in _groups(block).values()] + [[model.lm_head]]
    sizes = [sum(linear.weight.nbytes for linear in group) for group in groups]
    sizes = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes]
    memory = huge_pages(sum(sizes))
    offset = 0
    for group, size in zip(groups, sizes, strict=True):
        weights = [linear.weight for linear in group]
        count = sum(weight.numel() for weight in weights)
        place = torch.frombuffer(memory, dtype=weights[0].dtype, count=count, offset=offset)
        for linear, view in zip(group, _rows_of(group, place.view(-1, weights[0].shape[1])), strict=True):
            view.copy_(linear.weight.detach())
            linear.weight.data = view
        offset += size


def _groups(block: Any) -> dict[str, list[Any]]:
    """The linear layers of a block by the `Matrix` of `native.cpp` that they make together."""
    attention, mlp = block.self_attn, block.mlp
    return {
        "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "o": [attention.o_proj],
        "gate_up": [mlp.gate_proj, mlp.up_proj],
        "down": [mlp.down_proj],
    }


def _rows_of(group: list[Any], joined: Tensor) -> Sequence[Tensor]:
    """The rows of each of a group's layers in what they make together: gate and up in turn, others one behind the
    other."""
    if len(group) == 2:
        return joined[::2], joined[1::2]
    return torch.split(joined, [len(linear.weight) for linear in group])


class NativeRunner:
    """Steps in one C++ call each. The result of a sequence does not depend, to the bit, on what shares its
    steps or on how its prompt was cut into spans. Check `why_not` first."""

    def __init__(self, model: Step1, cache: Cache) -> None:
        loaded = library()
        assert loaded is not None
        self._run = loaded.stepaudio_step
        self._lanes: int = loaded.stepaudio_lanes()
        self.cache = cache
        self._vocab = model.config.vocab_size
        if model not in _moved:
            move_to_huge_pages(model)
        self._kept: list[Tensor] = []  # tensors that only the C++ side points to
        self._model = self._describe(model)
        self._modules = model  # its weights are pointed to as well

    def _floats(self, tensor: Tensor) -> int:
        wide = tensor.detach().float().contiguous()
        self._kept.append(wide)
        return wide.data_ptr()

    def _matrix(self, group: list[Any]) -> _Matrix:
        """What a group of linear layers, moved to one place, makes together."""
        if not isinstance(group[0], Int8Linear):
            return _Matrix(group[0].weight.data_ptr(), None)
        scale = torch.empty(sum(len(linear.scale) for linear in group))
        for linear, rows in zip(group, _rows_of(group, scale), strict=True):
            rows.copy_(linear.scale)
        return _Matrix(group[0].weight.data_ptr(), self._floats(scale))

    def _describe(self, model: Step1) -> _Model:
        config, cache = model.config, self.cache
        layers = (_Layer * config.num_hidden_layers)()
        for described, block in zip(layers, model.model.layers, strict=True):
            assert isinstance(block, Block)
            for name, group in _groups(block).items():
                setattr(described, name, self._matrix(group))
            described.attention_norm = self._floats(block.input_layernorm.weight)
            described.mlp_norm = self._floats(block.post_attention_layernorm.weight)
        embedding = model.model.embed_tokens.weight
        return _Model(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            groups=config.num_attention_groups,
            head_width=config.head_dim,
            ff=config.intermediate_size,
            vocab=config.vocab_size,
            weight_kind=_WEIGHT_KINDS[_linears(model)[0].weight.dtype],
            embedding_kind=_WEIGHT_KINDS[embedding.dtype],
            epsilon=config.rms_norm_eps,
            layer=layers,
            slopes=self._floats(model.slopes),
            norm=self._floats(model.model.norm.weight),
            head=self._matrix([model.lm_head]),
            embedding=embedding.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            slots=len(cache.sequences),
            tokens=cache.tokens,
            roots=self._floats(torch.arange(cache.tokens - 1, -1 - self._lanes, -1).clamp(min=0).sqrt()),
        )

    def step(self, spans: Sequence[Span]) -> Tensor:
        rows: list[tuple[int, int, int]] = []  # token, slot, position
        last: list[int] = []  # the row of each span's last token
        for span in spans:
            self.cache.require_room(span.slot, len(span.tokens))
            start = len(self.cache.sequences[span.slot])
            rows.extend((token, span.slot, start + i) for i, token in enumerate(span.tokens))
            last.append(len(rows) - 1)
        if not all(0 <= token < self._vocab for token, _, _ in rows):
            raise IndexError(f"token ids must be in [0, {self._vocab})")
        logits = torch.empty(len(spans), self._vocab)
        done = 0
        for start in range(0, len(rows), MAX_ROWS):
            piece = rows[start : start + MAX_ROWS]
            wanted = [row - start for row in last if start <= row < start + len(piece)]
            self._run_rows(piece, wanted, logits[done:])
            done += len(wanted)
        for span in spans:
            self.cache.append(span.slot, span.tokens)
        return logits

    def _run_rows(self, rows: Sequence[tuple[int, int, int]], wanted: Sequence[int], logits: Tensor) -> None:
        tokens, slots, positions = (_integers(column) for column in zip(*rows, strict=True))
        self._run(
            ctypes.byref(self._model),
            len(rows),
            tokens,
            slots,
            positions,
            _integers(wanted),
            len(wanted),
            _Pointer(logits.data_ptr()),
            torch.get_num_threads(),
        )


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
