"""How fast the language model generates: `python benchmarks/lm.py [--device cuda --preset tts_3b]`.

Everything runs in one process on the same random weights, in rounds: each round measures the machine's read
bandwidth and a few decoding steps of every contender, and the best round of each counts, so that what else
the machine does hits all alike. The contenders are this package in bfloat16 and int8 (int4 on a GPU) and the
plain `transformers` Llama of the same shape in bfloat16 and float32, greedy, at batch 1 and 8, after a prompt
of CONTEXT tokens. Prints one JSON object per line: bandwidth, contenders, ratios against their bars, and what
int8 loses.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stepaudio.lm.cache import Cache
from stepaudio.lm.native import huge_pages
from stepaudio.lm.quantize import Quantization, quantize
from stepaudio.lm.runner import Runner, Span, TorchRunner, make_runner
from stepaudio.lm.step1 import Config, Step1, preset

CONTEXT = 128
STEPS = 16
BATCHES = (1, 8)
READ_BYTES = 512 << 20
BARS = {"bandwidth": 0.75, "transformers": 1.5, "batch": 3.0}


@dataclass
class Contender:
    """`run()` decodes STEPS tokens for each of `batch` sequences; `bytes` are read per step at least."""

    name: str
    batch: int
    run: Callable[[], None]
    bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        """Seconds per step, best round."""
        return min(self.seconds) / STEPS


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", help="size of the model (small has 100 M weights per step)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="also the plain torch runner, to see what C++ brings")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device, config = torch.device(arguments.device), preset(arguments.preset)

    weights = Step1(config).initialise(0).bfloat16().to(device)
    contenders = ours(weights, eager=arguments.eager) + transformers_llama(weights)
    # Huge pages for the yardstick too: it reads a third faster in them.
    read = torch.frombuffer(huge_pages(READ_BYTES), dtype=torch.float32).fill_(1).to(device)
    bandwidths = []
    with torch.inference_mode():
        for contender in contenders:
            contender.run()  # warm: compilation, memory pools
        for _ in range(arguments.rounds):
            bandwidths += [READ_BYTES / timed(work, device) for work in (read.sum, read.max)]
            for contender in contenders:
                contender.seconds.append(timed(contender.run, device))
    report(contenders, max(bandwidths))
    print(json.dumps({"int8_loss": int8_loss(config, device)}))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


# ---------------------------------------------------------------- contenders


def ours(weights: Step1, *, eager: bool) -> list[Contender]:
    kinds: list[Quantization | None] = [None, "int8"]
    if weights.slopes.is_cuda:
        kinds.append("int4")
    contenders = []
    for kind in kinds:
        model = copy(weights)
        if kind:
            quantize(model, kind)
        for batch in BATCHES:
            name = kind or "bfloat16"
            contenders.append(decoding(name, model, batch, make_runner))
            if eager:
                contenders.append(decoding(f"{name} eager", model, batch, TorchRunner))
    return contenders


def copy(model: Step1) -> Step1:
    twin = Step1(model.config).to(dtype=model.model.embed_tokens.weight.dtype, device=model.slopes.device)
    twin.load_state_dict(model.state_dict())
    twin.slopes = model.slopes  # float32, whatever the weights are
    return twin


def decoding(name: str, model: Step1, batch: int, runner_of: Callable[[Step1, Cache], Runner]) -> Contender:
    weight = model.model.embed_tokens.weight
    cache = Cache(model.config, slots=batch, tokens=CONTEXT + STEPS + 1, dtype=weight.dtype, device=weight.device)
    runner = runner_of(model, cache)
    slots = [cache.allocate() for _ in range(batch)]
    for slot in slots:
        runner.step([Span(slot, list(range(5, 5 + CONTEXT)))])

    def run() -> None:
        tokens = [7] * batch
        for _ in range(STEPS):
            logits_BV = runner.step([Span(slot, [token]) for slot, token in zip(slots, tokens, strict=True)])
            tokens = logits_BV.argmax(-1).tolist()
        for slot in slots:
            cache.truncate(slot, CONTEXT)

    return Contender(name, batch, run, bytes_per_step(model, batch))


def bytes_per_step(model: Step1, batch: int) -> int:
    """Every matrix once, and the keys and values of every sequence."""
    read = 0
    for name, tensor in model.state_dict(keep_vars=True).items():
        if "embed_tokens" not in name:
            read += tensor.nbytes
    config = model.config
    per_token = 2 * config.num_hidden_layers * config.num_attention_groups * config.head_dim * 2
    return read + batch * (CONTEXT + STEPS // 2) * per_token


def transformers_llama(weights: Step1) -> list[Contender]:
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
        model = model.to(dtype=dtype, device=weights.slopes.device).eval()
        name = f"transformers {str(dtype).removeprefix('torch.')}"
        contenders += [llama_decoding(name, model, batch, DynamicCache()) for batch in BATCHES]
    return contenders


def llama_decoding(name: str, model: nn.Module, batch: int, cache: Any) -> Contender:
    device = next(model.parameters()).device
    prompt = torch.arange(5, 5 + CONTEXT, device=device).expand(batch, -1)
    with torch.inference_mode():
        model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def run() -> None:
        tokens: Tensor = torch.full((batch, 1), 7, device=device)
        for _ in range(STEPS):
            logits = model(tokens, past_key_values=cache, use_cache=True).logits
            tokens = logits[:, -1:].argmax(-1)
        cache.crop(-STEPS)

    return Contender(name, batch, run)


# ---------------------------------------------------------------- results


def report(contenders: list[Contender], bandwidth: float) -> None:
    print(json.dumps({"read_bandwidth_gb_s": round(bandwidth / 1e9, 2), "threads": torch.get_num_threads()}))
    for each in contenders:
        line = {"name": each.name, "batch": each.batch, "step_ms": round(each.step * 1e3, 3)}
        line |= {"tokens_per_s": round(each.batch / each.step, 1)}
        if each.bytes:
            line |= {"gb_s": round(each.bytes / each.step / 1e9, 2)}
        print(json.dumps(line))
    named = {(each.name, each.batch): each for each in contenders}
    for kind in ("bfloat16", "int8", "int4"):
        if (kind, 1) in named:
            one = named[kind, 1]
            judge(
                f"{kind}: share of the read bandwidth at batch 1",
                one.bytes / one.step / bandwidth,
                "bandwidth",
            )
            judge(f"{kind}: batch 8 over batch 1, tokens/s", 8 * one.step / named[kind, 8].step, "batch")
    for batch in BATCHES:
        ours_step = named["bfloat16", batch].step
        rivals = {each.name: each.step for each in contenders if "transformers" in each.name and each.batch == batch}
        for name, step in rivals.items():
            judge(f"bfloat16 over {name}, batch {batch}", step / ours_step, "transformers")


def judge(what: str, value: float, bar: str) -> None:
    print(json.dumps({"ratio": what, "value": round(value, 2), "bar": BARS[bar], "met": value >= BARS[bar]}))


def int8_loss(config: Config, device: torch.device) -> dict[str, float]:
    """KL divergence (nats per token) of int8 from float32, and how often both predict the same token.

    Random weights; the head is scaled so that predictions are as sharp as a trained model's.
    """
    model = Step1(config).initialise(1).to(device)
    with torch.inference_mode():
        model.lm_head.weight.mul_(10)
        tokens = torch.randint(5, config.vocab_size, (1, 256), generator=torch.Generator().manual_seed(0)).to(device)
        exact = model(tokens).float().log_softmax(-1)
        quantize(model, "int8")
        rounded = model(tokens).float().log_softmax(-1)
        divergence = (exact.exp() * (exact - rounded)).sum(-1).mean()
        agreement = (exact.argmax(-1) == rounded.argmax(-1)).float().mean()
    return {
        "kl_nats": float(divergence),
        "same_token": float(agreement),
        "top_probability": float(exact.exp().amax(-1).mean()),
    }


if __name__ == "__main__":
    main()
