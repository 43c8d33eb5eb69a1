"""LiteRT on small files written with its own schema: no TensorFlow is needed to test it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from runtimes import litert
from runtimes.base import Artifact, ArtifactError, run_single
from tasks.base import Port

ROOT = Path(__file__).parent.parent
INPUTS, OUTPUTS = 8, 3


def weights() -> tuple[np.ndarray, np.ndarray]:
    """Kernel float32 [OUTPUTS, INPUTS] with 10 zeros, bias float32 [OUTPUTS]."""
    rng = np.random.default_rng(5)
    kernel = rng.normal(size=(OUTPUTS, INPUTS)).astype(np.float32)
    kernel.ravel()[:10] = 0
    return kernel, rng.normal(size=OUTPUTS).astype(np.float32)


def write(path: Path, inputs: int = 1, kind: int = schema.TensorType.FLOAT32) -> Artifact:
    """One fully connected layer; with 2 inputs, the second is not used."""
    model = schema.ModelT()
    model.version, model.description = 3, "test"
    model.buffers = [schema.BufferT()]

    def tensor(name: str, shape: tuple[int, ...], content: np.ndarray | None = None) -> schema.TensorT:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), kind, 0
        if content is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        return made

    kernel, bias = weights()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("images", (1, INPUTS)),
        tensor("kernel", kernel.shape, kernel),
        tensor("bias", bias.shape, bias),
        tensor("logits", (1, OUTPUTS)),
        tensor("more", (1, INPUTS)),
    ]
    graph.inputs, graph.outputs = [0, 4][:inputs], [3]
    layer = schema.OperatorT()
    layer.opcodeIndex, layer.inputs, layer.outputs = 0, [0, 1, 2], [3]
    layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    layer.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators = [layer]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), litert.IDENTIFIER)
    path.write_bytes(bytes(builder.Output()))
    return Artifact.of(path)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write(tmp_path / "model.tflite")


def inputs(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, INPUTS), dtype=np.float32)


def reference(given: np.ndarray) -> np.ndarray:
    kernel, bias = weights()
    return given @ kernel.T + bias


@pytest.mark.parametrize("batch", [None, 1, 7])
@pytest.mark.parametrize("count", [1, 7, 256, 600])
def test_any_number_of_rows_is_predicted(artifact: Artifact, batch: int | None, count: int) -> None:
    session = litert.load(artifact, threads=1, batch=batch)
    for given in (inputs(count), inputs(count) * 2):
        scores = run_single(session, given)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, reference(given), rtol=1e-5, atol=1e-5)


def test_no_rows_give_no_rows(artifact: Artifact) -> None:
    assert run_single(litert.load(artifact, threads=1), inputs(0)).shape == (0, OUTPUTS)


@pytest.mark.parametrize("batch", [None, 1, 5])
def test_ports_are_told_with_the_batch_as_a_free_axis(artifact: Artifact, batch: int | None) -> None:
    session = litert.load(artifact, threads=1, batch=batch)
    assert session.inputs == (Port("images", ("batch", INPUTS)),)
    assert session.outputs == (Port("logits", ("batch", OUTPUTS)),)


def test_inputs_of_another_shape_or_dtype_are_refused(artifact: Artifact) -> None:
    session = litert.load(artifact, threads=1)
    with pytest.raises(ValueError, match=r"float32 \[2, 9\]; the file takes images float32 \[batch, 8\]"):
        run_single(session, np.zeros((2, INPUTS + 1), np.float32))
    with pytest.raises(ValueError, match=r"float64 \[2, 8\]; the file takes images float32 \[batch, 8\]"):
        run_single(session, np.zeros((2, INPUTS), np.float64))


def test_zeros_and_weights_are_counted_in_the_kernels_alone(artifact: Artifact) -> None:
    assert litert.zeros(artifact) == (10, OUTPUTS * INPUTS)


@pytest.mark.parametrize("damage", ["noise", "empty", "truncated", "marked noise"])
@pytest.mark.parametrize("use", ["load", "zeros"])
def test_a_broken_file_is_refused(artifact: Artifact, tmp_path: Path, damage: str, use: str) -> None:
    whole = artifact.path.read_bytes()
    broken = tmp_path / "broken.tflite"
    noise = np.random.default_rng(0).bytes(400)
    broken.write_bytes(
        {
            "noise": b"not a model",
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "marked noise": noise[:4] + litert.IDENTIFIER + noise,
        }[damage]
    )
    with pytest.raises(ArtifactError, match="cannot load it") as caught:
        litert.load(Artifact.of(broken), threads=1) if use == "load" else litert.zeros(Artifact.of(broken))
    assert str(caught.value).startswith(f"{broken}: LiteRT ")
    assert "\n" not in str(caught.value)


def test_a_file_with_two_inputs_is_run(tmp_path: Path) -> None:
    session = litert.load(write(tmp_path / "two.tflite", inputs=2), threads=1)
    assert [port.name for port in session.inputs] == ["images", "more"]
    found = session.run({"more": inputs(300), "images": inputs(300)})
    np.testing.assert_allclose(found["logits"], reference(inputs(300)), rtol=1e-5, atol=1e-5)


def test_a_type_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot load it"):
        litert.load(write(tmp_path / "whole.tflite", kind=schema.TensorType.INT32), threads=1)


SILENT = """
import sys
from pathlib import Path
import numpy as np
from runtimes.base import Artifact, load, run_single
run_single(load("litert").load(Artifact.of(Path(sys.argv[1])), threads=1), np.zeros((4, 8), np.float32))
print([name for name in ("tensorflow", "torch", "tf_keras") if name in sys.modules])
"""


def test_it_loads_no_training_framework_and_prints_nothing(artifact: Artifact) -> None:
    command = [sys.executable, "-c", SILENT, str(artifact.path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
