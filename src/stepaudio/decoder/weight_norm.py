"""Released vocoder files: weights under weight normalisation, folded when read and split again when written.

Weight norm (Salimans and Kingma, arXiv 1602.07868) stores a weight as its length per output and its direction:
`*.parametrizations.weight.original0` and `original1`, or `*.weight_g` and `*.weight_v` in older files.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stepaudio.errors import InputError, MissingError

_LENGTH, _DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
_PAIRS = ((_LENGTH, _DIRECTION), (".weight_g", ".weight_v"))
_TRAINED_WITHIN = "generator."
"""What the names begin with in a file that was written during adversarial training."""


def read_folded(path: Path) -> dict[str, Tensor]:
    """The tensors of a released file with plain weights. Raises MissingError and InputError."""
    if not path.is_file():
        raise MissingError(f"{path} is missing: download the whole repository of the model")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is damaged, or holds more than tensors: {error}") from error
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"{path} does not hold a table of tensors")
    return fold({name.removeprefix(_TRAINED_WITHIN): tensor for name, tensor in stored.items()})


def fold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain weights for split ones; other tensors as they are."""
    folded = dict(tensors)
    for length, direction in _PAIRS:
        for name in [name for name in folded if name.endswith(direction)]:
            layer = name.removesuffix(direction)
            if layer + length not in folded:
                raise InputError(f"the file holds {name} but not {layer + length}")
            towards, long = folded.pop(name).float(), folded.pop(layer + length).float()
            folded[f"{layer}.weight"] = towards * (long / _norm(towards))
    return folded


def write_split(tensors: Mapping[str, Tensor], path: Path, layers: tuple[str, ...]) -> None:
    """Write a file in which the weights of layers with these prefixes are split."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if layer != name and layer.startswith(layers) and tensor.ndim > 1:
            stored[layer + _LENGTH], stored[layer + _DIRECTION] = _norm(tensor), tensor.clone()
        else:
            stored[name] = tensor.clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(stored, path)


def _norm(weight: Tensor) -> Tensor:
    norm: Tensor = weight.norm(dim=tuple(range(1, weight.ndim)), keepdim=True)
    return norm
