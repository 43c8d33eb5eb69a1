"""A Keras model, from a file or a function of the user's, with any source of data. Only workers import this."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tasks import keras_files, scorers  # keras_files first: it says which Keras TensorFlow shall use
from tasks.address import nearest
from tasks.base import Arrays, Metric, Port, Scorer, Serving, Task, TaskError
from tasks.bench import Bench, instance, kind_of
from tasks.imports import one_thread
from tasks.own import Parts, takes_targets
from tasks.ports import Form
from tasks.sources import Wants
from tasks.tree import Tree, leaves, mapped
from tasks.user_code import guarded

# isort: split
import tensorflow as tf
import tf_keras

one_thread(tf)

LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "mse": lambda target, output: tf.reduce_mean(tf.square(output - target)),
    "l1": lambda target, output: tf.reduce_mean(tf.abs(output - target)),
    "bce": lambda target, output: tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(target, output)),
}


class KerasSubject:
    """The user's model, made again at each call."""

    def __init__(self, bench: Bench, name: str, factory: Callable[[], Any], trained: bool) -> None:
        self.bench, self.name, self.factory, self.trained = bench, name, factory, trained
        self.notes: list[str] = []

    def whole(self) -> Any:
        """As the user has it, in tf_keras; raises TaskError for what is neither Sequential nor Functional."""
        folder = self.bench.parts.folder
        tf_keras.backend.reset_uids()  # or layers without a name would be called otherwise each time
        made = instance(self.factory, self.name, folder)
        if kind_of(made) != "keras" or not hasattr(made, "layers"):
            raise TaskError(f"{self.name} is a {type(made).__name__}, not a Keras model", "model")
        if not isinstance(made, tf_keras.Model):
            made = keras_files.rebuilt(made, self.name)
        try:
            _ = made.inputs[0].shape
        except (AttributeError, TypeError, IndexError, ValueError):
            raise TaskError(
                f"{self.name}: is no Sequential model with an input shape and no Functional model; a subclassed model "
                "cannot be taken apart into layers",
                "model",
            ) from None
        return made

    def network(self) -> Any:
        """The model without a softmax at its end: its outputs are logits."""
        model = self.whole()
        last = model.layers[-1]
        if len(model.outputs) != 1 or not ends_in_softmax(model):
            return model
        if type(last).__name__ in ("Softmax", "Activation"):
            return tf_keras.Model(model.inputs, last.input, name=model.name)
        clone = tf_keras.models.clone_model(model, clone_function=lambda layer: _linear(layer, last.name))
        clone.set_weights(model.get_weights())
        return clone


def ends_in_softmax(model: Any) -> bool:
    """Whether the last layer gives probabilities of classes."""
    last = model.layers[-1]
    if type(last).__name__ == "Softmax":
        return True
    return getattr(last, "activation", None) is tf_keras.activations.softmax


def _linear(layer: Any, name: str) -> Any:
    settings = layer.get_config()
    if layer.name == name:
        settings["activation"] = "linear"
    return type(layer).from_config(settings)


class KerasProgram:
    """See `trainers.tensorflow.program.KerasProgram`."""

    def __init__(self, subject: KerasSubject, parts: Parts, loss: str, keep: Collection[str]) -> None:
        self.subject, self.parts, self.loss_name, self.named = subject, parts, loss, tuple(keep)
        self.model = subject.network()
        self.compiled = getattr(subject.whole(), "loss", None) or None
        self.softmax = ends_in_softmax(subject.whole()) and len(self.model.outputs) == 1
        self.inputs = Form(None, ())
        self.outputs = _outputs_form(self.model, self.softmax)
        self.ports: tuple[Port, ...] = ()
        self._kept(self.model)
        if parts.augment is not None:
            self.augment = self._augment
        if parts.distill is not None:
            self.distill = self._distill

    def build(self, model: str) -> Any:
        """The named model, with the user's weights where there are any, else a fresh start."""
        return self.subject.network()

    def pretrained(self, model: str) -> bool:
        """Whether `build` gives trained weights."""
        return self.subject.trained

    def loss(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any], targets: Any) -> Any:
        """Scalar float32: the user's loss, the one the model was compiled with, or what the targets suggest."""
        if self.parts.loss is not None:
            batch = targets if takes_targets(self.parts.loss) else (self.inputs.nested(inputs), targets)
            value = self.parts.called("loss", self.outputs.nested(outputs), batch)
            return tf.reduce_mean(tf.cast(value, tf.float32))
        port = next((port for port in self.ports if port.kind == "logits"), self.ports[0])
        output, target = outputs[port.name], next(leaf for _, leaf in leaves(targets))
        if self.loss_name in LOSSES or (not self.loss_name and port.kind != "logits" and self.compiled is None):
            return LOSSES[self.loss_name or "mse"](tf.reshape(tf.cast(target, tf.float32), tf.shape(output)), output)
        if self.compiled is not None and not self.loss_name:
            given = self.outputs.nested(outputs)
            shapes = f"targets {target.dtype.name} {list(target.shape)} and outputs {list(output.shape)}"
            with guarded("loss", f"the loss that the model was compiled with, of {shapes}", None):
                return tf.reduce_mean(tf_keras.losses.get(self.compiled)(target, given))
        if target.dtype.is_floating:
            return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, output))
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(_labels(target, output), output))

    def keep(self, network: Any) -> tuple[str, ...]:
        """Names of layers that must keep their width: those that make outputs, frozen ones, and named ones."""
        outputs = {tensor.node.layer.name for tensor in network.outputs}
        frozen = {layer.name for layer in network.layers if layer.weights and not layer.trainable}
        return tuple(sorted({*outputs, *frozen, *self._kept(network)}))

    def _kept(self, network: Any) -> list[str]:
        """What the study and the file name; raises TaskError for a layer that is not there."""
        wanted = list(self.named)
        if self.parts.keep is not None:
            wanted += self.parts.called("keep") if callable(self.parts.keep) else self.parts.keep
        names = [layer.name for layer in network.layers]
        for name in wanted:
            if name not in names:
                raise TaskError(f"task.keep: the model has no layer {name!r}{nearest(name, names)}", "model")
        return wanted

    def _augment(self, inputs: Mapping[str, Any], seed: Any) -> Mapping[str, Any]:
        """The batch as training sees it: what the user's augment makes of it."""
        return self.inputs.flat(self.parts.called("augment", self.inputs.nested(inputs), seed))

    def _distill(self, student: Mapping[str, Any], teacher: Mapping[str, Any], how: Any) -> Any:
        nested = (self.outputs.nested(student), self.outputs.nested(teacher), how)
        takes = len(inspect.signature(self.parts.distill).parameters)
        return self.parts.called("distill", *nested[:takes])


def _labels(target: Any, output: Any) -> Any:
    """Whole numbers shaped as the output without its last axis."""
    return tf.reshape(tf.cast(target, tf.int32), tf.shape(output)[:-1])


class SoftmaxForm(Form):
    """The outputs as the user's functions expect them: probabilities, where the model's softmax was taken off."""

    def nested(self, flat: Mapping[str, Any]) -> Tree:
        """The user's structure again, mappings with attributes."""
        return super().nested({name: _softmax(array) for name, array in flat.items()})


def _softmax(logits: Any) -> Any:
    if isinstance(logits, np.ndarray):
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)
    return tf.nn.softmax(logits)


def _outputs_form(model: Any, softmax: bool) -> Form:
    names = tuple(str(name) for name in model.output_names)
    if len(names) == 1:
        return SoftmaxForm(None, ("output",)) if softmax else Form(None, ("output",))
    return Form(tuple(None for _ in names), names)


class KerasHalf:
    """See `tasks.composed.Half`."""

    trainer = "tensorflow"
    last_axis = True
    layout = "NHWC"

    def __init__(self, bench: Bench, subject: KerasSubject, targets: bool) -> None:
        self.bench, self.subject, self.targets = bench, subject, targets
        self.models: tuple[str, ...] = (subject.name,)
        self.notes = subject.notes
        self._program = KerasProgram(subject, bench.parts, bench.spec.loss, bench.spec.keep)
        if self._program.softmax:
            self.notes.append(
                f"{subject.name}: the softmax at its end is taken off: the exported file gives logits; loss and metric "
                "are given probabilities, as they expect"
            )

    def adapt(self, inputs: Tree, targets: Tree | None) -> tuple[Tree, Tree | None]:
        """See Half: one-dimensional labels whatever their shape was."""
        return inputs, targets

    def bind(self, inputs: Tree) -> Form:
        """See Half: the model's own names; a mapping by name, else in order."""
        model = self._program.model
        names = input_names(model)
        found = [path for path, _ in leaves(inputs)]
        if len(found) != len(names):
            raise TaskError(
                f"the model takes {len(names)} inputs ({', '.join(names)}) and the data gives {len(found)}", "data"
            )
        if isinstance(inputs, Mapping):
            if set(found) != set(names):
                raise TaskError(
                    f"the model's inputs are {', '.join(names)} and the data's {', '.join(found)}; name them alike",
                    "data",
                )
            names = found
        self._program.inputs = Form(mapped(lambda _: None, inputs), tuple(names))
        return self._program.inputs

    def probe(self, examples: Sequence[Arrays]) -> Sequence[Arrays]:
        """The model's outputs on examples."""
        model, made = self._program.model, []
        names = input_names(model)
        for example in examples:
            shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in example.items())
            given = [tf.convert_to_tensor(example[name]) for name in names]
            with guarded("model", f"calling the model {self.subject.name} with {shapes}", self.bench.parts.folder):
                raw = model(given if len(given) > 1 else given[0], training=False)
            found = raw if isinstance(raw, list | tuple) else [raw]
            arrays = [np.asarray(each) for each in found]
            made.append(dict(zip(self._program.outputs.names, arrays, strict=True)))
        return made

    def outputs(self) -> Form:
        """Names of the outputs, known after `probe`."""
        return self._program.outputs

    def kinds(self, outputs: tuple[Port, ...]) -> tuple[Port, ...]:
        """See Half: as the targets say."""
        return outputs

    def settle(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...], images: bool) -> None:
        """Take the ports as they were described."""
        self._program.ports = outputs

    def metrics(self, outputs: tuple[Port, ...], classified: bool) -> tuple[Metric, ...]:
        """The metrics where the study names none; () for the usual ones."""
        return scorers.metrics_named(self.bench.spec.metric)

    def scorer(self, metrics: tuple[Metric, ...]) -> Scorer | None:
        """The half's own scorer; None for the usual ones."""
        return None

    def trains(self) -> bool:
        """Whether there is a loss."""
        return self.targets or self.bench.parts.loss is not None

    def program(self) -> KerasProgram:
        """What the trainer is given."""
        return self._program

    def serving(self) -> Serving | None:
        """What a request goes through; None where the source decides it."""
        return None


def keras_task(bench: Bench, factories: Mapping[str, Callable[[], Any]] | None = None) -> Task:
    """A model from a file (trained), or from a function (trained where two calls give equal weights)."""
    if bench.data.kind == "imagefolder":
        raise TaskError(
            "task.data: imagefolder: a Keras model does not say how its images are prepared; write FILE.py:NAME with "
            "data(split), such as tf_keras.utils.image_dataset_from_directory",
            "data",
        )
    if factories is None:
        path = bench.model.path(bench.spec)
        subject = KerasSubject(bench, path.stem, lambda: keras_files.read(path), trained=True)
    else:
        name, factory = next(iter(factories.items()))
        subject = KerasSubject(bench, name, factory, trained=False)
        subject.trained = bench.parts.trained if bench.parts.trained is not None else _alike(subject)
    model = subject.whole()
    wants = Wants(inputs=tuple(input_names(model)), ranks=tuple(len(tensor.shape) for tensor in model.inputs))
    splits = bench.open(wants)
    targets = splits.open("train").take(np.arange(1))[1] is not None
    return bench.task(subject.name, KerasHalf(bench, subject, targets), splits)


def input_names(model: Any) -> list[str]:
    """The model's own names; a lone input that has none of its own is called `input`."""
    names = [str(name) for name in model.input_names]
    return ["input"] if len(names) == 1 and re.fullmatch(r"input(_layer)?(_\d+)?", names[0]) else names


def _alike(subject: KerasSubject) -> bool:
    weights = []
    for seed in (0, 1):
        tf_keras.utils.set_random_seed(seed)
        weights.append([array for array in subject.whole().get_weights() if array.ndim > 1])
    alike = bool(weights[0]) and all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    if alike:
        subject.notes.append(
            f"{subject.name}: the same weights whenever it is made, so it is taken as trained; TRAINED = False in the "
            "file says that it is not"
        )
    return alike
