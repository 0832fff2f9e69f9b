"""What a recipe costs before it is run: parameters, tokens, arithmetic, memory, hours."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from stepaudio.lm.nano import NanoVocabulary
from stepaudio.lm.step1 import Config, Step1
from stepaudio.tokenizer.interleave import AUDIO_TOKENS
from stepaudio.train.hardware import HARDWARE, Hardware
from stepaudio.train.lm import Step1Scorer
from stepaudio.train.recipes import LmRecipe

DOCUMENT = {"nano": 170, "paper": 2048}
"""Tokens of a document that attention is reckoned with."""
UTILISATION = 0.4
"""Part of the published speed that training of this kind reaches; small models reach less."""
_STATE = 16
"""Bytes per parameter: weight, gradient and AdamW's two moments, in float32."""


@dataclass(frozen=True)
class StagePlan:
    """`flops` are all operations of the stage."""

    name: str
    steps: int
    tokens: float
    flops: float


@dataclass(frozen=True)
class Plan:
    """`memory` is that of parameters and optimiser, in bytes over all devices; activations of a step come on top."""

    recipe: str
    parameters: int
    memory: float
    activations: float
    stages: tuple[StagePlan, ...]

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    def devices(self, hardware: Hardware) -> int:
        """As few devices as hold the training."""
        return max(1, math.ceil(self.memory / (hardware.memory - self.activations * 1.2)))

    def hours(self, hardware: Hardware, devices: int) -> float:
        return self.flops / (hardware.flops * UTILISATION * devices) / 3600


def model_config(recipe: LmRecipe, *, phonemes: int = 48) -> Config:
    """The recipe's model with a vocabulary of the size that it will have."""
    if recipe.layout == "nano":
        return replace(recipe.model, vocab_size=NanoVocabulary("?" * phonemes).size)
    return replace(recipe.model, vocab_size=-(-(recipe.text + AUDIO_TOKENS) // 64) * 64)


def plan(recipe: LmRecipe) -> Plan:
    """What it takes to follow a recipe."""
    config = model_config(recipe)
    with torch.device("meta"):
        scorer = Step1Scorer(Step1(config))
    parameters = sum(parameter.numel() for parameter in scorer.parameters())
    length = DOCUMENT[recipe.layout]
    # Few prompts and texts carry no loss: reckoned as if every token were trained.
    per_token = scorer.flops([length], length) / length * (4 / 3 if recipe.recompute else 1)
    stages = tuple(
        StagePlan(stage.name, recipe.steps(stage), stage.tokens, stage.tokens * per_token) for stage in recipe.stages
    )
    # What a layer keeps for the backward pass in bfloat16 (norms, projections, attention, MLP), and the logits.
    inside = 2 * recipe.row * (8 * config.hidden_size + 4 * config.intermediate_size)
    between = 2 * recipe.row * config.hidden_size
    layers = config.num_hidden_layers
    kept = layers * between + inside if recipe.recompute else layers * inside
    logits = 8 * recipe.row * config.vocab_size
    memory = parameters * (_STATE + (4 if recipe.ema else 0))
    return Plan(recipe.name, parameters, float(memory), float(kept + logits), stages)


def table(planned: Plan) -> str:
    """The plan for people."""
    lines = [
        f"{planned.recipe}: {_short(planned.parameters)} parameters, {_short(planned.flops)} operations, "
        f"{_short(planned.memory)}B of parameters and optimiser, {_short(planned.activations)}B of activations",
        "",
        *(
            f"  {stage.name:<12} {_short(stage.tokens):>8} tokens  {stage.steps:>9,} steps  "
            f"{_short(stage.flops):>8} operations"
            for stage in planned.stages
        ),
        "",
    ]
    for name, hardware in HARDWARE.items():
        if hardware.memory <= planned.activations * 1.2:
            lines.append(f"  {name:<12} too small for what one row keeps")
            continue
        devices = planned.devices(hardware)
        lines.append(
            f"  {name:<12} {devices:>4} or more; with {devices} {_duration(planned.hours(hardware, devices))} at "
            f"{UTILISATION:.0%} of the published speed"
        )
    return "\n".join(lines)


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.1f} seconds"


def _short(value: float) -> str:
    """Three digits and a unit: 1.2e12 is 1.2 T."""
    for size, unit in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "
