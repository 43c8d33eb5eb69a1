"""The contract every runtime keeps (`pare.testing.runtimes`), and what is each one's own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pare.testing.networks import IMAGES, NETWORKS, Network, write
from pare.testing.runtimes import CHECKS
from runtimes.base import FORMATS, LAYOUTS, Artifact, ArtifactError, Runtime, load

Check = Callable[[Runtime, Artifact, Network], None]
ROOT = Path(__file__).parent.parent
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch", "litert": "ai_edge_litert"}
INSTALLED = [name for name in FORMATS if importlib.util.find_spec(PACKAGES[name])]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Artifact]:
    """(network, format) -> the file; broken ones are laid beside it."""
    made = {}
    for network in NETWORKS:
        for suffix in {FORMATS[name] for name in INSTALLED}:
            path = tmp_path_factory.mktemp(network.name) / f"{network.name}.{suffix}"
            write(network, path)
            made[network.name, suffix] = Artifact.of(path)
    return made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: str(network.name))
@pytest.mark.parametrize("name", INSTALLED)
def test_contract(name: str, network: Network, check: Check, files: dict[tuple[str, str], Artifact]) -> None:
    check(load(name), files[network.name, FORMATS[name]], network)


THREADS = """
import sys
from collections.abc import Callable
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


@pytest.mark.parametrize("name", INSTALLED)
def test_threads_are_honoured(name: str, files: dict[tuple[str, str], Artifact]) -> None:
    artifact = files[IMAGES.name, FORMATS[name]]
    if name == "openvino":  # it starts threads for itself, now one, now three, and allows at most one per core
        compiled = load(name).load(artifact, threads=1)._request.get_compiled_model()  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        return
    command = [sys.executable, "-c", THREADS, name, str(artifact.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    one, three = map(int, done.stdout.split())
    assert one == 0  # the calling thread does the work
    assert three >= 2  # torch has two pools


def test_ids_outside_the_table_are_told_with_the_file(files: dict[tuple[str, str], Artifact]) -> None:
    for name in {"onnxruntime", "torch"} & set(INSTALLED):
        session = load(name).load(files["words", FORMATS[name]], threads=1)
        with pytest.raises(ArtifactError, match=r"words\.(onnx|pt2): .* cannot run it: .*out of") as caught:
            session.run({"ids": np.array([[20]]), "weights": np.ones((1, 1), np.float32)})
        assert "\n" not in str(caught.value)


def test_axes_of_one_name_have_one_size(files: dict[tuple[str, str], Artifact]) -> None:
    session = load("onnxruntime").load(files["words", "onnx"], threads=1)
    with pytest.raises(ValueError, match=r"'weights' is float32 \[3, 5\], where another input has 4 along length"):
        session.run({"ids": np.zeros((3, 4), np.int64), "weights": np.zeros((3, 5), np.float32)})


def test_every_runtime_of_the_table_has_a_layout() -> None:
    assert set(FORMATS.values()) == set(LAYOUTS)


def test_an_unknown_runtime_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'onnx' is not a runtime; choose from onnxruntime, openvino, torch, litert"):
        load("onnx")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "runtimes.openvino", raising=False)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[openvino\]'"):
        load("openvino")


SIGNALS = """
import faulthandler, os, signal, sys
from pathlib import Path
from runtimes.base import Artifact, load
faulthandler.enable()
name, artifact = sys.argv[1], Artifact.of(Path(sys.argv[2]))
sessions = [load(name).load(artifact, threads=1) for _ in range(3)]
while sessions:
    del sessions[0]
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("name", INSTALLED)
def test_signals_are_handled_after_files_were_freed(name: str, files: dict[tuple[str, str], Artifact]) -> None:
    command = [sys.executable, "-c", SIGNALS, name, str(files[IMAGES.name, FORMATS[name]].path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr
