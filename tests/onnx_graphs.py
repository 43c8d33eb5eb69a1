"""Random ONNX models that run: small convolutional and fully connected networks with weights of many kinds."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = ("normal", "grid16", "grid32", "clusters", "half", "int8", "int4", "zeros", "negative_zero")


class Builder:
    """Adds layers one after the other; `now`: the tensor so far, with its channels and side (0: flat)."""

    def __init__(self, rng: np.random.Generator, whole: bool = False) -> None:
        self.rng, self.whole = rng, whole
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.now, self.channels, self.side = "image", int(rng.integers(1, 4)), 8
        self.input_channels = self.channels

    def model(self) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", self.input_channels, 8, 8])
        if self.side:
            self.node("Flatten", [self.now])
            self.channels, self.side = self.channels * self.side**2, 0
        self.dense(int(self.rng.integers(2, 6)))
        self.node("Identity", [self.now], out="logits")
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", self.channels])
        graph = helper.make_graph(self.nodes, "random_network", [image], [logits], self.stored)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="tests")
        made.ir_version = 10
        onnx.helper.set_model_props(made, {"seed": "of a test"})
        return made

    def node(self, kind: str, inputs: list[str], out: str = "", **attributes: object) -> str:
        self.now = out or f"{kind.lower()}_{len(self.nodes)}_output"
        self.nodes.append(helper.make_node(kind, inputs, [self.now], name=f"node_{len(self.nodes)}", **attributes))
        return self.now

    def tensor(self, value: np.ndarray, suffix: str = "weight") -> str:
        name = f"layers.{len(self.stored)}.{suffix}"
        self.stored.append(numpy_helper.from_array(value, name))
        return name

    def values(self, shape: tuple[int, ...], kind: str) -> np.ndarray:
        rng = self.rng
        if self.whole:  # small whole numbers: sums are exact whatever their order
            return (rng.integers(-3, 4, shape) * (rng.random(shape) < 0.4)).astype(np.float32)
        if kind == "clusters":
            return rng.normal(size=8).astype(np.float32)[rng.integers(0, 8, shape)]
        if kind in ("grid16", "grid32", "negative_zero"):
            step = np.float32(np.float16(0.11)) if kind == "grid16" else np.float32(0.1234567)
            found = (rng.integers(-3, 4, shape) * (rng.random(shape) < 0.3)).astype(np.float32) * step
            return np.where(found == 0, np.float32(-0.0), found) if kind == "negative_zero" else found
        found = rng.normal(size=shape).astype(np.float32)
        if kind == "zeros":
            return found * (rng.random(shape) < 0.05)
        return found.astype(np.float16).astype(np.float32) if kind == "half" else found

    def weight(self, shape: tuple[int, ...]) -> str:
        kind = str(self.rng.choice(WEIGHTS[:-1] if self.whole else WEIGHTS))
        if kind not in ("int8", "int4"):
            return self.tensor(self.values(shape, kind))
        top = 1 if self.whole else 7 if kind == "int4" else 127
        integers = self.rng.integers(-top, top + 1, shape)
        scale = self.tensor(np.array(0.5 if self.whole else 0.013, np.float32), "scale")
        if kind == "int8":
            stored = self.tensor(integers.astype(np.int8))
        else:
            stored = f"layers.{len(self.stored)}.weight"
            self.stored.append(helper.make_tensor(stored, TensorProto.INT4, shape, integers.flatten().tolist()))
        kept, out = self.now, self.node("DequantizeLinear", [stored, scale])
        self.now = kept
        return out

    def dense(self, width: int) -> None:
        bias = [self.tensor(self.values((width,), "normal"), "bias")] if self.rng.random() < 0.8 else []
        if self.rng.random() < 0.5:
            self.node("Gemm", [self.now, self.weight((width, self.channels)), *bias], transB=1)
        else:
            self.node("MatMul", [self.now, self.weight((self.channels, width))])
            if bias:
                self.node("Add", [self.now, bias[0]])
        self.channels = width

    def convolution(self, width: int) -> None:
        kernel, padding = int(self.rng.choice([1, 3])), int(self.rng.integers(0, 2))
        if kernel > self.side + 2 * padding:
            kernel, padding = 1, 0
        bias = [self.tensor(self.values((width,), "normal"), "bias")] if self.rng.random() < 0.8 else []
        weight = self.weight((width, self.channels, kernel, kernel))
        self.node("Conv", [self.now, weight, *bias], kernel_shape=[kernel] * 2, pads=[padding] * 4, strides=[1, 1])
        self.channels, self.side = width, self.side + 2 * padding - kernel + 1

    def depthwise(self) -> None:
        weight = self.weight((self.channels, 1, 3, 3))
        self.node("Conv", [self.now, weight], kernel_shape=[3, 3], pads=[1] * 4, group=self.channels)

    def pool(self) -> None:
        kind = str(self.rng.choice(["MaxPool", "AveragePool"]))
        self.node(kind, [self.now], kernel_shape=[2, 2], strides=[2, 2])
        self.side //= 2

    def residual(self) -> None:
        before = self.now
        weight = self.weight((self.channels, self.channels, 3, 3))
        self.node("Conv", [self.now, weight], kernel_shape=[3, 3], pads=[1] * 4)
        self.node("Add", [self.now, before])


def random_model(seed: int, whole: bool = False) -> onnx.ModelProto:
    """Input `image` float32 [batch, 1 to 3, 8, 8], output `logits`; `whole`: weights that are whole numbers."""
    rng = np.random.default_rng(seed)
    made = Builder(rng, whole)
    for _ in range(int(rng.integers(1, 5))):
        step = str(rng.choice(["convolution", "pool", "depthwise", "residual"]))
        if step == "convolution":
            made.convolution(int(rng.integers(1, 9)))
        elif step != "pool" or made.side >= 4:
            getattr(made, step)()
        activations = ["Relu"] if whole else ["Relu", "Relu", "Sigmoid", "Tanh", "LeakyRelu"]
        made.node(str(rng.choice(activations)), [made.now])
    if rng.random() < 0.3:
        made.node("GlobalAveragePool" if not whole else "GlobalMaxPool", [made.now])
        made.side = 1
    if rng.random() < 0.5:
        shape = made.tensor(np.array([-1, made.channels * made.side**2], np.int64), "shape")
        made.node("Reshape", [made.now, shape])
    else:
        made.node("Flatten", [made.now])
    made.channels, made.side = made.channels * made.side**2, 0
    if rng.random() < 0.6:
        made.dense(int(rng.integers(2, 12)))
        made.node("Relu", [made.now])
    return made.model()


def outputs(model: onnx.ModelProto | bytes, rows: int = 4, whole: bool = False) -> np.ndarray:
    """float32 [rows, classes] on ONNX Runtime, the same inputs every time."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if whole:  # without this a MatMul of dequantized weights rounds its activations
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    shape = [rows, *session.get_inputs()[0].shape[1:]]
    rng = np.random.default_rng(5)
    image = rng.integers(-2, 3, shape) if whole else rng.normal(size=shape)
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: image.astype(np.float32)})[0]
    return found
