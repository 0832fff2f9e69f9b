"""A randomly initialised `campplus.onnx` in the released layout: the scopes of the released graph, weights that an
exporter folded named by number, smaller widths. onnxruntime runs it, which makes it an oracle."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass
class Sizes:
    channels: int = 16
    growth: int = 8
    head: int = 4
    layers: tuple[int, ...] = (2, 3, 2)
    dim: int = 12
    bands: int = 80


class Graph:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initialisers = [], []

    def constant(self, name, array):
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, scope, kind, inputs, **attributes):
        name = f"/{scope}/{kind}" if scope else f"/{kind}_{len(self.nodes)}"
        output = f"{name}_output_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def conv(self, scope, x, inputs, outputs, kernel, *, stride=1, pad=0, dilation=1, folded=True):
        kernel = (kernel,) if isinstance(kernel, int) else kernel
        strides = [stride] * len(kernel) if isinstance(stride, int) else list(stride)
        shape = (outputs, inputs, *kernel)
        values = self.rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        name = scope.replace("/", ".")
        given = [x, self.constant(f"onnx::Conv_{len(self.nodes)}" if folded else f"{name}.weight", values)]
        if folded:
            bias = self.rng.normal(0, 0.1, outputs).astype(np.float32)
            given.append(self.constant(f"onnx::Conv_bias_{len(self.nodes)}", bias))
        pads = [pad] * (2 * len(kernel))
        return self.node(scope, "Conv", given, strides=strides, pads=pads, dilations=[dilation] * len(kernel))

    def norm(self, scope, x, channels):
        name = scope.replace("/", ".")
        values = {
            "weight": self.rng.normal(1, 0.1, channels),
            "bias": self.rng.normal(0, 0.1, channels),
            "running_mean": self.rng.normal(0, 0.1, channels),
            "running_var": self.rng.uniform(0.5, 1.5, channels),
        }
        given = [self.constant(f"{name}.{kind}", value.astype(np.float32)) for kind, value in values.items()]
        return self.node(scope, "BatchNormalization", [x, *given], epsilon=1e-5)

    def relu(self, x):
        return self.node("", "Relu", [x])


def write(path: Path, sizes: Sizes, seed: int = 0) -> None:
    graph = Graph(seed)
    x = graph.node("", "Transpose", ["input"], perm=[0, 2, 1])
    x = head(graph, x, sizes)
    x = graph.relu(graph.conv("xvector/tdnn/linear", x, sizes.head * 10, sizes.channels, 5, stride=2, pad=2))
    channels = sizes.channels
    for number, (layers, dilation) in enumerate(zip(sizes.layers, (1, 2, 2), strict=True), 1):
        for layer in range(1, layers + 1):
            new = dense_layer(graph, f"xvector/block{number}/tdnnd{layer}", x, channels, sizes.growth, dilation)
            x = graph.node("", "Concat", [x, new], axis=1)
            channels += sizes.growth
        scope = f"xvector/transit{number}"
        x = graph.relu(graph.norm(f"{scope}/nonlinear/batchnorm", x, channels))
        x = graph.conv(f"{scope}/linear", x, channels, channels // 2, 1, folded=number == 3)
        channels //= 2
    x = statistics(graph, graph.relu(x))
    x = graph.conv("xvector/dense/linear", x, 2 * channels, sizes.dim, 1, folded=False)
    x = graph.norm("xvector/dense/nonlinear/batchnorm", x, sizes.dim)
    axes = graph.constant("axes", np.array([2]))
    graph.nodes.append(helper.make_node("Squeeze", [x, axes], ["output"], name="/Squeeze"))
    made = helper.make_graph(
        graph.nodes,
        "campplus",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", "frames", sizes.bands])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", sizes.dim])],
        graph.initialisers,
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def head(graph, x, sizes):
    x = graph.node("", "Unsqueeze", [x, graph.constant("one", np.array([1]))])
    x = graph.relu(graph.conv("head/conv1", x, 1, sizes.head, (3, 3), pad=1))
    for layer in ("layer1", "layer2"):
        for block, stride in enumerate((2, 1)):
            scope = f"head/{layer}/{layer}.{block}"
            y = graph.relu(graph.conv(f"{scope}/conv1", x, sizes.head, sizes.head, (3, 3), stride=(stride, 1), pad=1))
            y = graph.conv(f"{scope}/conv2", y, sizes.head, sizes.head, (3, 3), pad=1)
            if stride == 2:
                scope += "/shortcut/shortcut.0"
                x = graph.conv(scope, x, sizes.head, sizes.head, (1, 1), stride=(stride, 1))
            x = graph.relu(graph.node("", "Add", [y, x]))
    x = graph.relu(graph.conv("head/conv2", x, sizes.head, sizes.head, (3, 3), stride=(2, 1), pad=1))
    shape = graph.constant("flat", np.array([0, sizes.head * 10, -1]))
    return graph.node("", "Reshape", [x, shape])


def dense_layer(graph, scope, x, channels, growth, dilation):
    narrow = 4 * growth
    x = graph.relu(graph.norm(f"{scope}/nonlinear1/batchnorm", x, channels))
    x = graph.relu(graph.conv(f"{scope}/linear1", x, channels, narrow, 1))
    local = graph.conv(
        f"{scope}/cam_layer/linear_local", x, narrow, growth, 3, pad=dilation, dilation=dilation, folded=False
    )
    context = graph.node("", "Add", [graph.node("", "ReduceMean", [x], axes=[2]), segments(graph, x)])
    context = graph.relu(graph.conv(f"{scope}/cam_layer/linear1", context, narrow, narrow // 2, 1))
    gate = graph.node("", "Sigmoid", [graph.conv(f"{scope}/cam_layer/linear2", context, narrow // 2, growth, 1)])
    return graph.node("", "Mul", [local, gate])


def segments(graph, x):
    """The mean of each 100 frames, at each of them."""
    number = len(graph.nodes)
    means = graph.node("", "AveragePool", [x], kernel_shape=[100], strides=[100], ceil_mode=1)
    scales = graph.constant(f"scales_{number}", np.array([1, 1, 100], np.float32))
    wide = graph.node("", "Resize", [means, "", scales], mode="nearest", nearest_mode="floor",
                      coordinate_transformation_mode="asymmetric")  # fmt: skip
    shape = graph.node("", "Shape", [x])
    end = graph.node("", "Gather", [shape, graph.constant(f"two_{number}", np.array([2]))])
    begin, axis = graph.constant(f"begin_{number}", np.array([0])), graph.constant(f"axis_{number}", np.array([2]))
    return graph.node("", "Slice", [wide, begin, end, axis])


def statistics(graph, x):
    """Mean and unbiased deviation over time."""
    mean = graph.node("", "ReduceMean", [x], axes=[2])
    centred = graph.node("", "Sub", [x, mean])
    total = graph.node("", "ReduceSumSquare", [centred], axes=[2])
    shape = graph.node("", "Shape", [x])
    frames = graph.node("", "Gather", [shape, graph.constant("three", np.array([2]))])
    less = graph.node("", "Sub", [frames, graph.constant("minus", np.array([1]))])
    count = graph.node("", "Cast", [less], to=TensorProto.FLOAT)
    deviation = graph.node("", "Sqrt", [graph.node("", "Div", [total, count])])
    return graph.node("", "Concat", [mean, deviation], axis=1)
