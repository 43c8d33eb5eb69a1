"""A runtime of another package: found, held to the contract in three lines, timed; what is said of one that fails."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pare.testing.networks import IMAGES, Network
from pare.testing.runtimes import check_runtime
from runtimes import base, foreign
from runtimes.base import Artifact, ArtifactError, format_of
from runtimes.latency import LatencyResult, LatencySpec, measure
from runtimes.profile import profile

pytestmark = pytest.mark.usefixtures("own_locks")

SOURCE = '''
"""Runs the contract's networks in NumPy, from their weights in a `.npz`."""

import io

import numpy as np

from pare.testing.networks import NETWORKS
from runtimes.base import ArtifactError
from runtimes.ports import check

FORMAT = "npz"


class Session:
    def __init__(self, weights):
        self._network = next(each for each in NETWORKS if set(each.weights) == set(weights))
        self.inputs, self.outputs = self._network.inputs, self._network.outputs

    def run(self, inputs):
        check(self.inputs, inputs)
        return self._network.reference(inputs)

    def bind(self, inputs):
        check(self.inputs, inputs)

        def call():
            self._network.reference(inputs)

        return call


def load(artifact, threads, batch=None):
    content = artifact.read()
    try:
        return Session(dict(np.load(io.BytesIO(content), allow_pickle=False)))
    except Exception as problem:
        raise ArtifactError(f"{artifact.path}: cannot load it: {type(problem).__name__}") from None


def version():
    return np.__version__


def gpu():
    return "Imaginary 9000"
'''
QUICK = LatencySpec(max_seconds=0.3, min_blocks=5, target_rel_ci=0.5)


def write_npz(network: Network, path: Path) -> None:
    arrays: dict[str, Any] = dict(network.weights)
    np.savez(path, **arrays)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "numpy_runtime.py"
    made.write_text(SOURCE)
    return made


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same as an installed package: `pare.runtimes` names it `in_numpy`."""
    package = tmp_path / "site"
    (package / "their_package").mkdir(parents=True)
    (package / "their_package" / "__init__.py").touch()
    (package / "their_package" / "fast.py").write_text(SOURCE)
    about = package / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pare.runtimes]\nin_numpy = their_package.fast\n")
    monkeypatch.syspath_prepend(str(package))
    for name in ("their_package", "their_package.fast"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    foreign.load.cache_clear()
    return "in_numpy"


def test_a_file_a_module_and_an_entry_point_keep_the_contract(file: Path, installed: str, tmp_path: Path) -> None:
    for name in (str(file), "their_package.fast", installed):
        check_runtime(name, tmp_path, write_npz)
    assert base.names() == (*base.FORMATS, installed)


def measured(name: str, tmp_path: Path) -> LatencyResult:
    write_npz(IMAGES, tmp_path / "images.npz")
    artifact = Artifact.of(tmp_path / "images.npz")
    return measure(name, artifact, artifact, QUICK)


def test_it_is_timed_in_the_measuring_process(
    file: Path, installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a file's path begins where the command is given
    for name, told in ((file.name, file.name), (installed, installed)):
        where = measured(name, tmp_path).environment
        assert (where["runtime"], where["gpu"]) == (told, "Imaginary 9000")
    with pytest.raises(ValueError, match="has no profiler"):
        profile(file.name, Artifact.of(tmp_path / "images.npz"), IMAGES.example(1, 0))


def test_its_format_is_read_without_running_it(installed: str, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.py"
    bomb.write_text('raise SystemExit("it was run")\nFORMAT = "bin"\n')
    assert format_of(str(bomb)) == "bin"
    assert format_of(installed) == "npz"
    assert "their_package.fast" not in sys.modules


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('FORMAT = "npz"', "does not say which files it loads; write their suffix at its top level: FORMAT ="),
        ("def version", "has no version\\(\\); see runtimes.base.Runtime"),
        ("import io", "is not valid Python: .*numpy_runtime.py:4"),
    ],
)
def test_what_is_no_runtime_is_refused(file: Path, change: str, said: str) -> None:
    file.write_text(
        SOURCE.replace(
            change, "def (" if change == "import io" else change.replace("FORMAT", "F").replace("version", "v")
        )
    )
    with pytest.raises(ValueError, match=f"runtime: .*{said}"):
        base.load(str(file))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for name, said in (
        (str(tmp_path / "gone.py"), "there is no file"),
        ("no_such_package.fast", "is not installed"),
        ("json.fast", "is not installed"),
        ("fast", "is not a runtime; choose from onnxruntime"),
    ):
        with pytest.raises(ValueError, match=f"runtime: .*{said}"):
            format_of(name)


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (
            "return self._network.reference(inputs)",
            "return {}",
            "gives_the_right_outputs: run.. gave .*'scores' is missing",
        ),
        (
            "return self._network.reference(inputs)",
            "return {name: array * 1.01 for name, array in self._network.reference(inputs).items()}",
            "gives_the_right_outputs: scores: off by",
        ),
        ("return call", "return self", "binds_a_call"),
        (
            "        check(self.inputs, inputs)\n",
            "",
            "refuses_wrong_inputs: run.. with a missing input raised KeyError",
        ),
        (
            "content = artifact.read()",
            "content = artifact.path.read_bytes()",
            "refuses_other_files: a file that .* raised",
        ),
        ('raise ArtifactError(f"', 'raise ArtifactError(f"bad: ', "the message must begin with the file's path"),
        ("return np.__version__", "return 3", "version.. is a int, not a text"),
        ("self.inputs, self.outputs = ", "self.outputs, self.inputs = ", "tells_its_ports"),
    ],
)
def test_the_contract_sees_what_a_runtime_does_wrong(
    good: str, bad: str, said: str, file: Path, tmp_path: Path
) -> None:
    assert good in SOURCE
    file.write_text(SOURCE.replace(good, bad))
    with pytest.raises(AssertionError, match=said):
        check_runtime(str(file), tmp_path, write_npz)


def test_a_file_of_another_format_needs_its_maker(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only onnx, pt2, tflite files are written here; give check_runtime a `make`"):
        check_runtime(str(file), tmp_path)
    artifact = Artifact(tmp_path / "x.onnx", "onnx", "")
    with pytest.raises(ArtifactError, match=r"loads \.npz files, not \.onnx"):
        measure(str(file), artifact, artifact)


def test_the_documented_runtime_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "own-runtime.md").read_text()
    runtime, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference_runtime.py").write_text(runtime)
    made: dict[str, Any] = {}
    exec(test, made)
    made["test_contract"](tmp_path)
