"""How fast the language model generates: `stepaudio bench lm`.

Everything runs in one process on the same random weights, in rounds: each round measures the machine's read bandwidth,
over a buffer far larger than its caches, and a few decoding steps of every contender. Ratios are taken within a round,
where what else the machine does hits all alike, and the median round counts. The contenders are this package in
bfloat16 and int8 (int4 on a GPU) and the plain `transformers` Llama of the same shape in bfloat16 and float32, greedy,
at batch 1 and 8, after a prompt.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from stepaudio.lm.cache import Cache
from stepaudio.lm.native import huge_pages
from stepaudio.lm.quantize import Quantization, quantize
from stepaudio.lm.runner import Span, make_runner
from stepaudio.lm.step1 import Config, Step1, preset

BATCHES = (1, 8)
BARS = {"bandwidth": 0.75, "transformers": 1.5, "batch": 3.0}
"""At least: the share of the read bandwidth at batch 1, tokens/s over `transformers`', and batch 8's over batch 1's."""


@dataclass(frozen=True)
class Options:
    """`steps` tokens are decoded per sequence and round; reading `read_bytes` measures the bandwidth."""

    device: str = "cpu"
    preset: str = "small"
    threads: int = 2
    rounds: int = 10
    context: int = 128
    steps: int = 16
    read_bytes: int = 512 << 20

    @property
    def kinds(self) -> list[Quantization | None]:
        return [None, "int8", "int4"] if torch.device(self.device).type == "cuda" else [None, "int8"]


@dataclass
class Contender:
    """`run()` decodes some tokens for each of `batch` sequences; `bytes` are read per token at least. `seconds` has
    the time that each round took."""

    name: str
    batch: int
    run: Callable[[], None]
    bytes: int = 0
    seconds: list[float] = field(default_factory=list)


def run(options: Options, done: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """All figures. `done` is called after each of `steps_of(options)` parts."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    weights = _random(preset(options.preset), device)
    contenders = _ours(weights, options) + _transformers_llama(weights, options)
    # Huge pages for the yardstick too: it reads a third faster in them.
    read = torch.frombuffer(huge_pages(options.read_bytes), dtype=torch.float32).fill_(1).to(device)
    bandwidths: list[float] = []
    with torch.inference_mode():
        for contender in contenders:
            contender.run()  # warm: compilation, memory pools
        done()
        for _ in range(options.rounds):
            fastest = min(_timed(work, device) for work in (read.sum, read.max))
            bandwidths.append(options.read_bytes / fastest)
            for contender in contenders:
                contender.seconds.append(_timed(contender.run, device))
            done()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "preset": options.preset,
        "threads": options.threads,
        "context": options.context,
        "read_bandwidth_gb_s": round(median(bandwidths) / 1e9, 2),
        "contenders": [_speed(contender, options) for contender in contenders],
        "ratios": _ratios(contenders, bandwidths, options),
        "int8_loss": _int8_loss(weights.config, device),
    }


def steps_of(options: Options) -> int:
    return options.rounds + 1


def passed(figures: dict[str, Any]) -> bool:
    """Whether every ratio reached its bar."""
    return all(ratio["value"] >= ratio["bar"] for ratio in figures["ratios"])


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _random(config: Config, device: torch.device) -> Step1:
    return _bfloat16(Step1(config).initialise(0)).to(device)


def _bfloat16(model: Step1) -> Step1:
    slopes = model.slopes
    model.bfloat16()
    model.slopes = slopes  # float32, whatever the weights are
    return model


# ---------------------------------------------------------------- contenders


def _ours(weights: Step1, options: Options) -> list[Contender]:
    contenders = []
    for kind in options.kinds:
        model = deepcopy(weights)
        if kind:
            quantize(model, kind)
        contenders += [_decoding(kind or "bfloat16", model, batch, options) for batch in BATCHES]
    return contenders


def _decoding(name: str, model: Step1, batch: int, options: Options) -> Contender:
    weight = model.model.embed_tokens.weight
    length = options.context + options.steps + 1
    cache = Cache(model.config, slots=batch, tokens=length, dtype=weight.dtype, device=weight.device)
    runner = make_runner(model, cache)
    slots = [cache.allocate() for _ in range(batch)]
    for slot in slots:
        runner.step([Span(slot, list(range(5, 5 + options.context)))])

    def run() -> None:
        tokens = [7] * batch
        for _ in range(options.steps):
            logits_BV = runner.step([Span(slot, [token]) for slot, token in zip(slots, tokens, strict=True)])
            tokens = logits_BV.argmax(-1).tolist()
        for slot in slots:
            cache.truncate(slot, options.context)

    return Contender(name, batch, run, _bytes_per_step(model, batch, options))


def _bytes_per_step(model: Step1, batch: int, options: Options) -> int:
    """Every matrix once, and the keys and values of every sequence."""
    tensors = model.state_dict(keep_vars=True).items()
    weights: int = sum(tensor.nbytes for name, tensor in tensors if "embed_tokens" not in name)
    config = model.config
    per_token = 2 * config.num_hidden_layers * config.num_attention_groups * config.head_dim * 2
    return weights + batch * (options.context + options.steps // 2) * per_token


def _transformers_llama(weights: Step1, options: Options) -> list[Contender]:
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    config = weights.config
    llama_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_groups,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_seq_len,
        tie_word_embeddings=False,
    )
    contenders = []
    for dtype in (torch.bfloat16, torch.float32):
        model = LlamaForCausalLM(llama_config)
        model.load_state_dict(weights.state_dict())
        nn.Module.to(model, dtype=dtype, device=weights.slopes.device)
        model.train(False)
        name = f"transformers {str(dtype).removeprefix('torch.')}"
        contenders += [_llama_decoding(name, model, batch, DynamicCache(), options) for batch in BATCHES]
    return contenders


def _llama_decoding(name: str, model: nn.Module, batch: int, cache: Any, options: Options) -> Contender:
    device = next(model.parameters()).device
    prompt = torch.arange(5, 5 + options.context, device=device).expand(batch, -1)
    with torch.inference_mode():
        model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def run() -> None:
        tokens: Tensor = torch.full((batch, 1), 7, device=device)
        for _ in range(options.steps):
            logits = model(tokens, past_key_values=cache, use_cache=True).logits
            tokens = logits[:, -1:].argmax(-1)
        cache.crop(-options.steps)

    return Contender(name, batch, run)


# ---------------------------------------------------------------- results


def _speed(contender: Contender, options: Options) -> dict[str, Any]:
    step = median(contender.seconds) / options.steps
    speed = {"name": contender.name, "batch": contender.batch, "step_ms": round(step * 1e3, 3)}
    speed["tokens_per_s"] = round(contender.batch / step, 1)
    if contender.bytes:
        speed["gb_s"] = round(contender.bytes / step / 1e9, 2)
    return speed


def _ratios(contenders: list[Contender], bandwidths: list[float], options: Options) -> list[dict[str, Any]]:
    seconds = {(each.name, each.batch): each.seconds for each in contenders}
    read = {(each.name, each.batch): each.bytes * options.steps for each in contenders}
    one, many = BATCHES
    ratios = []
    for kind in options.kinds:
        name = kind or "bfloat16"
        alone, together = seconds[name, one], seconds[name, many]
        share = median(read[name, one] / s / b for s, b in zip(alone, bandwidths, strict=True))
        ratios.append(_ratio(f"{name}: share of the read bandwidth at batch {one}", share, "bandwidth"))
        gain = many / one * _speedup(alone, together)
        ratios.append(_ratio(f"{name}: tokens/s of batch {many} over batch {one}", gain, "batch"))
    for (rival, batch), theirs in seconds.items():
        if rival.startswith("transformers"):
            gain = _speedup(theirs, seconds["bfloat16", batch])
            ratios.append(_ratio(f"bfloat16: tokens/s over {rival}, batch {batch}", gain, "transformers"))
    return ratios


def _speedup(slow: list[float], fast: list[float]) -> float:
    return median(s / f for s, f in zip(slow, fast, strict=True))


def _ratio(what: str, value: float, bar: str) -> dict[str, Any]:
    return {"what": what, "value": round(value, 2), "bar": BARS[bar]}


def _int8_loss(config: Config, device: torch.device) -> dict[str, float]:
    """KL divergence (nats per token) from float32 of int8 as it generates, and how often both predict the same token.

    Random weights; the head is scaled so that predictions are as sharp as a trained model's.
    """
    model = Step1(config).initialise(1).to(device)
    tokens = torch.randint(5, config.vocab_size, (256,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model.lm_head.weight.mul_(10)
        exact = model(tokens[None].to(device))[0].float().log_softmax(-1)
        rounded_model = _bfloat16(model)
        quantize(rounded_model, "int8")
        cache = Cache(config, slots=1, tokens=len(tokens), dtype=torch.bfloat16, device=device)
        runner, slot = make_runner(rounded_model, cache), cache.allocate()
        logits = [runner.step([Span(slot, [token])]) for token in tokens.tolist()]
        rounded = torch.cat(logits).to(device).float().log_softmax(-1)
        divergence = (exact.exp() * (exact - rounded)).sum(-1).mean()
        agreement = (exact.argmax(-1) == rounded.argmax(-1)).float().mean()
    return {
        "kl_nats": float(divergence),
        "same_token": float(agreement),
        "top_probability": float(exact.exp().amax(-1).mean()),
    }
