"""`FILE.onnx`: a network without training code. Only workers import this.

Its recipes are post-training only. With targets in the data the metric is what they allow; without, it is how far a
compressed file agrees with this one.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks import cache, scorers
from tasks.address import nearest
from tasks.base import AGREEMENT, Arrays, Metric, Port, Scorer, Serving, Task, TaskError
from tasks.bench import Bench
from tasks.images import ImageOptions
from tasks.own import Parts
from tasks.ports import Form
from tasks.sources import Wants
from tasks.tree import Tree, leaves

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
BATCH = "batch"
CLASS_WORDS = ("logit", "prob", "class", "score", "softmax", "label", "pred")


class OnnxProgram:
    """What the ONNX trainer is given: the float file, and what must stay as it is."""

    def __init__(self, model: OnnxFile, keep: Collection[str]) -> None:
        self._model, self._keep = model, tuple(keep)
        self.keep()

    def file(self, model: str) -> Path:
        """The float file of the named model, its batch axis free."""
        return self._model.path

    def pretrained(self, model: str) -> bool:
        """Always: there is no training."""
        return True

    def keep(self) -> tuple[str, ...]:
        """Names of nodes that are neither pruned nor quantized."""
        names = [node.name for node in self._model.graph.node]
        for name in self._keep:
            if name not in names:
                raise TaskError(f"task.keep: the file has no node {name!r}{nearest(name, names)}", "model")
        return self._keep


class OnnxFile:
    """The user's file on ONNX Runtime; where its batch is fixed to 1 and need not be, a copy in which it is free."""

    def __init__(self, path: Path, home: Path) -> None:
        self.path, self.notes = path, list[str]()
        self._check(path)
        fixed = [node.name for node in self.session.get_inputs() if node.shape and isinstance(node.shape[0], int)]
        if fixed:
            self._free_batch(home, fixed)

    def _check(self, path: Path) -> None:
        import onnx

        try:
            onnx.checker.check_model(str(path))
        except Exception as error:  # onnx, protobuf and the file system have their own kinds
            raise TaskError(f"{path.name}: is no valid ONNX file: {_short(error)}", "model") from None

    @functools.cached_property
    def graph(self) -> Any:
        """The graph, without weights in other files."""
        import onnx

        return onnx.load(str(self.path), load_external_data=False).graph

    @property
    def session(self) -> Any:
        """An ONNX Runtime session on one thread."""
        if not hasattr(self, "_session"):
            self._session = _session(self.path)
        return self._session

    def _free_batch(self, home: Path, fixed: list[str]) -> None:
        """Take a copy whose first axes are free, if it then gives for several samples what it gives for each."""
        import onnx

        key = {"file": cache.sha256_of(self.path), "made": "batch axis free"}
        folder = cache.entry(home, "onnx", key)

        def make(partial: Path) -> None:
            model = onnx.load(str(self.path))
            for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
                dims = value.type.tensor_type.shape.dim
                if dims and dims[0].dim_value == 1:
                    dims[0].dim_param = BATCH
            onnx.save(model, str(partial / self.path.name))

        cache.fill(folder, make, key)
        freed = _session(folder / self.path.name)
        rng = np.random.default_rng(0)
        whole = {node.name: _random(node, 3, rng) for node in self.session.get_inputs()}
        try:
            each = [_run(self.session, {n: a[i : i + 1] for n, a in whole.items()}) for i in range(3)]
            together = _run(freed, whole)
            same = all(
                np.allclose(np.concatenate([one[name] for one in each]), array, 1e-3, 1e-4)
                for name, array in together.items()
            )
        except Exception:  # what fails inside is what was asked
            same = False
        if not same:
            raise TaskError(
                f"{self.path.name}: its inputs {', '.join(fixed)} have a fixed batch; export it with a free first axis "
                "(torch: dynamic_axes or dynamic_shapes, tf2onnx: an open first dimension)",
                "model",
            )
        self.notes.append(f"{self.path.name}: its batch was fixed to 1; a copy with a free batch is used")
        self.path, self._session = folder / self.path.name, freed

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name."""
        try:
            return _run(self.session, inputs)
        except Exception as error:  # ONNX Runtime's classes have no common base
            shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in inputs.items())
            raise TaskError(f"{self.path.name}: cannot be run with {shapes}: {_short(error)}", "model") from None

    def input_ports(self) -> Iterator[Port]:
        """The inputs as the file declares them."""
        for node in self.session.get_inputs():
            if node.type not in DTYPES:
                raise TaskError(
                    f"{self.path.name}: its input {node.name} is {node.type}, which is not supported", "model"
                )
            shape = tuple(axis if isinstance(axis, int) else str(axis or f"{node.name}_{i}")
                          for i, axis in enumerate(node.shape))  # fmt: skip
            yield Port(node.name, (BATCH, *shape[1:]), DTYPES[node.type])


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes have no common base
        raise TaskError(f"{path.name}: ONNX Runtime cannot load it: {_short(error)}", "model") from None


def _run(session: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _random(node: Any, rows: int, rng: np.random.Generator) -> np.ndarray:
    shape = [axis if isinstance(axis, int) else 8 for axis in node.shape[1:]]
    dtype = DTYPES.get(node.type, "float32")
    return rng.random((rows, *shape)).astype(dtype) if "float" in dtype else np.ones((rows, *shape), dtype)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class FloatOutputs(Mapping[str, np.ndarray]):
    """The float file's outputs on a batch, computed when they are first read: what agreement compares with."""

    def __init__(self, model: OnnxFile, inputs: Arrays) -> None:
        self._model, self._inputs = model, inputs

    @functools.cached_property
    def _found(self) -> dict[str, np.ndarray]:
        return self._model.run(self._inputs)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class OnnxHalf:
    """See `tasks.composed.Half`."""

    trainer = "onnx"
    last_axis = False
    layout = ""

    def __init__(self, bench: Bench, model: OnnxFile, targets: bool) -> None:
        self.bench, self.model, self.targets = bench, model, targets
        self.models: tuple[str, ...] = (bench.model.path(bench.spec).stem,)
        self.parts: Parts = bench.parts
        self.notes = model.notes
        self.declared = tuple(model.input_ports())
        self._program = OnnxProgram(model, bench.spec.keep)
        self._outputs: Form | None = None

    def adapt(self, inputs: Tree, targets: Tree | None) -> tuple[Tree, Tree | None]:
        """See Half: arrays in the file's types, by its names; without targets its own outputs."""
        found = list(leaves(inputs))
        by_name = dict(found)
        names = [port.name for port in self.declared]
        if set(names) <= set(by_name):
            arrays = [by_name[name] for name in names]
        elif len(found) == len(names):
            arrays = [leaf for _, leaf in found]
        else:
            raise TaskError(
                f"the file takes {len(names)} inputs ({', '.join(names)}) and the data gives {len(found)}", "data"
            )
        given = {p.name: np.asarray(array, p.dtype) for p, array in zip(self.declared, arrays, strict=True)}
        return given, FloatOutputs(self.model, given) if targets is None else targets

    def bind(self, inputs: Tree) -> Form:
        """Names for the inputs."""
        return Form({port.name: None for port in self.declared}, tuple(port.name for port in self.declared))

    def probe(self, examples: Sequence[Arrays]) -> Sequence[Arrays]:
        """The model's outputs on examples."""
        found = [self.model.run(example) for example in examples]
        names = tuple(found[0])
        tree = None if len(names) == 1 else dict.fromkeys(names)
        self._outputs = Form(tree, names)
        return found

    def outputs(self) -> Form:
        """Names of the outputs, known after `probe`."""
        assert self._outputs is not None
        return self._outputs

    def settle(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...], images: bool) -> None:
        """See Half: nothing to take."""

    def kinds(self, outputs: tuple[Port, ...]) -> tuple[Port, ...]:
        """Without targets: scores where a softmax makes them or their name says so."""
        if self.targets:
            return outputs
        makers = {name: node.op_type for node in self.model.graph.node for name in node.output}
        return tuple(
            replace(port, kind="logits", axis=1)
            if len(port.shape) == 2 and port.shape[1] != 1 and self._scores(port.name, makers)
            else port
            for port in outputs
        )

    def _scores(self, name: str, makers: Mapping[str, str]) -> bool:
        return makers.get(name) in ("Softmax", "LogSoftmax") or any(word in name.lower() for word in CLASS_WORDS)

    def metrics(self, outputs: tuple[Port, ...], classified: bool) -> tuple[Metric, ...]:
        """The metrics where the study names none; () for the usual ones."""
        if self.bench.spec.metric:
            return scorers.metrics_named(self.bench.spec.metric)
        return () if self.targets else (AGREEMENT,)

    def scorer(self, metrics: tuple[Metric, ...]) -> Scorer | None:
        """The half's own scorer; None for the usual ones."""
        return None

    def trains(self) -> bool:
        """See Half: never."""
        return False

    def program(self) -> OnnxProgram:
        """What the trainer is given."""
        return self._program

    def serving(self) -> Serving | None:
        """What a request goes through; None where the source decides it."""
        return None


def onnx_task(bench: Bench) -> Task:
    """The file with calibration and evaluation data."""
    if bench.parts.loss is not None or bench.spec.loss:
        raise TaskError("task.loss: an ONNX file is not trained; leave it out", "loss")
    model = OnnxFile(bench.model.path(bench.spec), bench.home)
    declared = tuple(model.input_ports())
    names, ranks = tuple(port.name for port in declared), tuple(len(port.shape) for port in declared)
    splits = bench.open(Wants(image=_image(bench, declared), inputs=names, ranks=ranks))
    targets = splits.open("train").take(np.arange(1))[1] is not None
    if not targets:
        model.notes.append(
            "the data has no targets: the metric is how far a compressed file agrees with the float one, whatever the "
            "network is good for"
        )
    return bench.task(bench.model.path(bench.spec).stem, OnnxHalf(bench, model, targets), splits)


def _image(bench: Bench, declared: tuple[Port, ...]) -> ImageOptions | None:
    """How image files become the file's input: its size, ImageNet's usual mean and deviation unless PREPROCESS says."""
    if bench.data.kind != "imagefolder":
        return None
    port = declared[0]
    if len(declared) != 1 or len(port.shape) != 4 or port.shape[1] not in (1, 3):
        raise TaskError(f"task.data: the file's input {port.name} {list(port.shape)} takes no images (NCHW)", "data")
    size = tuple(axis if isinstance(axis, int) else bench.spec.size for axis in port.shape[2:])
    if None in size:
        raise TaskError("task.size: missing; the file takes images of any size", "data")
    said: dict[str, Any] = dict(bench.parts.image or {})
    return ImageOptions(
        size=size,  # type: ignore[arg-type]
        resize=said.get("resize", min(size)),  # type: ignore[type-var]
        mode="RGB" if port.shape[1] == 3 else "L",
        mean=tuple(said.get("mean", ImageOptions.mean if port.shape[1] == 3 else (0.5,))),
        std=tuple(said.get("std", ImageOptions.std if port.shape[1] == 3 else (0.5,))),
    )
