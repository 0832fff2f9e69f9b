"""Our own tokenizer weights: a folder with `linguistic.safetensors` and `semantic.safetensors`.

Each file is one branch: low-frame-rate features, a SANM encoder and a quantiser. Tensors are `shift`,
`scale`, `encoder.*` and `quantizer.*`; the sizes stand in the file's metadata, as JSON under "branch".
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
from stepaudio.files import save_tensors
from stepaudio.tokenizer.lfr import LfrFrontend
from stepaudio.tokenizer.linguistic import SanmBranch
from stepaudio.tokenizer.quantize import Codebook, FiniteScalarQuantizer, Quantizer
from stepaudio.tokenizer.sanm import SanmConfig, SanmEncoder

FORMAT = 1
LINGUISTIC = "linguistic.safetensors"
SEMANTIC = "semantic.safetensors"


def save_branch(path: Path, branch: SanmBranch, *, dtype: torch.dtype = torch.float32) -> None:
    """Write one branch to a file; `dtype` is how the encoder's weights are stored."""
    tensors = {
        "shift": torch.from_numpy(branch.frontend.shift),
        "scale": torch.from_numpy(branch.frontend.scale),
    }
    tensors |= {f"encoder.{name}": tensor.to(dtype) for name, tensor in branch.encoder.state_dict().items()}
    tensors |= {f"quantizer.{name}": tensor for name, tensor in branch.quantizer.state_dict().items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_tensors(contiguous, path, {"branch": json.dumps(_config(branch))})


def load_branch(path: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> SanmBranch:
    """Read what `save_branch` wrote. Raises MissingError without the file and InputError when it is
    damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("branch", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if config.get("format") != FORMAT:
            raise InputError(f"{path} is of format {config.get('format')}; this version reads {FORMAT}")
        branch = _build(config, tensors)
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not a tokenizer branch, or is damaged: {error}") from error
    branch.encoder.to(device, dtype)
    branch.quantizer.to(device)
    return branch


def _config(branch: SanmBranch) -> dict[str, Any]:
    quantizer = branch.quantizer
    kind: dict[str, Any]
    if isinstance(quantizer, FiniteScalarQuantizer):
        kind = {"kind": "fsq", "levels": quantizer.levels}
    else:
        kind = {"kind": "codebook", "codes": quantizer.codes, "normalise": quantizer.normalise}
    return {
        "format": FORMAT,
        "stack": branch.frontend.stack,
        "skip": branch.frontend.skip,
        "encoder": asdict(branch.encoder.config),
        "quantizer": kind,
    }


def _build(config: dict[str, Any], tensors: dict[str, Tensor]) -> SanmBranch:
    sanm = SanmConfig(**config["encoder"])
    kind = config["quantizer"]
    quantizer: Quantizer
    if kind["kind"] == "fsq":
        quantizer = FiniteScalarQuantizer(kind["levels"], sanm.dim)
    else:
        quantizer = Codebook(torch.zeros(kind["codes"], sanm.dim), normalise=kind["normalise"])
    encoder = SanmEncoder(sanm)
    modules: dict[str, torch.nn.Module] = {"encoder.": encoder, "quantizer.": quantizer}
    for prefix, module in modules.items():
        module.load_state_dict(
            {name.removeprefix(prefix): t.float() for name, t in tensors.items() if name.startswith(prefix)}
        )
    shift, scale = (np.ascontiguousarray(tensors[name].float().numpy()) for name in ("shift", "scale"))
    return SanmBranch(LfrFrontend(shift, scale, config["stack"], config["skip"]), encoder, quantizer)
