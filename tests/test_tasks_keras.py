"""Keras models as tasks: from a function, from files of both generations of Keras, with tf.data and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pare.testing.tasks import check_task
from tasks.base import Task, TaskError, TaskSpec
from tasks.check import check
from tasks.load import load, models_of, problems, trainers_of
from tests import own_cases

# Before TensorFlow is imported: it is told which Keras to be.
from tasks import keras_files  # isort: skip
import keras
import tensorflow as tf
import tf_keras


@pytest.fixture(scope="module")
def functional(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskSpec, Task]:
    folder = tmp_path_factory.mktemp("keras")
    spec = own_cases.keras(folder)
    return spec, load(spec, folder / "cache", own_cases.quiet)


def test_a_functional_model_with_tf_data_keeps_the_contract(functional: tuple[TaskSpec, Task]) -> None:
    spec, task = functional
    info = check_task(task)
    assert problems(spec) == []
    assert models_of(spec) == dict(info.models) == {"tensorflow": ("net",)}
    assert trainers_of(spec) == ("tensorflow",)
    assert [(port.name, port.shape, port.layout) for port in info.inputs] == [("image", ("batch", 12, 12, 1), "NHWC")]
    assert info.outputs[0].kind == "logits"
    assert info.metrics[0].name == "accuracy"
    assert check(task) == []


def test_the_softmax_at_the_end_is_taken_off_and_given_back(functional: tuple[TaskSpec, Task]) -> None:
    task = functional[1]
    program = task.program("tensorflow")
    whole, network = program.subject.whole(), program.build("net")
    network.set_weights(whole.get_weights())
    batch = task.data("train").batch(np.arange(8))
    logits = network(tf.constant(batch.inputs["image"])).numpy()
    expected = whole(tf.constant(batch.inputs["image"])).numpy()
    assert np.allclose(program.outputs.nested({"output": logits}), expected, atol=1e-6)
    usual = float(program.loss({"output": tf.constant(logits)}, {}, tf.constant(batch.targets)))
    by_hand = -np.mean(np.log(expected[np.arange(8), batch.targets]))
    assert abs(usual - by_hand) < 1e-5


def test_training_lowers_the_loss(functional: tuple[TaskSpec, Task]) -> None:
    task = functional[1]
    program, batch = task.program("tensorflow"), task.data("train").batch(np.arange(60))
    network = program.build("net")
    optimizer = tf_keras.optimizers.Adam(0.02)
    losses = []
    for _ in range(8):
        with tf.GradientTape() as tape:
            outputs = {"output": network(tf.constant(batch.inputs["image"]), training=True)}
            loss = program.loss(outputs, batch.inputs, tf.constant(batch.targets))
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        losses.append(float(loss))
    assert min(losses[1:]) < 0.9 * losses[0]


def _third_generation(path: Path) -> Any:
    given = keras.Input((8,), name="row")
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(16, activation="relu")(given))
    joined = keras.layers.Add()([hidden, keras.layers.Dense(16)(hidden)])
    model = keras.Model(given, keras.layers.Dense(4, activation="softmax")(joined))
    model.compile(loss="sparse_categorical_crossentropy")
    model.save(path)
    return model


def _arrays(folder: Path) -> None:
    x, y = own_cases.rows()
    np.savez(folder / "d.npz", row=x, y=y)


def test_a_file_of_keras_3_is_rebuilt_with_the_same_outputs(tmp_path: Path) -> None:
    original = _third_generation(tmp_path / "net.keras")
    _arrays(tmp_path)
    spec = TaskSpec(model="net.keras", data="npz:d.npz", metric="accuracy, f1", folder=str(tmp_path))
    task = load(spec, tmp_path / "cache", own_cases.quiet)
    info = check_task(task)
    assert [port.name for port in info.inputs] == ["row"]
    assert [metric.name for metric in info.metrics] == ["accuracy", "f1"]
    program = task.program("tensorflow")
    assert program.pretrained("net")
    assert program.compiled == "sparse_categorical_crossentropy"
    rows = own_cases.rows()[0][:10]
    assert np.allclose(program.subject.whole()(rows), original(rows), atol=1e-6)


@pytest.mark.parametrize("name", ["net.h5", "saved"])
def test_files_of_keras_2(name: str, tmp_path: Path) -> None:
    model = tf_keras.Sequential([tf_keras.layers.Input((8,)), tf_keras.layers.Dense(4, name="scores")])
    model.compile(loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / name, save_format="h5" if name == "net.h5" else "tf")
    _arrays(tmp_path)
    address = name if name == "net.h5" else f"savedmodel:{name}"
    spec = TaskSpec(model=address, data="npz:d.npz", label="y", folder=str(tmp_path))
    assert problems(spec) == []
    task = load(spec, tmp_path / "cache", own_cases.quiet)
    check_task(task)
    assert task.program("tensorflow").keep(model) == ("scores",)


def _lambda(path: Path) -> None:
    model = tf_keras.Sequential([tf_keras.layers.Input((8,)), tf_keras.layers.Lambda(lambda x: x * 2)])
    model.save(path)


def _shared(path: Path) -> None:
    given, layer = keras.Input((8,)), keras.layers.Dense(8)
    keras.Model(given, layer(layer(given))).save(path)


def _operation(path: Path) -> None:
    given = keras.Input((8,))
    first = keras.layers.Dense(8)(given)
    keras.Model(given, keras.layers.Dense(4)(first + given)).save(path)


def _weights_only(path: Path) -> None:
    model = tf_keras.Sequential([tf_keras.layers.Input((8,)), tf_keras.layers.Dense(4)])
    model.save_weights(path)


def _no_file(path: Path) -> None:
    path.write_text("no model")


def _plain_saved_model(path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec((None, 8))])
    tf.saved_model.save(module, str(path))


REFUSED = [
    ("a.h5", _lambda, "holds a Lambda layer, whose code would run when the file is read"),
    ("a.keras", _lambda, "holds a Lambda layer"),
    ("a.keras", _shared, "is made by an operation outside of layers, or by a layer that is used more than once"),
    ("a.keras", _operation, "is fed by an operation outside of layers"),
    ("a.h5", _weights_only, "holds weights and no model; save the whole model"),
    ("a.keras", _no_file, "is no .keras file"),
    ("a", _plain_saved_model, "is no SavedModel of Keras"),
]


@pytest.mark.parametrize(("name", "write", "says"), REFUSED, ids=[case[1].__name__[1:] for case in REFUSED])
def test_what_is_refused_says_why(name: str, write: Any, says: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(TaskError, match=says):
        keras_files.read(tmp_path / name)


MUTATED = [
    ("tf.keras.Input((12, 12, 1)", "tf.keras.Input((12, 12, 3)", "calling the model net with image float32"),
    ("    return tf.keras.Model(", "    return 5\n    return tf.keras.Model(", "gives a int; return"),
    (".from_tensor_slices((x, y))", ".from_tensor_slices((x, y)).shuffle(90)", "two passes over it differ"),
]


@pytest.mark.parametrize(("old", "new", "says"), MUTATED)
def test_mutated_files(old: str, new: str, says: str, tmp_path: Path) -> None:
    spec = own_cases.keras(tmp_path)
    (tmp_path / "net.py").write_text(own_cases.KERAS.replace(old, new))
    with pytest.raises(TaskError, match=says):
        load(spec, tmp_path / "cache", own_cases.quiet).info()
