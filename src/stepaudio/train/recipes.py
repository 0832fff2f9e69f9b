"""Recipes: Python functions that return the whole configuration of a language model's training.

| recipe | trains |
|---|---|
| `cpu_smoke` | a toy of the nano layout in a minute or two, to see that everything works |
| `cpu_nano` | the nano language model, on two CPU cores |
| `h100_30min` | a model of 100 M parameters in the paper's layout, on one H100 |
| `paper_3b`, `paper_130b` | the paper's staged pre-training (arXiv 2502.11946 section 4.2), without its images |

A stage is a run of its own that begins with the model the one before has left. Its shares are shares of trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from stepaudio.errors import NotFoundError
from stepaudio.lm.step1 import Config, preset
from stepaudio.train.lm import Rates
from stepaudio.train.loop import Schedule

CONSTANT = Schedule(warmup=2000, cooldown=0.0)


@dataclass(frozen=True)
class Stage:
    """One run: so many tokens of documents in these shares."""

    name: str
    shares: Mapping[str, float]
    tokens: float
    rates: Rates = field(default_factory=Rates)
    schedule: Schedule = CONSTANT


@dataclass(frozen=True)
class LmRecipe:
    """A language model's training, from weights or from nothing."""

    name: str
    model: Config
    """Its vocabulary grows or shrinks to that of the text tokenizer or the phonemes, and the audio codes."""
    stages: tuple[Stage, ...]
    layout: Literal["nano", "paper"]
    row: int
    """Tokens of a micro-batch."""
    text: int = 0
    """Pieces of text in the paper's layout, where they are learned from the manifest's."""
    rows: int = 1
    """Micro-batches of a step, over all processes."""
    ema: float = 0.0
    recompute: bool = False
    """Compute layers again for the backward pass instead of keeping what is inside them: a third more arithmetic."""

    def steps(self, stage: Stage) -> int:
        return max(1, round(stage.tokens / (self.row * self.rows)))

    def scaled(self, tokens: float) -> LmRecipe:
        """The recipe with so many tokens in all, each stage its part of them."""
        whole = sum(stage.tokens for stage in self.stages)
        return replace(self, stages=tuple(replace(s, tokens=s.tokens * tokens / whole) for s in self.stages))


NEAR = (8.0, 3.0, 1.0, 0.25)
"""Slopes of four heads, from the token before to the whole sentence. Those of the formula (0.25 to 0.004) hardly tell
near from far: after 40 steps a token of speech cost 6.8 nats with them, 5.5 with codes that begin alike, 5.0 with both.
"""
NANO_SHARES = {"tts": 0.55, "asr": 0.45}
"""Of trained tokens; hearing needs more than speaking: a sentence has two thirds as many that are trained."""


def cpu_smoke(tokens: float = 200e3) -> LmRecipe:
    """Less than two minutes on one core."""
    return LmRecipe(
        "cpu_smoke",
        Config(hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4,
               num_attention_groups=2, max_seq_len=2048, alibi_slopes=NEAR),
        (Stage("speech", NANO_SHARES, tokens, Rates(4e-3, 2.0), Schedule(20, 0.5)),),
        layout="nano", row=1024,
    )  # fmt: skip


def cpu_nano(tokens: float = 8.2e6) -> LmRecipe:
    """The nano language model: 4,000 steps, each 0.65 s of a core that knows bfloat16."""
    return LmRecipe(
        "cpu_nano",
        Config(hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
               num_attention_groups=2, max_seq_len=2048, alibi_slopes=NEAR),
        (Stage("speech", NANO_SHARES, tokens, Rates(2.5e-3, 2.0), Schedule(50, 0.6, 0.02)),),
        layout="nano", row=2048, ema=0.998,
    )  # fmt: skip


def h100_30min(tokens: float = 300e6) -> LmRecipe:
    """The paper's three stages in one evening's budget, from nothing: 12 minutes at 0.4 M tokens a second, which is
    what public speed runs of this size reach; not measured here."""
    rates = Rates(1e-3, 1.0)
    parts = ((0.4, FIRST), (0.2, SECOND), (0.4, THIRD))
    return LmRecipe(
        "h100_30min",
        preset("small"),
        tuple(
            Stage(name, shares, part * tokens, rates, Schedule(200, 0.5 if last else 0.0, 0.1))
            for (part, shares), name, last in zip(parts, NAMES, (False, False, True), strict=True)
        ),
        layout="paper", row=32768, text=4096, rows=8,
    )  # fmt: skip


NAMES = ("audio", "interleaved", "tasks")
FIRST = {"continuation": 2.0, "text": 1.0}
"""Audio : text = 2 : 1; all audio is continued."""
SECOND = {"continuation": 1.0, "interleaved": 1.0, "text": 1.0}
"""Audio : text = 2 : 1; continuation : interleaved = 1 : 1."""
THIRD = {"continuation": 1.0, "interleaved": 1.0, "asr": 1.0, "tts": 1.0, "text": 3.0}
"""Audio : text = 4 : 3; continuation : interleaved : ASR : TTS = 1 : 1 : 1 : 1."""


def _paper(name: str, model: Config, row: int, rows: int) -> LmRecipe:
    """The stages of section 4.2, less the quarter, quarter and three tenths of their tokens that are images: 5120
    audio tokens are new in the first two, whose embedding and head learn five times as fast."""
    new = Rates(2e-5, vocabulary=5.0, weight_decay=0.1, betas=(0.9, 0.95))
    equal = Rates(2e-5, vocabulary=1.0, weight_decay=0.1, betas=(0.9, 0.95))
    cosine = Schedule(warmup=0, cooldown=1.0, floor=0.25, shape="cosine")  # 2e-5 to 5e-6
    stages = (
        Stage(NAMES[0], FIRST, 1.2e12 * 3 / 4, new, CONSTANT),
        Stage(NAMES[1], SECOND, 0.8e12 * 3 / 4, new, CONSTANT),
        Stage(NAMES[2], THIRD, 1.3e12 * 7 / 10, equal, cosine),
    )
    return LmRecipe(name, model, stages, layout="paper", row=row, text=65536, rows=rows, recompute=True)


def paper_3b() -> LmRecipe:
    """The speech model's size. Batch size and sequence length are not published; these are ours."""
    return _paper("paper_3b", preset("tts_3b"), row=8192, rows=512)


def paper_130b() -> LmRecipe:
    """The chat model's size."""
    return _paper("paper_130b", preset("chat_130b"), row=8192, rows=2048)


RECIPES: dict[str, Callable[[], LmRecipe]] = {
    recipe.__name__: recipe for recipe in (cpu_smoke, cpu_nano, h100_30min, paper_3b, paper_130b)
}


def recipe(name: str) -> LmRecipe:
    """The recipe of that name. Raises NotFoundError."""
    if name not in RECIPES:
        raise NotFoundError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}", param="recipe")
    return RECIPES[name]()
