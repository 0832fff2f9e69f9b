"""Flow checkpoints, in and out.

A released folder has `flow.pt`, a pickled state dict that is read without running any code, and `cosyvoice.yaml`. Every
size is read from the tensors; the yaml gives what they do not show: how attention is split into heads in the U-Net, the
rates. Our own weights are one `flow.safetensors` with the same tensor names and the sizes in its metadata, as JSON
under "flow".
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepaudio.decoder.dit import DiTConfig
from stepaudio.decoder.encoder import EncoderConfig
from stepaudio.decoder.flow import RELEASED_22K, RELEASED_24K, FlowConfig, FlowModel, InterleavedFlow, build
from stepaudio.decoder.unet import UNetConfig
from stepaudio.errors import InputError, MissingError
from stepaudio.files import save_tensors

RELEASED = "flow.pt"
YAML = "cosyvoice.yaml"
OURS = "flow.safetensors"
FORMAT = 1

Tensors = dict[str, Tensor]


def load_flow(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> FlowModel:
    """The flow of a released folder or of one that `save_flow` wrote, to be trained on or made `for_inference`.

    Raises MissingError without the files and InputError when they are damaged or hold another architecture.
    """
    ours, released = folder / OURS, folder / RELEASED
    if ours.is_file():
        tensors, config = _read_ours(ours)
    elif released.is_file():
        tensors = _read_pickle(released)
        config = released_config(tensors, read_yaml(folder / YAML), released)
    else:
        raise MissingError(f"{folder} has neither {OURS} nor {RELEASED}")
    return _fill(config, tensors, folder).to(device, dtype).eval()


def save_flow(model: FlowModel, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write `flow.safetensors`; `dtype` is how weights are stored. Raises InputError for a model `for_inference`."""
    kind = "unet" if isinstance(model.config.estimator, UNetConfig) else "dit"
    config = {"format": FORMAT, "kind": kind, **asdict(model.config)}
    save_tensors(_state(model, dtype), folder / OURS, {"flow": json.dumps(config)})


def save_released(model: FlowModel, folder: Path) -> None:
    """Write `flow.pt` and `cosyvoice.yaml` as they are released. Raises InputError for a model `for_inference`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_state(model, torch.float32), folder / RELEASED)
    config, estimator = model.config, model.config.estimator
    heads = f"      attention_head_dim: {estimator.head_dim}\n      num_heads: {estimator.heads}\n"
    rate = f"  input_frame_rate: {config.token_rate}\n" if isinstance(model, InterleavedFlow) else ""
    (folder / YAML).write_text(
        f"sample_rate: {config.rate}\n"
        f"flow: !new:flow\n{rate}  decoder: !new:decoder\n    estimator: !new:estimator\n{heads}"
        f"mel_conf:\n  sampling_rate: !ref <sample_rate>\n  hop_size: {config.hop}\n",
        encoding="utf-8",
    )


def _state(model: FlowModel, dtype: torch.dtype) -> Tensors:
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        whole = build(model.config).state_dict().keys()
    if state.keys() != whole:
        raise InputError("a model for inference cannot be saved; save the one it was made from")
    return state


def _fill(config: FlowConfig, tensors: Tensors, where: Path) -> FlowModel:
    with torch.device("meta"):
        model = build(config)
    expected = model.state_dict()
    problems = []
    for label, names in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has unknown", tensors.keys() - expected.keys()),
    ):
        if names:
            some = ", ".join(sorted(names)[:4])
            problems.append(f"{label} {some}{f' and {len(names) - 4} more' if len(names) > 4 else ''}")
    if problems:
        raise InputError(f"{where} is no checkpoint of this decoder: it {' and '.join(problems)}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(f"{where}: {name} is {list(tensor.shape)}, not {list(expected[name].shape)}")
    model.load_state_dict(tensors, assign=True)
    return model


# ---------------------------------------------------------------- our own


def _read_ours(path: Path) -> tuple[Tensors, FlowConfig]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {}).get("flow", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if values.pop("format", None) != FORMAT:
            raise InputError(f"{path} is not a flow of format {FORMAT}, which this version reads")
        return tensors, _config(values)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a flow, or is damaged: {error}") from error


def _config(values: dict[str, Any]) -> FlowConfig:
    estimator = dict(values.pop("estimator"))
    unet = values.pop("kind") == "unet"
    if unet:
        estimator["channels"] = tuple(estimator["channels"])
    return FlowConfig(
        estimator=UNetConfig(**estimator) if unet else DiTConfig(**estimator),
        encoder=EncoderConfig(**values.pop("encoder")),
        **values,
    )


# ---------------------------------------------------------------- released


def _read_pickle(path: Path) -> Tensors:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read as tensors alone: {error}") from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} must hold tensors by name, not {type(loaded).__name__}")
    # Some releases count epochs and steps among the weights.
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def released_config(tensors: Tensors, yaml: Mapping[str, Any], where: Path) -> FlowConfig:
    """The configuration of released tensors. Raises InputError when one that shows a size is missing."""
    flow, mel = _section(yaml, "flow"), _section(yaml, "mel_conf")
    heads = _section(_section(flow, "decoder"), "estimator")
    try:
        aligned = "input_embedding.embedding.weight" in tensors
        released = RELEASED_24K if aligned else RELEASED_22K
        table = tensors["input_embedding.embedding.weight" if aligned else "input_embedding.weight"]
        mels, dim = tensors["encoder_proj.weight"].shape
        return FlowConfig(
            estimator=_dit(tensors) if aligned else _unet(tensors, heads),
            encoder=_encoder(tensors, dim, aligned),
            vocab=table.shape[0],
            embedding=table.shape[1] * (2 if aligned else 1),
            mels=mels,
            speaker=tensors["spk_embed_affine_layer.weight"].shape[1],
            rate=int(mel.get("sampling_rate", yaml.get("sample_rate", released.rate))),
            hop=int(mel.get("hop_size", released.hop)),
            token_rate=float(flow.get("input_frame_rate", released.token_rate)),
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{where} or its {YAML} is not of a released decoder: {error}") from error


def _encoder(tensors: Tensors, dim: int, aligned: bool) -> EncoderConfig:
    first = "encoder.encoders.0."
    common = EncoderConfig(
        dim=dim,
        heads=tensors[f"{first}self_attn.pos_bias_u"].shape[0],
        ffn=tensors[f"{first}feed_forward.w_1.weight"].shape[0],
        blocks=_count(tensors, r"encoder\.encoders\.(\d+)\."),
        key_bias=f"{first}self_attn.linear_k.bias" in tensors,
    )
    if not aligned:
        # Of each three modules one is a convolution; the last convolution stands alone.
        return EncoderConfig(
            **asdict(common) | {"regulator": (_count(tensors, r"length_regulator\.model\.(\d+)\.")) // 3}
        )
    upsample = {
        "up_blocks": _count(tensors, r"encoder\.up_encoders\.(\d+)\."),
        "upsample": tensors["encoder.up_layer.conv.weight"].shape[2] // 2,
        "lookahead": tensors["encoder.pre_lookahead_layer.conv1.weight"].shape[2] - 1,
    }
    return EncoderConfig(**asdict(common) | upsample)


def _dit(tensors: Tensors) -> DiTConfig:
    name = "decoder.estimator."
    head_dim = tensors[f"{name}blocks.0.attn.q_norm.weight"].shape[0]
    return DiTConfig(
        dim=tensors[f"{name}in_proj.weight"].shape[0],
        depth=_count(tensors, r"decoder\.estimator\.blocks\.(\d+)\."),
        heads=tensors[f"{name}blocks.0.attn.to_q.weight"].shape[0] // head_dim,
        head_dim=head_dim,
        ffn=tensors[f"{name}blocks.0.mlp.fc1.weight"].shape[0],
        frequencies=tensors[f"{name}t_embedder.mlp.0.weight"].shape[1],
    )


def _unet(tensors: Tensors, heads: Mapping[str, Any]) -> UNetConfig:
    name = "decoder.estimator."
    levels = _count(tensors, r"decoder\.estimator\.down_blocks\.(\d+)\.")
    channels = tuple(tensors[f"{name}down_blocks.{n}.0.block1.block.0.weight"].shape[0] for n in range(levels))
    transformer = f"{name}down_blocks.0.1.0."
    head_dim = int(heads.get("attention_head_dim", UNetConfig.head_dim))
    return UNetConfig(
        channels=channels,
        blocks=_count(tensors, r"decoder\.estimator\.down_blocks\.0\.1\.(\d+)\."),
        mid_blocks=_count(tensors, r"decoder\.estimator\.mid_blocks\.(\d+)\."),
        heads=tensors[f"{transformer}attn1.to_q.weight"].shape[0] // head_dim,
        head_dim=head_dim,
        ffn_factor=tensors[f"{transformer}ff.net.0.proj.weight"].shape[0] // channels[0],
        time_factor=tensors[f"{name}time_mlp.linear_1.weight"].shape[0] // channels[0],
    )


def _count(names: Collection[str], pattern: str) -> int:
    """How many numbers there are in a place of tensor names."""
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def _section(yaml: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = yaml.get(name, {})
    return section if isinstance(section, Mapping) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a released yaml. Its tags, which name Python objects to make, are not followed: what they stand
    before is read as plain values, and `!ref <name>` as the value of that top-level name. Raises MissingError or
    InputError."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    def plain(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return _Ref(node.value) if suffix == "ref" else node.value

    Loader.add_multi_constructor("!", plain)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError as error:
        raise MissingError(f"{path} is missing") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping")
    return {str(name): _resolve(value, values) for name, value in values.items()}


class _Ref(str):
    """`<name>`, not yet replaced by its value."""


def _resolve(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, _Ref):
        found = names.get(value.strip("<>"), str(value))
        return str(found) if isinstance(found, _Ref) else found
    if isinstance(value, dict):
        return {key: _resolve(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, names) for item in value]
    return value
