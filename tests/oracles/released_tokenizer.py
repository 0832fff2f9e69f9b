"""A randomly initialised tokenizer folder in the released layout: same files, tensor names and graph node
names, smaller widths. `write` returns the weights it wrote, for the numpy oracle."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from oracles.tokenizer_numpy import fbank

PARAFORMER = "dengcunqin/speech_paraformer-large_asr_nat-zh-cantonese-en-16k-vocab8501-online"


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """A tone and noise whose pitch and loudness change all the time, so that neighbouring frames differ."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 16000)) / 16000
    loudness = 0.6 + 0.4 * np.sin(23 * t) * np.sin(2 * t)
    tone = np.sin(2 * np.pi * 300 * t + 80 * np.sin(9 * t)) + np.sin(2 * np.pi * 1500 * t + 300 * np.sin(5 * t))
    return (0.1 * loudness * tone + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


@dataclass
class Sizes:
    dim: int = 32
    heads: int = 4
    ffn: int = 64
    blocks: int = 3
    s3_dim: int = 128
    s3_blocks: int = 2


@dataclass
class Released:
    encoder: dict
    shift: np.ndarray
    scale: np.ndarray
    centroids: np.ndarray
    s3: dict


def write(folder: Path, sizes: Sizes, seed: int = 0) -> Released:
    rng = np.random.default_rng(seed)
    paraformer = folder / PARAFORMER
    paraformer.mkdir(parents=True)
    encoder = paraformer_tensors(rng, sizes)
    unused = {"decoder.embed.0.weight": np.zeros((8, 4), dtype=np.float32)}
    torch.save({n: torch.from_numpy(t) for n, t in (encoder | unused).items()}, paraformer / "model.pt")
    frames = fbank(speech_like(0.5))
    shift = np.tile(-frames.mean(axis=0), 7).astype(np.float32)
    scale = np.tile(1 / frames.std(axis=0), 7).astype(np.float32)
    (paraformer / "am.mvn").write_text(am_mvn(shift, scale))
    (paraformer / "config.yaml").write_text(config_yaml(sizes))
    centroids = rng.normal(0, 1, (1024, sizes.dim)).astype(np.float32)
    np.save(folder / "linguistic_tokenizer.npy", centroids)
    s3 = s3_tensors(rng, sizes)
    onnx.save(s3_graph(s3, sizes), folder / "speech_tokenizer_v1.onnx")
    return Released(encoder, shift, scale, centroids, s3)


def paraformer_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(sizes.blocks):
        name, width = ("encoder.encoders0.0", 560) if index == 0 else (f"encoder.encoders.{index - 1}", sizes.dim)
        shapes |= {
            f"{name}.self_attn.linear_out.weight": (sizes.dim, sizes.dim),
            f"{name}.self_attn.linear_out.bias": (sizes.dim,),
            f"{name}.self_attn.linear_q_k_v.weight": (3 * sizes.dim, width),
            f"{name}.self_attn.linear_q_k_v.bias": (3 * sizes.dim,),
            f"{name}.self_attn.fsmn_block.weight": (sizes.dim, 1, 11),
            f"{name}.feed_forward.w_1.weight": (sizes.ffn, sizes.dim),
            f"{name}.feed_forward.w_1.bias": (sizes.ffn,),
            f"{name}.feed_forward.w_2.weight": (sizes.dim, sizes.ffn),
            f"{name}.feed_forward.w_2.bias": (sizes.dim,),
            f"{name}.norm1.weight": (width,),
            f"{name}.norm1.bias": (width,),
            f"{name}.norm2.weight": (sizes.dim,),
            f"{name}.norm2.bias": (sizes.dim,),
        }
    return shapes | {"encoder.after_norm.weight": (sizes.dim,), "encoder.after_norm.bias": (sizes.dim,)}


def paraformer_tensors(rng, sizes):
    return {name: random_tensor(rng, name, shape) for name, shape in paraformer_shapes(sizes).items()}


def random_tensor(rng, name, shape):
    if "norm" in name or "_ln" in name:
        return (float(name.endswith("weight")) + rng.normal(0, 0.1, shape)).astype(np.float32)
    fan_in = 11 if "fsmn" in name else np.prod(shape[1:]) if len(shape) > 1 else 100
    return rng.normal(0, 1 / np.sqrt(fan_in), shape).astype(np.float32)


def am_mvn(shift, scale):
    parts = ["<Nnet>", "<Splice> 560 560", "[ 0 ]"]
    for name, values in (("AddShift", shift), ("Rescale", scale)):
        numbers = " ".join(f"{value:.9g}" for value in values)
        parts += [f"<{name}> 560 560", f"<LearnRateCoef> 0 [ {numbers} ]"]
    return "\n".join([*parts, "</Nnet>", ""])


def config_yaml(sizes):
    return f"""model: ParaformerStreaming
encoder: SANMEncoderChunkOpt
encoder_conf:
    output_size: {sizes.dim}
    attention_heads: {sizes.heads}
    linear_units: {sizes.ffn}
    num_blocks: {sizes.blocks}
    input_layer: pe_online
    normalize_before: true
    kernel_size: 11
    sanm_shfit: 0
    selfattention_layer_type: sanm
frontend: WavFrontendOnline
frontend_conf:
    fs: 16000
    window: hamming
    n_mels: 80
    frame_length: 25
    frame_shift: 10
    lfr_m: 7
    lfr_n: 6
"""


def s3_tensors(rng, sizes):
    """Linear weights as [in, out], the way the graph multiplies them."""
    d = sizes.s3_dim
    shapes = {
        "conv1.weight": (d, 128, 3),
        "conv1.bias": (d,),
        "conv2.weight": (d, d, 3),
        "conv2.bias": (d,),
        "positional_embedding": (1500, d),
        "codebook": (d, 4096),
    }
    for i in range(sizes.s3_blocks):
        for part in ("query", "key", "value", "out"):
            shapes[f"blocks.{i}.{part}.weight"] = (d, d)
            if part != "key":
                shapes[f"blocks.{i}.{part}.bias"] = (d,)
        for norm in ("attn_ln", "mlp_ln"):
            shapes[f"blocks.{i}.{norm}.weight"] = (d,)
            shapes[f"blocks.{i}.{norm}.bias"] = (d,)
        shapes[f"blocks.{i}.mlp.0.weight"], shapes[f"blocks.{i}.mlp.0.bias"] = (d, 4 * d), (4 * d,)
        shapes[f"blocks.{i}.mlp.2.weight"], shapes[f"blocks.{i}.mlp.2.bias"] = (4 * d, d), (d,)
    tensors = {name: random_tensor(rng, name, shape) for name, shape in shapes.items()}
    tensors["positional_embedding"] *= np.sqrt(d)
    tensors["codebook"] /= np.linalg.norm(tensors["codebook"], axis=0)
    return tensors


class Graph:
    """Collects nodes; every call returns the name of the new node's output."""

    def __init__(self):
        self.nodes, self.initializers, self.names, self.count = [], [], set(), 1000

    def weight(self, array, name=None):
        self.count += 1
        name = name or f"onnx::MatMul_{self.count}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def constant(self, value, dtype=np.float32):
        self.count += 1
        name = f"constant_{self.count}"
        array = numpy_helper.from_array(np.array(value, dtype=dtype))
        self.nodes.append(helper.make_node("Constant", [], [name], name=f"/Constant_{self.count}", value=array))
        return name

    def add(self, op, name, *inputs, **attributes):
        self.count += 1
        output = f"{name}_output_{self.count}"
        if name in self.names:  # an exporter numbers repeated names
            name = f"{name}_{self.count}"
        self.names.add(name)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output


def s3_graph(w, sizes):
    g, d = Graph(), sizes.s3_dim
    x = "feats"
    for n in (1, 2):
        weight, bias = (g.weight(w[f"conv{n}.{p}"], f"encoders.conv{n}.{p}") for p in ("weight", "bias"))
        x = g.add("Conv", f"/conv{n}/Conv", x, weight, bias, strides=[2], pads=[1, 1], kernel_shape=[3])
        x = gelu(g, "", x)
    x = g.add("Transpose", "/Transpose", x, perm=[0, 2, 1])
    table = g.weight(w["positional_embedding"], "encoders.positional_embedding")
    shape = g.add("Shape", "/Shape", x)
    length = g.add("Slice", "/Slice_1", shape, g.constant([1], np.int64), g.constant([2], np.int64))
    zero = g.constant([0], np.int64)
    x = g.add("Add", "/Add", x, g.add("Slice", "/Slice", table, zero, length, zero))
    for i in range(sizes.s3_blocks):
        x = s3_block(g, w, i, x, d)
    return finish(g, w, x)


def gelu(g, scope, x):
    half = g.add("Div", f"{scope}/Div", x, g.constant(np.sqrt(2)))
    one = g.add("Add", f"{scope}/Add", g.add("Erf", f"{scope}/Erf", half), g.constant(1))
    return g.add("Mul", f"{scope}/Mul_1", g.add("Mul", f"{scope}/Mul", x, one), g.constant(0.5))


def layer_norm(g, w, scope, place, x):
    centred = g.add("Sub", f"{scope}/Sub", x, g.add("ReduceMean", f"{scope}/ReduceMean", x, axes=[-1]))
    square = g.add("Pow", f"{scope}/Pow", centred, g.constant(2))
    variance = g.add("ReduceMean", f"{scope}/ReduceMean_1", square, axes=[-1])
    root = g.add("Sqrt", f"{scope}/Sqrt", g.add("Add", f"{scope}/Add", variance, g.constant(1e-5)))
    x = g.add("Div", f"{scope}/Div", centred, root)
    x = g.add("Mul", f"{scope}/Mul", x, g.weight(w[f"{place}.weight"], f"encoders.{place}.weight"))
    return g.add("Add", f"{scope}/Add_1", x, g.weight(w[f"{place}.bias"], f"encoders.{place}.bias"))


def linear(g, w, scope, place, x):
    x = g.add("MatMul", f"{scope}/MatMul", x, g.weight(w[f"{place}.weight"]))
    if f"{place}.bias" not in w:
        return x
    return g.add("Add", f"{scope}/Add", g.weight(w[f"{place}.bias"], f"encoders.{place}.bias"), x)


def s3_block(g, w, i, x, d):
    scope, place = f"/blocks.{i}", f"blocks.{i}"
    y = layer_norm(g, w, f"{scope}/attn_ln", f"{place}.attn_ln", x)
    q, k, v = (linear(g, w, f"{scope}/attn/{p}", f"{place}.{p}", y) for p in ("query", "key", "value"))
    split = g.constant([0, 0, d // 64, 64], np.int64)
    heads = [g.add("Reshape", f"{scope}/attn/Reshape", part, split) for part in (q, k, v)]
    orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    q, k, v = (
        g.add("Transpose", f"{scope}/attn/Transpose", part, perm=order)
        for part, order in zip(heads, orders, strict=True)
    )
    scale = g.constant(64**-0.25)
    q, k = g.add("Mul", f"{scope}/attn/Mul", q, scale), g.add("Mul", f"{scope}/attn/Mul_1", k, scale)
    weights = g.add("Softmax", f"{scope}/attn/Softmax", g.add("MatMul", f"{scope}/attn/MatMul", q, k), axis=-1)
    y = g.add("MatMul", f"{scope}/attn/MatMul_1", weights, v)
    y = g.add("Transpose", f"{scope}/attn/Transpose_3", y, perm=[0, 2, 1, 3])
    y = g.add("Reshape", f"{scope}/attn/Reshape_3", y, g.constant([0, 0, d], np.int64))
    x = g.add("Add", f"{scope}/Add", x, linear(g, w, f"{scope}/attn/out", f"{place}.out", y))
    y = layer_norm(g, w, f"{scope}/mlp_ln", f"{place}.mlp_ln", x)
    y = gelu(g, f"{scope}/mlp/mlp.1", linear(g, w, f"{scope}/mlp/mlp.0", f"{place}.mlp.0", y))
    return g.add("Add", f"{scope}/Add_1", x, linear(g, w, f"{scope}/mlp/mlp.2", f"{place}.mlp.2", y))


def finish(g, w, x):
    scope = "/quantizer/rq/model/layers.0/_codebook"
    unit = g.add("LpNormalization", "/quantizer/LpNormalization", x, axis=-1, p=2)
    words = g.weight(w["codebook"])
    dots = g.add("MatMul", f"{scope}/MatMul", unit, words)
    squares = g.add("Pow", f"{scope}/Pow_1", words, g.constant(2))
    norms = g.add("ReduceSum", f"{scope}/ReduceSum_1", squares, g.constant([0], np.int64), keepdims=1)
    score = g.add("Sub", f"{scope}/Sub", g.add("Mul", f"{scope}/Mul", dots, g.constant(2)), norms)
    g.nodes.append(helper.make_node("ArgMax", [score], ["indices"], name=f"{scope}/ArgMax", axis=-1, keepdims=0))
    graph = helper.make_graph(
        g.nodes,
        "main_graph",
        [
            helper.make_tensor_value_info("feats", TensorProto.FLOAT, [1, 128, "T"]),
            helper.make_tensor_value_info("feats_length", TensorProto.INT32, [1]),
        ],
        [helper.make_tensor_value_info("indices", TensorProto.INT64, [1, "F"])],
        g.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
