"""How fast the speech decoder is: `stepaudio bench decoder`.

Both flow estimators follow the flow (10 steps with guidance) on one set of random weights, ours and the straightforward
eager form of `decoder_reference`, in rounds: each round runs every contender once, and the fastest round of each
counts, so that what else the machine does hits all alike; with one thread of a CPU, processor time is taken, which it
does not hit at all. Then the 24 kHz decoder streams, without a vocoder, and its
chunks are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from stepaudio.bench.decoder_reference import EagerDiT, EagerUNet, Estimator, solve
from stepaudio.decoder.chunks import AlignedStream, Schedule, read_voice
from stepaudio.decoder.dit import DiTConfig
from stepaudio.decoder.flow import (
    RELEASED_22K,
    RELEASED_24K,
    AlignedFlow,
    FlowConfig,
    FlowModel,
    Reference,
    Sampling,
    build,
)
from stepaudio.decoder.solver import Noise
from stepaudio.decoder.tokens import GROUP_TOKENS
from stepaudio.tokenizer.interleave import interleave

BAR = 1.5
"""How many times as fast as the eager form each estimator is to be."""
SIZES = {"dit": RELEASED_24K, "unet": RELEASED_22K}
_GROUPS_A_SECOND = 25 / 3

Result = TypeVar("Result")


@dataclass
class Contender:
    """Something that makes `seconds` of mel, and how long it took in each round."""

    name: str
    run: Callable[[], Tensor]
    times: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.times)


@dataclass(frozen=True)
class Options:
    """`seconds` of sound in one piece, `stream_seconds` in chunks; sizes may be replaced to measure other models."""

    device: str = "cpu"
    threads: int = 2
    seconds: float = 4.0
    stream_seconds: float = 12.0
    rounds: int = 5
    steps: int = 10
    sizes: dict[str, FlowConfig] = field(default_factory=lambda: dict(SIZES))


def run(options: Options, done: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """All figures. `done` is called after each of `steps_of(options)` parts."""
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {"device": options.device, "threads": options.threads, "seconds": options.seconds}
    with torch.inference_mode():
        for name, config in options.sizes.items():
            figures[name] = _compare(config, options, done)
            if isinstance(config.estimator, DiTConfig):
                figures["stream"] = _stream(config, options)
            done()
    return figures


def steps_of(options: Options) -> int:
    return len(options.sizes) * (options.rounds + 1)


def passed(figures: dict[str, Any]) -> bool:
    """Whether every estimator reached the bar."""
    return all(figures[name]["ratio"] >= BAR for name in SIZES if name in figures)


def _compare(config: FlowConfig, options: Options, done: Callable[[], None]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build(config).eval()
    _disturb(model)
    frames = int(options.seconds * config.rate / config.hop)
    weights = {name: tensor.to(options.device) for name, tensor in model.estimator.state_dict().items()}
    mu_TM, cond_TM, noise_TM = (Noise(seed, config.mels).frames(0, frames) for seed in range(3))
    speaker_M = torch.linspace(-1, 1, config.mels)
    contenders = [
        Contender("eager float32", _eager(config, weights, options, [noise_TM, mu_TM, cond_TM], speaker_M)),
        Contender(
            "eager bfloat16",
            _eager(
                config, {n: w.bfloat16() for n, w in weights.items()}, options, [noise_TM, mu_TM, cond_TM], speaker_M
            ),
        ),
    ]
    ours = model.to(options.device).for_inference()
    fixed_TK = torch.cat([mu_TM, speaker_M.expand(frames, -1), cond_TM], dim=-1)
    contenders.append(Contender("ours", _ours(ours, fixed_TK, noise_TM, options)))
    outputs = {contender.name: contender.run().float().cpu() for contender in contenders}  # also warms up
    for _ in range(options.rounds):
        for contender in contenders:
            contender.times.append(_timed(contender.run, options)[1])
        done()
    exact, best = outputs["eager float32"], {contender.name: contender.best for contender in contenders}
    return {
        "parameters": sum(weight.numel() for weight in weights.values()),
        "frames": frames,
        "times": {name: round(seconds, 4) for name, seconds in best.items()},
        "real_time_factor": round(best["ours"] / options.seconds, 4),
        "ratio": round(best["eager float32"] / best["ours"], 2),
        "ratio_bfloat16": round(best["eager bfloat16"] / best["ours"], 2),
        "errors": {name: round(_error(output, exact), 5) for name, output in outputs.items()},
    }


def _eager(
    config: FlowConfig, weights: dict[str, Tensor], options: Options, inputs: Sequence[Tensor], speaker_M: Tensor
) -> Callable[[], Tensor]:
    estimator, like = config.estimator, next(iter(weights.values()))
    plain: Estimator
    if isinstance(estimator, DiTConfig):
        plain = EagerDiT(weights, estimator.depth, estimator.heads)
    else:
        plain = EagerUNet(weights, len(estimator.channels), estimator.blocks, estimator.mid_blocks, estimator.heads)
    x, mu, cond = (part.T[None].to(like) for part in inputs)
    speaker = speaker_M[None].to(like)
    return lambda: solve(plain, x, mu, speaker, cond, steps=options.steps)[0].T


def _ours(model: FlowModel, fixed_TK: Tensor, noise_TM: Tensor, options: Options) -> Callable[[], Tensor]:
    sampling = Sampling(options.steps)
    fixed_BTK = fixed_TK[None].to(model.device, model.dtype)

    def solution() -> Tensor:
        times = model.times(sampling)
        return model.follow(lambda x_BTI, k: model.estimator(x_BTI, times[k]), noise_TM, fixed_BTK, sampling)[0]

    return solution


def _stream(config: FlowConfig, options: Options) -> dict[str, Any]:
    """Seconds until the first frames once their 30 tokens are there, and per second of sound by chunk."""
    torch.manual_seed(0)
    model = build(config).eval().to(options.device).for_inference()
    assert isinstance(model, AlignedFlow)
    random = np.random.default_rng(0)
    groups = int(options.stream_seconds * _GROUPS_A_SECOND)
    tokens = interleave(random.integers(0, 1024, 2 * groups), random.integers(0, 4096, 3 * groups))
    heard = tokens[: 25 * GROUP_TOKENS]  # 3 s
    mel = torch.from_numpy(random.standard_normal((config.mels, 150), dtype=np.float32))
    reference = Reference(torch.ones(config.speaker), heard, mel)
    voice, reading = _timed(lambda: read_voice(model, reference, Sampling(options.steps)), options)
    stream = AlignedStream(model, voice, Schedule())
    rounds = []
    for _ in range(max(1, options.rounds // 2)):
        chunks = []
        for group in np.split(tokens, groups):
            mel_MT, seconds = _timed(partial(stream.push, group), options)
            if mel_MT.shape[1]:
                chunks.append((mel_MT.shape[1] * config.hop / config.rate, seconds))
        stream.flush()
        rounds.append(chunks)
    best = [(runs[0][0], min(seconds for _, seconds in runs)) for runs in zip(*rounds, strict=True)]
    return {
        "reference_seconds": 3.0,
        "reading_the_reference": round(reading, 4),
        "first_chunk": round(best[0][1], 4),
        "real_time_factors": [round(seconds / sound, 4) for sound, seconds in best],
    }


def _timed(work: Callable[[], Result], options: Options) -> tuple[Result, float]:
    """What `work` gives, and the seconds it took."""
    # One thread's processor time is its time on an idle machine, whatever else runs meanwhile.
    clock = time.process_time if options.threads == 1 and options.device == "cpu" else time.perf_counter
    _wait(options.device)
    start = clock()
    result = work()
    _wait(options.device)
    return result, clock() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _disturb(model: FlowModel) -> None:
    """Biases that are not zero and norms that are not one, so that outputs tell whether every weight was used."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)


def _error(output: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, relative to the deviation of the exact."""
    return float((output - exact).square().mean().sqrt() / exact.std())
