"""Speed of the dual-codebook tokenizer on this machine.

    python benchmarks/tokenizer.py            # our nano-tokenizer, live and offline
    python benchmarks/tokenizer.py --full     # also the released architecture at full size, 280 M random parameters

Live figures are given by the clock and in CPU time of all threads together, which a busy machine disturbs less.

For the full size every figure stands beside the plain form of the same network on the same audio in the same
run: `PlainSanm` computes one chunk after the other with growing-and-cut caches, `PlainS3` one window after
the other with the attention written out, both eager in float32. Each time is the least of several.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepaudio.audio.features import whisper_log_mel
from stepaudio.tokenizer.branch import BranchStream, encode
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.tokenizer.fbank import RATE, Floats
from stepaudio.tokenizer.lfr import LfrFrontend
from stepaudio.tokenizer.linguistic import SanmBranch
from stepaudio.tokenizer.packed import pack
from stepaudio.tokenizer.quantize import Codebook, FiniteScalarQuantizer
from stepaudio.tokenizer.s3 import HEAD_DIM, S3Config, S3Encoder, TorchS3
from stepaudio.tokenizer.sanm import SanmConfig, SanmEncoder, sinusoids
from stepaudio.tokenizer.semantic import LIVE, WindowBranch, WindowSegmenter

PUSH = RATE // 50
"""20 ms."""

clock = time.perf_counter
M = TypeVar("M", bound=torch.nn.Module)


def noise(seconds: float) -> Floats:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def least(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        start = clock()
        run()
        seconds.append(clock() - start)
    return min(seconds)


def sanm_branch(config: SanmConfig, skip: int, quantizer: Codebook | FiniteScalarQuantizer) -> SanmBranch:
    stack = skip + 1
    shift = np.full(80 * stack, -10, dtype=np.float32)
    return SanmBranch(LfrFrontend(shift, np.full_like(shift, 0.3), stack, skip), SanmEncoder(config), quantizer)


def live(tokenizer: DualTokenizer, samples: Floats) -> dict[str, dict[str, float]]:
    """Pushes of 20 ms through one session: real-time factor and time of one push, by the clock and in CPU time."""
    stream = tokenizer.stream()
    pushes = []
    for start, end in pairwise(range(0, len(samples) + 1, PUSH)):
        began = time.perf_counter(), time.process_time()
        stream.push(samples[start:end])
        pushes.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    stream.flush()
    return {
        name: _pushes(spent, len(samples) / RATE)
        for name, spent in zip(("wall", "cpu"), np.array(pushes).T, strict=True)
    }


def _pushes(spent: NDArray[np.float64], seconds: float) -> dict[str, float]:
    p50, p95 = np.percentile(spent, [50, 95])
    milliseconds = {"push_p50_ms": p50, "push_p95_ms": p95, "push_max_ms": max(spent)}
    return {"rtf": float(spent.sum()) / seconds} | {name: 1000 * float(value) for name, value in milliseconds.items()}


def bench_small(name: str, seconds: float, times: int) -> dict[str, object]:
    samples = noise(seconds)
    with DualTokenizer.load(name) as tokenizer:
        live(tokenizer, samples[: 2 * RATE])
        runs = [live(tokenizer, samples) for _ in range(times)]
        offline = least(lambda: tokenizer.encode(samples), times)
        branches = [tokenizer.linguistic, tokenizer.semantic]
    return {
        "live": {clock: min((run[clock] for run in runs), key=lambda run: run["rtf"]) for clock in ("wall", "cpu")},
        "offline_rtf": offline / seconds,
        "parameters": sum(p.numel() for b in branches if isinstance(b, SanmBranch) for p in b.encoder.parameters()),
    }


# ---------------------------------------------------------------- plain forms of the released networks


class PlainSanm:
    """One chunk at a time: concatenate the caches, attend with the softmax written out, cut the caches."""

    def __init__(self, encoder: SanmEncoder) -> None:
        self.encoder = encoder
        self.config = encoder.config

    @torch.no_grad()
    def __call__(self, x_TI: Tensor) -> Tensor:
        c = self.config
        blocks = [*self.encoder.encoders0, *self.encoder.encoders]
        caches: list[tuple[Tensor, Tensor]] = [(torch.zeros(0, c.dim), torch.zeros(0, c.dim)) for _ in blocks]
        left = torch.zeros(c.left, c.input_dim)
        outputs = []
        for start in range(0, len(x_TI), c.chunk):
            new = x_TI[start : start + c.chunk] * math.sqrt(c.dim)
            new = new + sinusoids(torch.tensor([start]), len(new), c.input_dim)[0]
            window = torch.cat([left, new])
            left = window[-c.left :]
            y = window
            for index, block in enumerate(blocks):
                y, caches[index] = self._block(block, y, caches[index])
            outputs.append(self.encoder.after_norm(y)[-len(new) :])
        return torch.cat(outputs)

    def _block(
        self, block: torch.nn.Module, x: Tensor, cache: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        c = self.config
        attention = block.self_attn
        q, k, v = attention.linear_q_k_v(block.norm1(x)).chunk(3, dim=-1)
        keys, values = torch.cat([cache[0], k]), torch.cat([cache[1], v])

        def heads(t: Tensor) -> Tensor:
            return t.view(len(t), c.heads, -1).transpose(0, 1)

        scores = heads(q) @ heads(keys).transpose(1, 2) * (c.dim // c.heads) ** -0.5
        mixed = (scores.softmax(dim=-1) @ heads(values)).transpose(0, 1).reshape(len(x), c.dim)
        memory = attention.fsmn_block(v.T[None])[0].T + v
        attended = attention.linear_out(mixed) + memory
        keep = c.look_back * c.chunk
        kept = (torch.cat([cache[0], k[: -c.left]])[-keep:], torch.cat([cache[1], v[: -c.left]])[-keep:])
        x = x + attended if block.residual else attended
        return x + block.feed_forward(block.norm2(x)), kept


class PlainS3:
    """One window at a time, attention written out."""

    def __init__(self, encoder: S3Encoder) -> None:
        self.encoder = encoder

    @torch.no_grad()
    def __call__(self, clip: Floats) -> Tensor:
        e = self.encoder
        x = torch.nn.functional.gelu(e.conv1(torch.from_numpy(whisper_log_mel(clip, e.config.n_mels))[None]))
        x = torch.nn.functional.gelu(e.conv2(x))[0].T
        x = x + e.positional_embedding[: len(x)]
        for block in e.blocks:
            q, k, v = block.qkv(block.attn_ln(x)).view(len(x), 3, -1, HEAD_DIM).permute(1, 2, 0, 3)
            scores = (q * HEAD_DIM**-0.25) @ (k * HEAD_DIM**-0.25).transpose(1, 2)
            x = x + block.out((scores.softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
            x = x + block.down(torch.nn.functional.gelu(block.up(block.mlp_ln(x))))
        return x


# ---------------------------------------------------------------- full size


def bench_full(seconds: float, times: int) -> dict[str, object]:
    torch.manual_seed(0)
    samples = noise(seconds)
    linguistic = sanm_branch(SanmConfig(), 6, Codebook(torch.randn(1024, 512)))
    s3 = S3Encoder(S3Config())
    semantic_codebook = Codebook(torch.randn(4096, 1280), normalise=True)
    semantic = WindowBranch(TorchS3(s3, semantic_codebook))
    features = torch.from_numpy(linguistic.frontend(samples))
    plain_sanm, plain_s3 = PlainSanm(linguistic.encoder), PlainS3(s3)
    segmenter = WindowSegmenter(LIVE)
    windows = [segment.clip for segment in segmenter.push(samples) + segmenter.flush()]
    agree = {
        "linguistic": linguistic.quantizer.encode(plain_sanm(features)).numpy() == encode(linguistic, samples),
        "semantic": semantic_codebook.encode(plain_s3(samples)).numpy() == encode(semantic, samples),
    }

    plain = {
        "linguistic": least(lambda: plain_sanm(features), times),
        "semantic_live": least(lambda: [plain_s3(clip) for clip in windows], times),
        "semantic_offline": least(lambda: plain_s3(samples), times),
    }
    result: dict[str, object] = {
        "plain_rtf": {name: value / seconds for name, value in plain.items()},
        "codes_equal_to_plain": {name: equal.mean() for name, equal in agree.items()},
    }
    codes32 = encode(linguistic, samples), encode(semantic, samples)
    for dtype in (torch.float32, torch.bfloat16):
        ours_l = SanmBranch(linguistic.frontend, as_loaded(linguistic.encoder, dtype, rows=9), linguistic.quantizer)
        ours_s = WindowBranch(TorchS3(as_loaded(s3, dtype, rows=84), semantic_codebook))
        times_ours = {
            "linguistic_offline": least(partial(encode, ours_l, samples), times),
            "linguistic_live": least(partial(live_branch, ours_l, samples), times),
            "semantic_offline": least(partial(encode, ours_s, samples), times),
            "semantic_live": least(partial(live_branch, ours_s.with_plan(LIVE), samples), times),
        }
        codes = encode(ours_l, samples), encode(ours_s, samples)
        offline = times_ours["linguistic_offline"] + times_ours["semantic_offline"]
        streaming = times_ours["linguistic_live"] + times_ours["semantic_live"]
        result[str(dtype).removeprefix("torch.")] = {
            "rtf": {name: value / seconds for name, value in times_ours.items()},
            "dual_offline_rtf": offline / seconds,
            "dual_offline_times_faster": (plain["linguistic"] + plain["semantic_offline"]) / offline,
            "dual_live_rtf": streaming / seconds,
            "dual_live_times_faster": (plain["linguistic"] + plain["semantic_live"]) / streaming,
            "codes_equal_to_float32": [float((a == b).mean()) for a, b in zip(codes, codes32, strict=True)],
        }
    return result


def as_loaded(encoder: M, dtype: torch.dtype, *, rows: int) -> M:
    """A copy in the form that loading a released folder gives it."""
    loaded = copy.deepcopy(encoder).to(dtype)
    pack(loaded, rows)
    return loaded


def live_branch(branch: SanmBranch | WindowBranch, samples: Floats) -> None:
    stream = BranchStream(branch)
    for start in range(0, len(samples), PUSH):
        stream.push(samples[start : start + PUSH])
    stream.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also the released architecture at full size")
    parser.add_argument("--tokenizer", default="nano-tokenizer", help="name or folder of the small one")
    parser.add_argument("--seconds", type=float, default=20.0, help="audio per run of the small one")
    parser.add_argument("--full-seconds", type=float, default=4.8, help="audio per run at full size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times", type=int, default=3, help="runs of which the fastest counts")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time in offline figures")
    options = parser.parse_args()
    global clock
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    result: dict[str, object] = {
        "threads": options.threads,
        "small": bench_small(options.tokenizer, options.seconds, options.times),
    }
    if options.full:
        result["full"] = bench_full(options.full_seconds, options.times)
    print(json.dumps(result, indent=2, default=float))


if __name__ == "__main__":
    main()
