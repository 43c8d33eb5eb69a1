"""Taking a point of the front away: the folder, the card, the registered model, and what is said when none fits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packing.decode import unpack
from runtimes import onnxruntime
from runtimes.base import Artifact, run_single
from search import pick
from search.command import UsageError
from search.tracking.uri import store_uri
from serving.package import Package, PackageError
from serving.protocol import Ends, parse
from serving.source import RegistrySource
from tasks.mnist import data
from tests.linear import LinearTrainer, config, searched
from tests.trainer_workers import in_worker
from trainers.base import NETWORK, Compressed, Dense, Job, Teacher
from trainers.recipe import Recipe


@pytest.fixture
def done(planted: LinearTrainer, root: Path) -> Path:
    searched(config(root))
    return root


def test_the_picked_folder_holds_the_file_its_recipe_and_a_card_and_mlflow_predicts_the_same(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    assert pick.main(["study=lucky", f"root={done}"]) == 0
    out = done / "picked" / "lucky"
    said = capsys.readouterr().out
    assert f"Folder   {out}" in said
    assert unpack((out / "model.pare").read_bytes()) == (out / "model.onnx").read_bytes()
    assert f"Packed   model.pare, {(out / 'model.pare').stat().st_size:,} bytes to download" in said
    card = (out / "MODEL_CARD.md").read_text()
    for word in ("Test accuracy", "95 % intervals", "float32 [N, 1, 28, 28]", "onnxruntime", "CC BY-SA 3.0"):
        assert word in card
    file_digest = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
    assert f"sha256 `{file_digest}`" in card
    assert "Data set: mnist (3,000 train, 500 validation, 10,000 test samples)" in card
    assert "of one sample per call on one thread" in card
    assert not re.search(r"\[\]|: *$|: nan|frameworks|stopped|affinity|``", card, re.M), card
    own = re.search(r"\| Test accuracy \| [^|]+ \| ([\d.]+) % \|", card)
    assert own
    assert json.loads((out / "recipe.json").read_text())["model"] == "lenet300"

    test = data.open_test("mnist", done / "cache")
    images = test.images[:500]
    session = onnxruntime.load(Artifact.of(out / "model.onnx"), threads=1)
    labels = run_single(session, data.normalized(images, "NCHW")).argmax(1)
    whole = run_single(session, data.normalized(test.images, "NCHW")).argmax(1)
    assert float(own[1]) == pytest.approx(100 * np.mean(whole == test.labels), abs=0.006), "the file's own figure"
    runs_alone(out, images, labels)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(done))
    mlflow.set_tracking_uri(store_uri(done))
    served = mlflow.pyfunc.load_model("models:/lucky@picked").predict(images.astype(np.float32))
    assert np.array_equal(served["label"], labels)
    assert served["probability"].between(0.1, 1.0).all()
    asked = json.loads((out / "invocations.json").read_text())
    model = mlflow.pyfunc.load_model("models:/lucky@picked")
    assert len(model.predict(np.asarray(asked["inputs"], np.float32))) == 1
    assert model.unwrap_python_model().about["threads"] == 1

    folder = Package.read(out)
    registered = RegistrySource(store_uri(done), "lucky", "picked")
    stored = registered.read(registered.newest())
    assert (stored.content, stored.about.version) == (folder.content, "1")
    assert stored.about.inputs == folder.about.inputs
    assert stored.about.serving is not None
    assert stored.about.serving["kind"] == "image"
    assert "import_path: serving.deployment:app" in (out / "serve.yaml").read_text()
    config = (out / "repository" / "lucky" / "config.pbtxt").read_text()
    assert "dims: [ 1, 28, 28 ]" in config
    assert (out / "repository" / "lucky" / "1" / "model.onnx").read_bytes() == folder.content
    with pytest.raises(PackageError, match="has no version '9'"):
        registered.read("9")
    with pytest.raises(PackageError, match="there is no models:/lucky@other"):
        RegistrySource(store_uri(done), "lucky", "other").newest()

    assert pick.main(["study=lucky", f"root={done}", "trial=0", f"out={done}/mine", "register=no"]) == 0
    assert (done / "mine" / "model.onnx").exists()
    assert pick.main(["study=lucky", f"root={done}", "accuracy>=0.9999", "register=no"]) == 2
    said = capsys.readouterr().err
    assert "accuracy >= 0.9999: no point of the front surely meets it; nearest is trial 0" in said
    assert pick.main(["study=lucky", f"root={done}", "accuracy>=0.5", "by=size_bytes", "register=no"]) == 0
    for word, said in (
        ("by=speed", "by: 'speed' is not a metric; choose from accuracy"),
        ("latncy_ms<=3", "latncy_ms <= 3: 'latncy_ms' is not a metric (did you mean latency_ms?)"),
        ("test_accuracy>=0.9", "'test_accuracy' is not a metric"),  # a choice by it would tune on the test split
    ):
        assert pick.main(["study=lucky", f"root={done}", word, "register=no"]) == 2
        assert said in capsys.readouterr().err
    assert pick.main(["study=nope", f"root={done}"]) == 1
    assert "'nope' is not recorded" in capsys.readouterr().err


def runs_alone(out: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """infer.py, with nothing of ours imported, checks itself and gives the labels; request.json is a valid request."""
    np.save(out / "images.npy", images)
    alone = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path('infer.py', run_name='__main__'); "
        "ours = {'search', 'serving', 'runtimes', 'tasks', 'trainers', 'packing'}; assert not ours & set(sys.modules)"
    )
    said = []
    for words in (["infer.py"], ["infer.py", "images.npy"]):
        command = [sys.executable, "-I", "-c", alone, *words]
        done = subprocess.run(command, cwd=out, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0].startswith("example.npz: answered as when the model was picked")
    assert said[1].split() == [str(label) for label in labels]
    about = Package.read(out).about
    parsed = parse((out / "request.json").read_bytes(), None, Ends.of(about.inputs, about.outputs))
    assert parsed.inputs["input"].shape == (1, 1, 28, 28)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["root=x"], "study: missing"),
        (["study=a", "trial=last"], "trial: 'last' must be a number"),
        (["study=a", "register=maybe"], "choose from yes, no"),
        (["study=a", "latency_ms<=3ms"], "must read like"),
        (["study=a", "knee"], "knee: no such argument"),
    ],
)
def test_usage_errors(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pick.main(words) == 2
    assert says in capsys.readouterr().err


@given(st.lists(st.text(max_size=20), max_size=4))
def test_no_words_end_in_a_traceback(words: list[str]) -> None:
    with contextlib.suppress(UsageError):
        assert pick.arguments(words).settings["study"]


class NarrowTrainer(LinearTrainer):
    """Writes a network beside its file, as trainers of torch do: the linear one as a program."""

    def compress(self, recipe: Recipe, dense: Dense, teacher: Teacher | None, job: Job) -> Compressed:
        made = super().compress(recipe, dense, teacher, job)
        if recipe.pruning.granularity != "none":
            in_worker("pytorch", save_linear, made.file, job.folder / NETWORK)
        return made


def save_linear(file: Path, folder: Path) -> None:
    """The linear file's network as `trainers.pytorch.saved` writes it; in a process of its own."""
    import onnx
    import torch
    from onnx import numpy_helper
    from torch import nn

    from trainers.pytorch.saved import save

    layers = [numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer]
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(*layer.shape, bias=False) for layer in layers)).eval()
    for module, layer in zip(list(model)[1:], layers, strict=True):
        module.weight.data = torch.from_numpy(layer.T.copy())
    save(model, folder, (torch.zeros(2, 1, 28, 28),))


@pytest.mark.cluster
def test_the_pruned_network_goes_along_and_loads_as_the_card_says(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainers.base.load", lambda trainer: NarrowTrainer())
    searched(config(root))
    assert pick.main(["study=lucky", f"root={root}", "trial=1", "register=no"]) == 0
    out = root / "picked" / "lucky"
    assert f"Network  {NETWORK}/" in capsys.readouterr().out
    assert {file.name for file in (out / NETWORK).iterdir()} == {"weights.safetensors", "widths.json", "program.pt2"}
    code = re.search(r"```python\n(.*?)```", (out / "MODEL_CARD.md").read_text(), re.S)
    assert code
    alone = (
        f"{code[1]}\nimport sys\nassert 'trainers' not in sys.modules\nnp.save('said.npy', outputs.detach().numpy())"
    )
    subprocess.run([sys.executable, "-I", "-c", alone], cwd=out, check=True, env={"OMP_NUM_THREADS": "1"})
    with np.load(out / "example.npz") as example:
        session = onnxruntime.load(Artifact.of(out / "model.onnx"), threads=1)
        wanted = run_single(session, example["i.input"])
    np.testing.assert_allclose(np.load(out / "said.npy"), wanted, rtol=1e-3, atol=1e-3)

    assert pick.main(["study=lucky", f"root={root}", "trial=0", "register=no"]) == 0  # nothing is pruned there
    assert not (out / NETWORK).exists()
    assert "The network itself" not in (out / "MODEL_CARD.md").read_text()
