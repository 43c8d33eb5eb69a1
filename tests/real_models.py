"""Real networks with random weights as files, for the packer: `python -m tests.real_models onnx|tflite FOLDER`.

In a process of its own, because the two frameworks are kept apart and leave much behind.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TIMM: tuple[str, ...] = (
    "mobilenetv3_small_050",
    "lcnet_035",
    "tinynet_e",
    "mobilevit_xxs",
    "ghostnet_050",
    "edgenext_xx_small",
)
TIMM += ("resnet10t", "efficientvit_m0", "mobileone_s0")
TORCHVISION = ("squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small")
TEXT = ("bert", "distilbert", "roberta", "albert", "electra")


def onnx_files(folder: Path) -> None:
    """NAME.onnx of every network, then some of them quantized, pruned or clustered."""
    import torch

    from tasks.imports import import_torchvision

    import_torchvision()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, model, example in _networks():
        file = folder / f"{name}.onnx"
        with contextlib.suppress(Exception), torch.no_grad():  # what the exporter cannot do is not the packer's
            made = torch.onnx.export(model.eval(), example, dynamo=True, verbose=False)
            assert made is not None
            made.save(file)
    for name in ("test_resnet", "lcnet_035", "bert"):
        _pruned(folder / f"{name}.onnx", folder / f"{name}_pruned.onnx")
        _clustered(folder / f"{name}.onnx", folder / f"{name}_clustered.onnx")
        _int8(folder / f"{name}.onnx", folder / f"{name}_int8.onnx")


def _networks() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    import timm
    import torch
    import torchvision
    import transformers

    for name in (*timm.list_models("test_*"), *TIMM):
        model = timm.create_model(name, num_classes=10)
        yield name, model, (torch.zeros(1, *model.default_cfg["input_size"]),)
    for name in TORCHVISION:
        yield name, getattr(torchvision.models, name)(num_classes=10), (torch.zeros(1, 3, 64, 64),)
    ids, small = torch.zeros(1, 16, dtype=torch.int64), {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 500}
    for name in TEXT:
        sizes = small | {"intermediate_size": 128, "num_attention_heads": 2, "embedding_size": 64}
        config = transformers.AutoConfig.for_model(name, **sizes, max_position_embeddings=64)
        config.return_dict = False
        yield name, transformers.AutoModelForSequenceClassification.from_config(config), (ids,)


def _rewritten(source: Path, to: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Every float matrix changed."""
    import onnx

    model = onnx.load(source)
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(change(value), tensor.name))
    onnx.save(model, to)


def _pruned(source: Path, to: Path) -> None:
    def change(value: np.ndarray) -> np.ndarray:
        return np.where(np.abs(value) > np.quantile(np.abs(value), 0.9), value, np.float32(0))

    _rewritten(source, to, change)


def _clustered(source: Path, to: Path) -> None:
    def change(value: np.ndarray) -> np.ndarray:
        centres = np.quantile(value, np.linspace(0.02, 0.98, 16)).astype(np.float32)
        return centres[np.abs(value[..., None] - centres).argmin(-1)]

    _rewritten(source, to, change)


def _int8(source: Path, to: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, to, per_channel=True, op_types_to_quantize=["MatMul", "Gemm", "Conv"])


def tflite_files(folder: Path) -> None:
    """Two Keras networks in five number formats each."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    nets = {
        "convnet": keras.Sequential(
            [
                layers.Input((28, 28, 1)),
                *(layers.Conv2D(8, 3, activation="relu"), layers.MaxPool2D(), layers.Conv2D(16, 3, activation="relu")),
                *(layers.GlobalAveragePooling2D(), layers.Dense(32, activation="relu"), layers.Dense(10)),
            ]
        ),
        "mlp": keras.Sequential(
            [layers.Input((28, 28, 1)), layers.Flatten(), layers.Dense(60, activation="relu"), layers.Dense(10)]
        ),
    }
    images = np.random.default_rng(0).normal(size=(32, 28, 28, 1)).astype(np.float32)
    for name, model in nets.items():
        for kind in ("float32", "dynamic", "float16", "int8", "pruned"):
            if kind == "pruned":
                model.set_weights(
                    [np.where(np.abs(w) > np.quantile(np.abs(w), 0.8), w, 0) for w in model.get_weights()]
                )
            converter = tf.lite.TFLiteConverter.from_keras_model(model)
            if kind in ("dynamic", "float16", "int8"):
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if kind == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if kind == "int8":
                converter.representative_dataset = lambda: ([image[None]] for image in images)
            (folder / f"{name}_{kind}.tflite").write_bytes(converter.convert())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"onnx": onnx_files, "tflite": tflite_files}[sys.argv[1]](Path(sys.argv[2]))
