"""Our own tokenizer weights: `tokenizer.json` with the sizes and `tokenizer.safetensors` with the tensors.

Both branches are low-frame-rate features, a SANM encoder and a quantiser. Tensors are named
`linguistic.encoder.*`, `linguistic.shift`, `linguistic.scale`, `linguistic.quantizer.*`, and `semantic.*`
alike.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepaudio.errors import InputError, MissingError
from stepaudio.tokenizer.lfr import LfrFrontend
from stepaudio.tokenizer.linguistic import SanmBranch
from stepaudio.tokenizer.quantize import Codebook, FiniteScalarQuantizer, Quantizer
from stepaudio.tokenizer.sanm import SanmConfig, SanmEncoder

CONFIG = "tokenizer.json"
WEIGHTS = "tokenizer.safetensors"
FORMAT = 1
BRANCHES = ("linguistic", "semantic")


def save(
    folder: Path, linguistic: SanmBranch, semantic: SanmBranch, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write both branches to a folder; `dtype` is how encoder weights are stored."""
    from safetensors.torch import save_file

    config: dict[str, Any] = {"format": FORMAT}
    tensors: dict[str, Tensor] = {}
    for name, branch in zip(BRANCHES, (linguistic, semantic), strict=True):
        config[name] = branch_config(branch)
        for key, tensor in branch_tensors(branch).items():
            stored = tensor.to(dtype) if key.startswith("encoder.") else tensor
            tensors[f"{name}.{key}"] = stored.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[SanmBranch, SanmBranch]:
    """Both branches of a folder. Raises MissingError or InputError when it cannot be used."""
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise MissingError(f"{folder / WEIGHTS} is missing")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder / CONFIG} has format {config.get('format')!r}; this version reads {FORMAT}"
        )
    tensors = load_file(folder / WEIGHTS)
    loaded = []
    for name in BRANCHES:
        own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        try:
            branch = build_branch(config[name], own)
        except (KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{folder}: {CONFIG} and {WEIGHTS} do not fit together: {error}") from error
        branch.encoder.to(device, dtype)
        branch.quantizer.to(device)
        loaded.append(branch)
    return loaded[0], loaded[1]


def branch_config(branch: SanmBranch) -> dict[str, Any]:
    """The sizes of a branch, as JSON."""
    quantizer = branch.quantizer
    if isinstance(quantizer, FiniteScalarQuantizer):
        kind: dict[str, Any] = {"kind": "fsq", "levels": list(quantizer.levels)}
    else:
        kind = {"kind": "codebook", "codes": quantizer.codes, "normalise": quantizer.normalise}
    return {
        "stack": branch.frontend.stack,
        "skip": branch.frontend.skip,
        "encoder": asdict(branch.encoder.config),
        "quantizer": kind,
    }


def branch_tensors(branch: SanmBranch) -> dict[str, Tensor]:
    """The tensors of a branch by name."""
    tensors = {
        "shift": torch.from_numpy(branch.frontend.shift),
        "scale": torch.from_numpy(branch.frontend.scale),
    }
    for part, module in (("encoder", branch.encoder), ("quantizer", branch.quantizer)):
        tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    return tensors


def build_branch(config: dict[str, Any], tensors: dict[str, Tensor]) -> SanmBranch:
    """The inverse of `branch_config` and `branch_tensors`."""
    sanm = SanmConfig(**config["encoder"])
    encoder = SanmEncoder(sanm)
    quantizer: Quantizer
    if config["quantizer"]["kind"] == "fsq":
        quantizer = FiniteScalarQuantizer(config["quantizer"]["levels"], sanm.dim)
    else:
        vectors = torch.zeros(config["quantizer"]["codes"], sanm.dim)
        quantizer = Codebook(vectors, normalise=config["quantizer"]["normalise"])
    for part, module in (("encoder", encoder), ("quantizer", quantizer)):
        own = {k.removeprefix(f"{part}."): t.float() for k, t in tensors.items() if k.startswith(f"{part}.")}
        module.load_state_dict(own)
    shift, scale = (np.ascontiguousarray(tensors[key].numpy()) for key in ("shift", "scale"))
    return SanmBranch(LfrFrontend(shift, scale, config["stack"], config["skip"]), encoder, quantizer)
