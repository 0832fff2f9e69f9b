"""Checkpoints in the released layout: a folder with `config.json` and safetensors, in one file or in shards.

Tensors are read one at a time through a memory map, straight to the target device and dtype: the model is
never in memory twice, and on a CPU a checkpoint that already has the wanted dtype is not copied at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stepaudio.errors import InputError, MissingError
from stepaudio.files import replacing, save_tensors
from stepaudio.lm.quantize import Quantization, quantized_linear
from stepaudio.lm.step1 import Config, Step1

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 << 30


def load(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    quantize: Quantization | None = None,
) -> Step1:
    """Load a checkpoint for inference. With `quantize`, linear layers become int8 or int4 as they are read.

    Raises MissingError when files are absent, InputError when the tensors are not those of the configuration.
    """
    if not folder.is_dir():
        raise MissingError(f"{folder} is not a folder with a checkpoint")
    with torch.device("meta"):
        model = Step1(Config.read(folder / CONFIG))
    files = _tensor_files(folder)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _require_same_names(expected.keys(), files.keys(), folder)
    for name, tensor in _tensors(files):
        if tuple(tensor.shape) != expected[name]:
            raise InputError(
                f"{folder}: {name} has shape {list(tensor.shape)}, config.json says {list(expected[name])}"
            )
        _assign(model, name, tensor.to(device=device, dtype=dtype), quantize)
    return model.to(device).eval()  # what is left to move is the slopes


def _assign(model: Step1, name: str, tensor: Tensor, quantization: Quantization | None) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if quantization and isinstance(module, nn.Linear):
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, quantized_linear(tensor, quantization))
    else:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def _tensor_files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor."""
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files = {name: folder / Path(file).name for name, file in index.items()}
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / INDEX} is not a safetensors index: {error}") from error
        missing = sorted({path.name for path in files.values() if not path.is_file()})
        if missing:
            raise MissingError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names")
        return files
    single = folder / SINGLE
    if not single.is_file():
        raise MissingError(f"{folder} has neither {SINGLE} nor {INDEX}")
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except SafetensorError as error:
        raise InputError(f"{single} is not a safetensors file: {error}") from error


def _tensors(files: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    for path in sorted(set(files.values())):
        try:
            with safe_open(path, framework="pt") as file:
                for name in sorted(name for name, where in files.items() if where == path):
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise InputError(f"{path} cannot be read: {error}") from error


def _require_same_names(expected: Iterable[str], found: Iterable[str], folder: Path) -> None:
    problems = []
    for label, names in (("lacks", set(expected) - set(found)), ("has unknown", set(found) - set(expected))):
        if names:
            some = sorted(names)
            problems.append(f"{label} {', '.join(some[:4])}{f' and {len(some) - 4} more' if len(some) > 4 else ''}")
    if problems:
        raise InputError(f"{folder} {' and '.join(problems)}; is its config.json the right one?")


def save(model: Step1, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint that `load`, vLLM and the released code read; sharded when larger than
    `shard_bytes`.

    Raises InputError for a quantised model: its tensors have no name in the released layout.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if tensors.keys() != dict(model.named_parameters()).keys():
        raise InputError("a quantised model cannot be saved; save the model it was made from")
    shards = _shards(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_tensors({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    texts = {CONFIG: model.config.to_dict()}
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        texts[INDEX] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for name, values in texts.items():
        with replacing(folder / name) as half:
            half.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    # Of an earlier checkpoint, and only now that this one is there.
    for stale in (folder / INDEX, *folder.glob("model*.safetensors")):
        if stale.name not in {*weight_map.values(), *texts}:
            stale.unlink(missing_ok=True)


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards
