"""What a language model begins with: random weights that know which codes are alike, or another model's, grown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stepaudio.errors import InputError
from stepaudio.lm.step1 import Config, Step1
from stepaudio.tokenizer import checkpoint
from stepaudio.tokenizer.dual import find
from stepaudio.tokenizer.linguistic import SanmBranch

ROWS = 64
"""An embedding has a multiple of this many rows."""
_NOISE = 0.3
"""Of the vectors' own size: what sets apart codes that are very much alike."""


def fresh(config: Config, vocabulary: int, codes: Mapping[str, range], tokenizer: str, seed: int) -> Step1:
    """A random model. Embedding and head of a code begin as a random projection of the vector that it stands for, if
    the tokenizer is one of ours: so what is learned of one code is learned of those like it from the first step on
    (the loss of semantic codes after 20 steps of the nano recipe: 7.1 nats instead of 8.3)."""
    model = Step1(replace(config, vocab_size=_rounded(vocabulary))).initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    for stream, vectors_KD in code_vectors(tokenizer).items():
        ids = codes[stream]
        if len(vectors_KD) != len(ids):
            raise InputError(f"{tokenizer} has {len(vectors_KD)} {stream} codes; a language model knows {len(ids)}")
        centred_KD = vectors_KD - vectors_KD.mean(dim=0)
        like_KC = centred_KD @ torch.randn(centred_KD.shape[1], config.hidden_size, generator=generator)
        like_KC = like_KC / like_KC.std()
        for weight_VC in (model.model.embed_tokens.weight, model.lm_head.weight):
            noise_KC = torch.randn(like_KC.shape, generator=generator)
            with torch.no_grad():
                # Of variance 0.02 squared, as all weights begin.
                weight_VC[ids.start : ids.stop] = 0.02 * ((1 - _NOISE**2) ** 0.5 * like_KC + _NOISE * noise_KC)
    return model


@torch.no_grad()
def code_vectors(tokenizer: str) -> dict[str, Tensor]:
    """What each linguistic and semantic code of a tokenizer of ours stands for [K, D]; empty for any other."""
    files = {"linguistic": checkpoint.LINGUISTIC, "semantic": checkpoint.SEMANTIC}
    folder: Path = find(tokenizer)
    if not all((folder / file).is_file() for file in files.values()):
        return {}
    branches: dict[str, SanmBranch] = {name: checkpoint.load_branch(folder / file) for name, file in files.items()}
    return {name: one.quantizer.decode(torch.arange(one.quantizer.codes)).float() for name, one in branches.items()}


def grown(model: Step1, vocabulary: int, seed: int) -> Step1:
    """A model to train that knows `vocabulary` ids or more; rows that are new begin near the mean of the others."""
    size = max(model.config.vocab_size, _rounded(vocabulary))
    larger = Step1(replace(model.config, vocab_size=size)).initialise(seed)
    tensors = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = _with_rows(tensors[name], size, generator)
    larger.load_state_dict(tensors)
    return larger


def _with_rows(weight_VC: Tensor, size: int, generator: torch.Generator) -> Tensor:
    more = size - len(weight_VC)
    noise = torch.randn(more, weight_VC.shape[1], generator=generator) * weight_VC.std(dim=0) * 0.1
    return torch.cat([weight_VC, weight_VC.mean(dim=0) + noise])


def _rounded(vocabulary: int) -> int:
    return -(-vocabulary // ROWS) * ROWS
