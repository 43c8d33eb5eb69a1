"""Keras models from files, as tf_keras builds them; no code that a file carries is run. Only workers import this."""

from __future__ import annotations

import inspect
import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # read once, when TensorFlow is imported

import tensorflow as tf
import tf_keras

from tasks.base import TaskError

# As the trainer has them, which comes later: TensorFlow takes the numbers before its first operation only.
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

# Of layers' settings: what only decides how weights begin, or what the two generations of Keras say differently.
DROPPED = (
    "module",
    "registered_name",
    "build_config",
    "dtype",
    "batch_shape",
    "ragged",
    "sparse",
    "optional",
    "quantization_config",
)
ENDINGS = ("_initializer", "_regularizer", "_constraint")


def read(path: Path) -> Any:
    """The model in a `.keras` or `.h5` file or a SavedModel folder, compiled as it was saved; raises TaskError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optimizers, which are not used
        return _read(path)


def _read(path: Path) -> Any:
    if path.suffix in (".h5", ".hdf5"):
        _refuse_code(path, _h5_config(path))
    elif path.suffix == ".keras":
        config, version = _keras_config(path)
        _refuse_code(path, config)
        if not version.startswith("2."):
            return _third_generation(path)
    elif not (path / "keras_metadata.pb").is_file():
        raise TaskError(
            f"{path}: is no SavedModel of Keras (it has no keras_metadata.pb), so its layers are not known; save the "
            "model with model.save('FILE.keras'), or write FILE.py:NAME",
            "model",
        )
    return _second_generation(path)


def _second_generation(path: Path) -> Any:
    try:
        return tf_keras.models.load_model(path)
    except Exception as error:  # of Keras, h5py, zip, TensorFlow
        reason = " ".join(str(error).split())
    if path.suffix in (".h5", ".hdf5"):
        try:
            return _third_generation(path)
        except TaskError:
            pass
    raise TaskError(_unreadable(path, reason), "model")


def _unreadable(path: Path, reason: str) -> str:
    custom = "Unknown layer" in reason or "custom" in reason.lower() or "Unknown object" in reason
    remedy = "; it holds layers of your own: write FILE.py:NAME, a function that returns the model" if custom else ""
    return f"{path.name}: Keras cannot read it: {reason[:300]}{remedy}"


def _third_generation(path: Path) -> Any:
    """A model that Keras 3 wrote, rebuilt layer by layer in tf_keras."""
    import keras

    try:
        model = keras.models.load_model(path)
    except Exception as error:  # as above
        raise TaskError(_unreadable(path, " ".join(str(error).split())), "model") from None
    return rebuilt(model, path.name)


def _keras_config(path: Path) -> tuple[Any, str]:
    """(configuration, version of Keras) in a `.keras` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            version = json.loads(archive.read("metadata.json")).get("keras_version", "")
            return config, str(version)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TaskError(f"{path.name}: is no .keras file: {error}", "model") from None


def _h5_config(path: Path) -> Any:
    import h5py

    try:
        with h5py.File(path) as file:
            text = file.attrs.get("model_config")
    except OSError as error:
        raise TaskError(f"{path.name}: is no .h5 file: {' '.join(str(error).split())}", "model") from None
    if text is None:
        raise TaskError(
            f"{path.name}: holds weights and no model; save the whole model with model.save('FILE.keras')", "model"
        )
    return json.loads(text)


def _refuse_code(path: Path, config: Any) -> None:
    """A Lambda layer's function travels as bytecode, which would run when the file is read."""
    if "Lambda" in set(_class_names(config)):
        raise TaskError(
            f"{path.name}: holds a Lambda layer, whose code would run when the file is read; write FILE.py:NAME, a "
            "function that returns the model",
            "model",
        )


def _class_names(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield config["class_name"]
        for value in config.values():
            yield from _class_names(value)
    elif isinstance(config, list):
        for value in config:
            yield from _class_names(value)


_OUTSIDE = (
    "an operation outside of layers, or by a layer that is used more than once, which cannot be rebuilt for the "
    "compression library; use keras.layers.Add, Multiply or Concatenate instead of + and *, or write FILE.py:NAME with "
    "tf_keras"
)


def rebuilt(model: Any, name: str) -> Any:
    """A Sequential or Functional model of Keras 3 -> the same in tf_keras, with its weights; raises TaskError."""
    kind = type(model).__name__
    if kind not in ("Sequential", "Functional"):
        raise TaskError(
            f"{name}: is a {kind} model; only Sequential and Functional ones can be taken apart into layers", "model"
        )
    made: dict[int, Any] = {}
    for tensor in model.inputs:
        made[id(tensor)] = tf_keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name.split(":")[0])
    for layer in _layers(model):
        given = _once(layer, "input", name)
        inputs = [made.get(id(each)) for each in (given if isinstance(given, list) else [given])]
        if any(each is None for each in inputs):
            raise TaskError(f"{name}: layer {layer.name} is fed by {_OUTSIDE}", "model")
        twin = _twin(layer, name)
        made[id(_once(layer, "output", name))] = twin(inputs if len(inputs) > 1 else inputs[0])
        twin.set_weights(layer.get_weights())
    missing = [tensor.name for tensor in model.outputs if id(tensor) not in made]
    if missing:
        raise TaskError(f"{name}: its output {missing[0]} is made by {_OUTSIDE}", "model")
    network = tf_keras.Model(
        [made[id(tensor)] for tensor in model.inputs], [made[id(tensor)] for tensor in model.outputs], name=model.name
    )
    _compile(network, model)
    return network


def _layers(model: Any) -> list[Any]:
    return [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]


def _once(layer: Any, what: str, name: str) -> Any:
    """The layer's only input or output."""
    try:
        return getattr(layer, what)
    except (AttributeError, ValueError):
        raise TaskError(
            f"{name}: layer {layer.name} is used more than once, which cannot be rebuilt for the compression library; "
            "write FILE.py:NAME with tf_keras",
            "model",
        ) from None


def _twin(layer: Any, name: str) -> Any:
    """The same layer of tf_keras, without weights yet."""
    kind = getattr(tf_keras.layers, type(layer).__name__, None)
    if kind is None or type(layer).__module__.split(".")[0] != "keras":
        raise TaskError(
            f"{name}: layer {layer.name} is a {type(layer).__name__}, which tf_keras does not have; write FILE.py:NAME "
            "with tf_keras",
            "model",
        )
    settings = {key: value for key, value in layer.get_config().items()
                if key not in DROPPED and not key.endswith(ENDINGS)}  # fmt: skip
    if any(isinstance(value, dict) for value in settings.values()):
        raise TaskError(
            f"{name}: layer {layer.name} ({type(layer).__name__}) wraps another or holds an object, which cannot be "
            "rebuilt; write FILE.py:NAME with tf_keras",
            "model",
        )
    known = {key for each in inspect.getmro(kind) for key in inspect.signature(each).parameters}
    known |= {"name", "trainable"}
    if strange := sorted(key for key, value in settings.items() if key not in known and value):
        raise TaskError(
            f"{name}: layer {layer.name} ({type(layer).__name__}) has settings that tf_keras does not know: "
            f"{', '.join(strange)}; write FILE.py:NAME with tf_keras",
            "model",
        )
    return kind(**{key: value for key, value in settings.items() if key in known})


def _compile(network: Any, model: Any) -> None:
    """Carry the loss over, where it is one that tf_keras knows by name."""
    loss = getattr(model, "loss", None)
    if loss is None:
        return
    if isinstance(loss, str):
        network.compile(loss=loss)
        return
    kind = getattr(tf_keras.losses, type(loss).__name__, None)
    if kind is not None and hasattr(loss, "get_config"):
        settings = {key: value for key, value in loss.get_config().items() if key in ("from_logits", "label_smoothing")}
        network.compile(loss=kind(**settings))
