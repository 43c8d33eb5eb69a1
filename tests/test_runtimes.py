"""The contract every runtime must keep: the same network as a file of each format, against NumPy.

A new runtime joins by one line in MAKERS, a function that writes the network below in its format.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes.base import FORMATS, LAYOUTS, Artifact, ArtifactError, Runtime, load, run_single

ROOT = Path(__file__).parent.parent
HIDDEN = 512  # wide enough that every library splits the work over its threads


def weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First weights [16, HIDDEN], bias [HIDDEN], second weights [HIDDEN, 3], all float32."""
    rng = np.random.default_rng(7)
    shapes = ((16, HIDDEN), (HIDDEN,), (HIDDEN, 3))
    first, bias, second = (rng.normal(0, 0.2, shape).astype(np.float32) for shape in shapes)
    return first, bias, second


def reference(inputs: np.ndarray) -> np.ndarray:
    first, bias, second = weights()
    return np.maximum(inputs.reshape(len(inputs), 16) @ first + bias, 0) @ second


def make_onnx(path: Path) -> None:
    names = ("first", "bias", "second")
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "first", "bias"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["relu"]),
        helper.make_node("MatMul", ["relu", "second"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "contract",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(each, name) for each, name in zip(weights(), names, strict=True)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def make_pt2(path: Path) -> None:
    import torch

    first, bias, second = (torch.from_numpy(each) for each in weights())

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.relu(images.flatten(1) @ first + bias) @ second

    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(
        torch.export.export(Network(), (torch.zeros(2, 1, 4, 4),), dynamic_shapes=({0: batch},), strict=True), path
    )


def make_tflite(path: Path) -> None:
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    first, bias, second = weights()
    contents = [None, first.T, bias, None, second.T, np.zeros(3, np.float32), None]
    shapes = [(1, 4, 4, 1), (HIDDEN, 16), (HIDDEN,), (1, HIDDEN), (3, HIDDEN), (3,), (1, 3)]
    model, graph, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    model.version, model.buffers, graph.tensors, graph.operators = 3, [schema.BufferT()], [], []
    for number, (content, shape) in enumerate(zip(contents, shapes, strict=True)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = f"t{number}", list(shape), schema.TensorType.FLOAT32, 0
        if content is not None:
            tensor.buffer = len(model.buffers)
            model.buffers.append(schema.BufferT())
            model.buffers[-1].data = np.frombuffer(content.tobytes(), np.uint8)
        graph.tensors.append(tensor)
    for start, activation in ((0, schema.ActivationFunctionType.RELU), (3, schema.ActivationFunctionType.NONE)):
        layer = schema.OperatorT()
        layer.opcodeIndex, layer.inputs, layer.outputs = 0, [start, start + 1, start + 2], [start + 3]
        layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        layer.builtinOptions = schema.FullyConnectedOptionsT()
        layer.builtinOptions.fusedActivationFunction = activation
        graph.operators.append(layer)
    graph.inputs, graph.outputs = [0], [6]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


MAKERS: dict[str, Callable[[Path], None]] = {"onnx": make_onnx, "pt2": make_pt2, "tflite": make_tflite}
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch", "litert": "ai_edge_litert"}
INSTALLED = [name for name in FORMATS if FORMATS[name] in MAKERS and importlib.util.find_spec(PACKAGES[name])]


@pytest.fixture(scope="module", params=INSTALLED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runtime(name: str) -> Runtime:
    return load(name)


@pytest.fixture(scope="module")
def artifact(name: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp(name) / f"model.{FORMATS[name]}"
    MAKERS[FORMATS[name]](path)
    return Artifact.of(path)


def images(count: int, artifact: Artifact) -> np.ndarray:
    shape = (count, 1, 4, 4) if artifact.layout == "NCHW" else (count, 4, 4, 1)
    return np.random.default_rng(count).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("count", [1, 3, 64, 257])
def test_predict_equals_numpy_at_any_batch_size(runtime: Runtime, artifact: Artifact, count: int) -> None:
    given = images(count, artifact)
    scores = run_single(runtime.load(artifact, threads=1), given)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, reference(given), rtol=1e-4, atol=1e-4)


def test_predict_equals_numpy_at_a_fixed_batch_size(runtime: Runtime, artifact: Artifact) -> None:
    given = images(5, artifact)
    scores = run_single(runtime.load(artifact, threads=1, batch=5), given)
    np.testing.assert_allclose(scores, reference(given), rtol=1e-4, atol=1e-4)


def test_same_input_twice_gives_the_same_output(runtime: Runtime, artifact: Artifact) -> None:
    session = runtime.load(artifact, threads=1)
    given = images(17, artifact)
    first = run_single(session, given)
    run_single(session, images(17, artifact) + 1)
    assert np.array_equal(first, run_single(session, given))


def test_an_earlier_result_is_not_overwritten(runtime: Runtime, artifact: Artifact) -> None:
    session = runtime.load(artifact, threads=1)
    first = run_single(session, images(4, artifact))
    kept = first.copy()
    run_single(session, images(4, artifact) * 2)
    assert np.array_equal(first, kept)


def test_ports_are_told(name: str, runtime: Runtime, artifact: Artifact) -> None:
    session = runtime.load(artifact, threads=1)
    (given,), (made,) = session.inputs, session.outputs
    assert given.shape == ("batch", *images(1, artifact).shape[1:])
    assert made.shape[-1] == 3
    assert (given.dtype, made.dtype) == ("float32", "float32")
    if name != "litert":  # this file has no signature: its tensors are numbered
        assert given.name == "images"


def test_a_bound_call_runs(runtime: Runtime, artifact: Artifact) -> None:
    session = runtime.load(artifact, threads=1)
    given = {session.inputs[0].name: images(3, artifact)}
    assert session.bind(given)() is None
    np.testing.assert_allclose(run_single(session, images(4, artifact)), reference(images(4, artifact)), atol=1e-4)


@pytest.mark.parametrize("way", ["run", "bind"])
def test_inputs_that_do_not_fit_are_refused(runtime: Runtime, artifact: Artifact, way: str) -> None:
    session = runtime.load(artifact, threads=1)
    name, right = session.inputs[0].name, images(2, artifact)
    for wrong, said in (
        ({}, f"'{name}' is missing"),
        ({name: right, "more": right}, "'more' is no input"),
        ({name: right.astype(np.float64)}, f"'{name}' is float64 "),
        ({name: right[:, :, :2]}, f"'{name}' is float32 "),
        ({name: right[0]}, f"'{name}' is float32 "),
        ({name: right.tolist()}, f"'{name}' is a list, not a NumPy array"),
    ):
        with pytest.raises(ValueError, match="; the file takes ") as caught:
            getattr(session, way)(wrong)
        assert said in str(caught.value)


def test_version_is_told(runtime: Runtime) -> None:
    assert runtime.version()[0].isdigit()


THREADS = """
import sys
from pathlib import Path
import numpy as np
import psutil
from runtimes.base import Artifact, load, run_single
name, path = sys.argv[1], Path(sys.argv[2])
runtime, sessions = load(name), []
for threads in (1, 3):
    before = psutil.Process().num_threads()
    sessions.append(runtime.load(Artifact.of(path), threads=threads))
    run_single(sessions[-1], np.ones((2048, *sessions[-1].inputs[0].shape[1:]), dtype=np.float32))
    print(psutil.Process().num_threads() - before)
"""


def test_threads_are_honoured(name: str, runtime: Runtime, artifact: Artifact) -> None:
    if name == "openvino":  # it starts threads for itself, now one, now three, and allows at most one per core
        compiled = runtime.load(artifact, threads=1)._request.get_compiled_model()  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        return
    command = [sys.executable, "-c", THREADS, name, str(artifact.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    one, three = map(int, done.stdout.split())
    assert one == 0  # the calling thread does the work
    assert three >= 2  # torch has two pools


@pytest.mark.parametrize("damage", ["noise", "empty", "truncated"])
def test_a_broken_file_is_refused_with_a_clear_message(
    name: str, runtime: Runtime, artifact: Artifact, tmp_path: Path, damage: str
) -> None:
    whole = artifact.path.read_bytes()
    broken = tmp_path / f"broken.{artifact.format}"
    broken.write_bytes({"noise": b"not a model", "empty": b"", "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ArtifactError) as caught:
        runtime.load(Artifact.of(broken), threads=1)
    message = str(caught.value)
    assert message.startswith(f"{broken}: ")
    assert "cannot load it" in message
    assert "\n" not in message


def test_a_file_changed_since_it_was_made_is_refused(runtime: Runtime, artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / f"model.{artifact.format}"
    path.write_bytes(artifact.path.read_bytes())
    made = Artifact.of(path)
    runtime.load(made, threads=1)
    path.write_bytes(artifact.path.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        runtime.load(made, threads=1)


def test_a_missing_file_is_refused(runtime: Runtime, artifact: Artifact, tmp_path: Path) -> None:
    gone = Artifact(tmp_path / f"gone.{artifact.format}", artifact.format, artifact.sha256)
    with pytest.raises(ArtifactError, match="cannot be read"):
        runtime.load(gone, threads=1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_several_inputs_of_several_types_and_free_axes(name: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[name])
    ends = {"ids": (TensorProto.INT64, ["batch", "length"]), "weights": (TensorProto.FLOAT, ["batch", "length"])}
    made = {"sums": (TensorProto.FLOAT, ["batch"]), "next": (TensorProto.INT64, ["batch", "length"])}
    table = np.arange(20, dtype=np.float32) ** 2
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["found"]),
        helper.make_node("Mul", ["found", "weights"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axis"], ["sums"], keepdims=0),
        helper.make_node("Add", ["ids", "axis"], ["next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info(end, kind, shape) for end, (kind, shape) in ends.items()],
        [helper.make_tensor_value_info(end, kind, shape) for end, (kind, shape) in made.items()],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    path = tmp_path / "words.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    session = load(name).load(Artifact.of(path), threads=1)
    assert [(port.name, port.dtype, len(port.shape)) for port in (*session.inputs, *session.outputs)] == [
        ("ids", "int64", 2),
        ("weights", "float32", 2),
        ("sums", "float32", 1),
        ("next", "int64", 2),
    ]
    for rows, length in ((1, 4), (3, 7), (2, 1)):
        ids = np.random.default_rng(rows).integers(0, 20, (rows, length))
        found = session.run({"weights": np.full((rows, length), 0.5, np.float32), "ids": ids})
        np.testing.assert_allclose(found["sums"], 0.5 * table[ids].sum(1), rtol=1e-5)
        assert np.array_equal(found["next"], ids + 1)
    outside = {"ids": np.array([[20]]), "weights": np.ones((1, 1), np.float32)}
    if name == "onnxruntime":
        with pytest.raises(ArtifactError, match=r"words\.onnx: ONNX Runtime .* cannot run it: .*out of"):
            session.run(outside)
    with pytest.raises(ValueError, match="'weights' is float32 \\[2, 4\\], where another input has 3 along batch"):
        session.run({"ids": np.zeros((3, 4), np.int64), "weights": np.zeros((2, 4), np.float32)})


def test_every_runtime_of_the_table_has_a_layout() -> None:
    assert set(FORMATS.values()) == set(LAYOUTS)


def test_an_unknown_runtime_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'onnx' is not valid; choose from onnxruntime, openvino, torch, litert"):
        load("onnx")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "runtimes.openvino", raising=False)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[openvino\]'"):
        load("openvino")
