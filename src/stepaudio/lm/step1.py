"""The Step-1 decoder-only language model (Step-Audio, arXiv 2502.11946; StepFun's `Step1ForCausalLM`).

Pre-norm blocks of grouped-query attention with sqrt-ALiBi and a SwiGLU MLP, RMSNorm, no biases, an untied
head. Parameter names are the tensor names of the released checkpoints, so that a `state_dict` is a
checkpoint.

Shapes: B batch, T tokens, C width, H query heads, G key-value groups, D head width, F feed-forward width,
V vocabulary rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepaudio.errors import InputError, NotFoundError
from stepaudio.lm.attention import attend

# ---------------------------------------------------------------- configuration


@dataclass(frozen=True)
class Config:
    """Everything that shapes the model; the field names are those of a released `config.json`.

    The defaults are what the released configuration class assumes for a field that is missing. `head_dim` of
    0 means `hidden_size / num_attention_heads`.
    """

    vocab_size: int = 65536
    hidden_size: int = 5120
    intermediate_size: int = 13312
    num_hidden_layers: int = 48
    num_attention_heads: int = 40
    num_attention_groups: int = 8
    head_dim: int = 0
    max_seq_len: int = 4096
    rms_norm_eps: float = 1e-5
    bos_token_id: int = 1
    pad_token_id: int = 0
    eos_token_id: int = 3
    max_pos_interp_ratio: float = 1.0
    alibi_slopes: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "head_dim",
            "max_seq_len",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"config: {name} must be at least 1, not {getattr(self, name)}", param=name)
        if self.num_attention_groups < 1 or self.num_attention_heads % self.num_attention_groups:
            raise InputError(
                f"config: {self.num_attention_heads} attention heads do not divide into "
                f"{self.num_attention_groups} groups",
                param="num_attention_groups",
            )
        if self.alibi_slopes is not None and len(self.alibi_slopes) != self.num_attention_heads:
            raise InputError(
                f"config: {len(self.alibi_slopes)} alibi_slopes for {self.num_attention_heads} heads",
                param="alibi_slopes",
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Read a `config.json`. Keys that do not shape the model are ignored; some have a second name in the
        wild.

        Raises InputError when the file describes another architecture or a value cannot be used.
        """
        kind = values.get("model_type", "step1")
        if kind != "step1":
            raise InputError(
                f"config: model_type is {kind!r}; only 'step1' checkpoints can be loaded", param="model_type"
            )
        aliases = {"num_key_value_heads": "num_attention_groups", "max_position_embeddings": "max_seq_len"}
        known = {field.name for field in fields(cls)}
        found = {aliases[key]: value for key, value in values.items() if key in aliases}
        found |= {key: value for key, value in values.items() if key in known}
        if found.get("alibi_slopes") is not None:
            found["alibi_slopes"] = tuple(float(slope) for slope in found["alibi_slopes"])
        try:
            return cls(**{key: value for key, value in found.items() if value is not None})
        except TypeError as error:
            raise InputError(f"config: a value has the wrong type: {error}") from error

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read `path`, a `config.json`. Raises NotFoundError or InputError."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} does not exist; a checkpoint folder needs a config.json") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} must hold a JSON object")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that a released loader reads; says outright that the head is not tied."""
        fixed = {"architectures": ["Step1ForCausalLM"], "model_type": "step1", "tie_word_embeddings": False}
        values = asdict(self)
        if self.alibi_slopes is None:
            del values["alibi_slopes"]
        return fixed | values


def _shape(vocab: int, width: int, ff: int, layers: int, heads: int, groups: int, length: int) -> Config:
    return Config(vocab, width, ff, layers, heads, groups, max_seq_len=length)


# Sizes of one family: heads 64 wide and feed-forward about 8/3 of the width below the released ones. Up to
# `small` the vocabulary is 4096 pieces of text and the 5120 audio tokens; a bigger one would be most of the
# model.
PRESETS: dict[str, Config] = {
    "nano": _shape(9216, 256, 704, 6, 4, 2, 4096),
    "micro": _shape(9216, 384, 1024, 8, 6, 2, 4096),
    "mini": _shape(9216, 512, 1408, 10, 8, 2, 8192),
    "small": _shape(9216, 768, 2048, 16, 12, 4, 8192),
    "base": _shape(74752, 1024, 2816, 20, 16, 4, 8192),
    "large": _shape(74752, 2048, 5632, 24, 32, 4, 8192),
    "tts_3b": _shape(74752, 3072, 8192, 32, 48, 4, 32768),
    "chat_130b": _shape(74752, 12288, 31232, 88, 96, 8, 32768),
}


def preset(name: str, **changes: Any) -> Config:
    """The configuration of that name, with some fields replaced. Raises NotFoundError."""
    if name not in PRESETS:
        raise NotFoundError(f"no model size {name!r}; there are {', '.join(PRESETS)}", param="preset")
    return replace(PRESETS[name], **changes)


def alibi_slopes(config: Config) -> Tensor:
    """Slopes [H] of sqrt-ALiBi, float32.

    With n the largest power of two up to H, head h of the first n has 2^(-8h/n) and extra head k has
    2^(-4(2k-1)/n), counted from 1. `max_pos_interp_ratio` r stretches the context: a slope is divided by
    sqrt(r^W), where W goes from 0 for the steepest head to 1 for the flattest. `alibi_slopes` overrides all.
    """
    if config.alibi_slopes is not None:
        return torch.tensor(config.alibi_slopes, dtype=torch.float32)
    heads = config.num_attention_heads
    n = 2 ** math.floor(math.log2(heads))
    exponents = [-8 * h / n for h in range(1, n + 1)] + [-4 * (2 * k - 1) / n for k in range(1, heads - n + 1)]
    steepest, flattest = max(exponents), min(exponents)
    if config.max_pos_interp_ratio != 1 and steepest > flattest:
        stretch = math.log2(config.max_pos_interp_ratio) / 2
        exponents = [e - stretch * (steepest - e) / (steepest - flattest) for e in exponents]
    return torch.tensor([2.0**e for e in exponents], dtype=torch.float32)


# ---------------------------------------------------------------- network

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BTHD, k_BTGD, v_BTGD) -> mixed values [B, T, H, D]: attention, with whatever cache lies behind
it."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; the mean of squares is taken in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class Attention(nn.Module):
    """The four projections of grouped-query attention; query head h uses group floor(h * G / H)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_attention_groups * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor, attention: Attend) -> Tensor:
        q_BTHD, k_BTGD, v_BTGD = (
            project(x_BTC).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out_BTC: Tensor = self.o_proj(attention(self.layer, q_BTHD, k_BTGD, v_BTGD).flatten(-2))
        return out_BTC


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTC: Tensor, attention: Attend) -> Tensor:
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), attention)
        out: Tensor = x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))
        return out


class Decoder(nn.Module):
    """Token ids to hidden states: everything but the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_BT: Tensor, attention: Attend) -> Tensor:
        x_BTC = self.embed_tokens(tokens_BT)
        for block in self.layers:
            x_BTC = block(x_BTC, attention)
        out: Tensor = self.norm(x_BTC)
        return out


class Step1(nn.Module):
    """The language model. `forward` is for training and scoring; `stepaudio.lm.engine` generates."""

    slopes: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Computed on the CPU even when the model is built on the meta device: it is a constant, not a weight.
        with torch.device("cpu"):
            slopes = alibi_slopes(config)
        self.register_buffer("slopes", slopes, persistent=False)

    def hidden(self, tokens_BT: Tensor, attention: Attend | None = None) -> Tensor:
        """Final hidden states [B, T, C] of tokens [B, T]; without `attention`, whole causal sequences."""
        return self.model(tokens_BT, attention or self._attend)  # type: ignore[no-any-return]

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens [B, T], each row a sequence from its beginning."""
        return self.lm_head(self.hidden(tokens_BT))  # type: ignore[no-any-return]

    def _attend(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        return attend(q_BTHD, k_BTGD, v_BTGD, self.slopes)

    def initialise(self, seed: int) -> Step1:
        """Random weights for a model that is not loaded: normal(0, 0.02), the two projections that write to
        the residual stream scaled down by sqrt(2 * layers), norms 1. The same seed gives the same weights."""
        generator = torch.Generator().manual_seed(seed)
        narrow = 0.02 / math.sqrt(2 * self.config.num_hidden_layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 1:
                    parameter.fill_(1)
                    continue
                std = narrow if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return self


def parameter_count(config: Config) -> int:
    """Parameters of a model of this shape, without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Step1(config).parameters())
