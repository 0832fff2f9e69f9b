"""The dual-codebook tokenizer: speech to linguistic and semantic codes, from files or live.

    tokenizer = DualTokenizer.load("nano-tokenizer")  # ours, in the package; or the path of a folder
    codes = tokenizer.encode(samples)            # the whole of a recording
    stream = tokenizer.stream()                  # live
    codes = stream.push(samples) + stream.flush()

It loads StepFun's released folder and folders of two branches written by `stepaudio.tokenizer.checkpoint`; those in
`PACKAGED` by their name.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Self

from stepaudio.errors import InputError, MissingError
from stepaudio.tokenizer import linguistic, semantic
from stepaudio.tokenizer.branch import Branch, encode
from stepaudio.tokenizer.fbank import Floats
from stepaudio.tokenizer.gain import RunningGain, normalise_peak
from stepaudio.tokenizer.semantic import LIVE, LONG, RELEASED, WindowBranch
from stepaudio.tokenizer.streaming import Batcher, DualCodes, DualStream, check_samples
from stepaudio.tokenizer.trim import trim_silence

PACKAGED = Path(__file__).parent / "weights"
"""Tokenizers that come with the package."""

Mode = Literal["offline", "live", "released"]


@dataclass
class DualTokenizer:
    """Two branches on 16 kHz speech. One tokenizer serves any number of threads and live sessions.

    Close it, or use it in a `with` statement, to end the threads of live sessions.
    """

    linguistic: Branch[Any]
    semantic: Branch[Any]

    def __post_init__(self) -> None:
        self._batchers: tuple[Batcher, Batcher] | None = None
        self._lock = Lock()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        semantic_backend: Literal["torch", "onnx"] = "torch",
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> Self:
        """Load a released or an own tokenizer folder, or a packaged tokenizer by its name.

        bfloat16 is several times faster on recent CPUs; a few codes in a hundred may then differ
        (docs/tokenizer.md has the figures).

        Raises MissingError when files are missing and InputError when they do not fit together.
        """
        import torch

        from stepaudio.tokenizer import checkpoint

        root = find(folder)
        precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
        own = (checkpoint.LINGUISTIC, checkpoint.SEMANTIC)
        if (root / checkpoint.LINGUISTIC).is_file():
            return cls(*(checkpoint.load_branch(root / name, device=device, dtype=precision) for name in own))
        if (root / linguistic.CENTROIDS).is_file():
            return cls(
                linguistic.load_released(root, device=device, dtype=precision),
                semantic.load_released(root, backend=semantic_backend, device=device, dtype=precision),
            )
        names = f"{checkpoint.LINGUISTIC} nor {linguistic.CENTROIDS}"
        raise MissingError(f"{root} is no tokenizer folder: it has neither {names}")

    def encode(self, samples: Floats, *, mode: Mode = "offline", trim: bool = False) -> DualCodes:
        """Codes of samples [T] at 16 kHz, the two branches in parallel.

        offline: normalised by the peak of the whole, long audio without seams. live: what `stream` gives for
        the same samples. released: the same cuts and lost tail as the released tokenizer (its dither
        excepted). `trim` cuts the silence around a voice prompt, as the released tokenizer does for prompts.
        """
        check_samples(samples)
        if trim and len(samples):
            samples = trim_silence(samples)
        if mode == "live":
            normalised = RunningGain().push(samples)
        elif mode in ("offline", "released"):
            normalised = normalise_peak(samples)
        else:
            raise InputError(f"unknown mode {mode!r}: use 'offline', 'live' or 'released'", param="mode")
        plan = {"offline": LONG, "live": LIVE, "released": RELEASED}[mode]
        other = self.semantic.with_plan(plan) if isinstance(self.semantic, WindowBranch) else self.semantic
        with ThreadPoolExecutor(1) as pool:
            semantic_codes = pool.submit(encode, other, normalised)
            linguistic_codes = encode(self.linguistic, normalised)
            codes = DualCodes(linguistic_codes, semantic_codes.result())
        if mode == "released":
            kept = linguistic.released_length(len(samples))
            return DualCodes(codes.linguistic[:kept], codes.semantic)
        return codes

    def stream(self) -> DualStream:
        """A new live session on the shared encoders."""
        with self._lock:
            if self._batchers is None:
                live = self.semantic.with_plan(LIVE) if isinstance(self.semantic, WindowBranch) else self.semantic
                self._batchers = (Batcher(self.linguistic), Batcher(live))
            return DualStream(*self._batchers)

    def close(self) -> None:
        """End the threads. Sessions that are still open fail with BackendError."""
        with self._lock:
            for batcher in self._batchers or ():
                batcher.close()
            self._batchers = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find(name: str | Path) -> Path:
    """The folder of a tokenizer: a path, or the name of one that comes with the package."""
    packaged = PACKAGED / str(name)
    return packaged if packaged.is_dir() and not Path(name).is_dir() else Path(name)
