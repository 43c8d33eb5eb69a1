"""Real networks with random weights as files, for the packer: `python -m tests.real_models onnx|large|tflite FOLDER`.

In a process of its own, because the two frameworks are kept apart and leave much behind.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMALL_TIMM = ("test_efficientnet", "test_efficientnet_ln", "test_efficientnet_gn", "test_byobnet", "test_convnext")
TEXT = ("bert", "distilbert", "roberta", "albert", "electra", "squeezebert")
LARGE_TIMM: tuple[str, ...] = (
    *("mobilenetv3_small_050", "lcnet_035", "tinynet_e", "mobilevit_xxs", "ghostnet_050", "edgenext_xx_small"),
    *("resnet10t", "efficientvit_m0", "mobileone_s0"),
)
LARGE_TORCHVISION = ("squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small")
Network = tuple[str, Any, tuple[Any, ...]]


def onnx_files(folder: Path, large: bool) -> None:
    """NAME.onnx of every small network, and each pruned, clustered and quantized too; `large`: more, up to 20 MB."""
    import torch

    from tasks.imports import import_torchvision

    import_torchvision()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    small = [*_images(SMALL_TIMM), *_narrow(), *_texts()]
    for network in small:
        _export(folder, *network)
    for network in _large() if large else ():
        _export(folder, *network)
    for name, *_ in small:
        source = folder / f"{name}.onnx"
        if source.is_file():
            for kind, make in (("pruned", _pruned), ("clustered", _clustered), ("int8", _int8)):
                make(source, folder / f"{name}_{kind}.onnx")


def _export(folder: Path, name: str, model: Any, example: tuple[Any, ...]) -> None:
    import torch

    with contextlib.suppress(Exception), torch.no_grad():  # what the exporter cannot do is not the packer's
        made = torch.onnx.export(model.eval(), example, dynamo=True, verbose=False)
        assert made is not None
        made.save(folder / f"{name}.onnx")


def _images(names: Sequence[str]) -> Iterator[Network]:
    import timm
    import torch

    for name in names:
        model = timm.create_model(name, num_classes=10)
        yield name, model, (torch.zeros(1, *model.default_cfg["input_size"]),)


def _narrow() -> Iterator[Network]:
    """Torchvision's networks at a small part of their width."""
    import torch
    import torchvision

    models, image = torchvision.models, (torch.zeros(1, 3, 64, 64),)
    yield "mobilenet_v2", models.MobileNetV2(num_classes=10, width_mult=0.1), image
    yield "mnasnet", models.MNASNet(0.1, num_classes=10), image
    yield "shufflenet_v2", models.ShuffleNetV2([1, 2, 1], [8, 16, 24, 32, 64], num_classes=10), image


def _texts() -> Iterator[Network]:
    import torch
    import transformers

    ids, sizes = torch.zeros(1, 16, dtype=torch.int64), {"vocab_size": 200, "max_position_embeddings": 32}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"embedding_size": 32, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    for name in TEXT:
        config = transformers.AutoConfig.for_model(name, **sizes)
        config.return_dict = False
        yield name, transformers.AutoModelForSequenceClassification.from_config(config), (ids,)


def _large() -> Iterator[Network]:
    import timm
    import torch
    import torchvision

    yield from _images([*(name for name in timm.list_models("test_*") if name not in SMALL_TIMM), *LARGE_TIMM])
    for name in LARGE_TORCHVISION:
        yield name, getattr(torchvision.models, name)(num_classes=10), (torch.zeros(1, 3, 64, 64),)


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
    if sys.argv[1] == "tflite":
        tflite_files(Path(sys.argv[2]))
    else:
        onnx_files(Path(sys.argv[2]), large=sys.argv[1] == "large")
