"""executor=ray without a cluster: what it is told, what travels, what is refused, and a Ray of its own on this host."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.planted import INFO
from runtimes.base import Artifact
from runtimes.latency import LatencyError
from search.errors import SweepError, reason
from search.executors.ray import inputs
from search.executors.ray.transfer import Receiver, Sender
from search.study import config
from search.study.config import Config, ConfigError
from search.trial.measure import same_hardware
from search.trial.results import Baseline
from search.trial.steps import TrainThenMeasure
from tasks import cache
from tests.linear import RAW
from tests.test_recovery import finished
from trainers.base import DenseSpec

ROOT = Path(__file__).parent.parent


def checked(root: Path, **executor: Any) -> Config:
    return config.check({"study": RAW, "executor": executor, "root": root})


MISTAKES = [
    ({"address": "auto"}, {}, "executor.address: belongs to executor=ray; write executor=ray, or leave it out"),
    (
        {"name": "ray", "address": "head"},
        {},
        "executor.address: 'head' is not an address; write auto, local, HOST:PORT",
    ),
    ({"name": "ray", "num_gpus": 1.5}, {}, "executor.num_gpus: 1.5 must be a whole number above 1"),
    ({"name": "ray", "num_cpus": 0}, {}, "executor.num_cpus: 0 is not valid"),
    ({"name": "ray"}, {"device": "cuda"}, "executor.num_gpus: 0 hides every GPU from the workers"),
    ({"name": "ray", "num_gpus": 0.5}, {"device": "cpu"}, "executor.num_gpus: 0.5 would stay idle with device=cpu"),
]


@pytest.mark.parametrize(("executor", "rest", "says"), MISTAKES, ids=lambda v: str(v)[:40])
def test_one_mistake_one_message(executor: dict[str, Any], rest: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.check({"study": RAW, "executor": executor, **rest})
    assert len(caught.value.problems) == 1, caught.value.problems
    assert says in caught.value.problems[0]


@pytest.mark.parametrize("address", ["auto", "local", "10.0.0.7:6379", "head.example:6379", "ray://head:10001"])
def test_addresses(address: str) -> None:
    assert checked(ROOT, name="ray", address=address).executor.address == address


def test_without_ray_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'ray' is not installed; run .venv/bin/pip install -e '.\[ray\]'"):
        checked(ROOT, name="ray")


def test_an_address_where_nothing_answers_is_told_at_once(root: Path) -> None:
    command = [sys.executable, "-m", "search.run", "study=smoke", "executor=ray", f"root={root}"]
    done = subprocess.run(
        [*command, "executor.address=127.0.0.1:9"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )  # Ray itself would try for two minutes
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "executor.address: nothing answers at 127.0.0.1:9 (Connection refused); check that" in done.stderr


def test_steps_are_one_after_the_other() -> None:
    said: list[str] = []
    both = TrainThenMeasure(
        lambda a, progress: a + 1, lambda a, before, progress: progress(f"{a} {before}") or 2 * before
    )
    assert both(1, said.append) == 4
    assert said == ["1 2"]


# -- travel -----------------------------------------------------------------------------------------------------------


def baseline_in(root: Path) -> Baseline:
    """As the driver has it: an exported file and a dense folder of the cache below its root."""
    file, dense = root / "trials" / "s-001" / "baseline" / "model.onnx", root / "cache" / "dense" / "0123"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    cache.fill(dense, lambda folder: np.save(folder / "logits.npy", np.arange(10.0)))
    return Baseline(
        DenseSpec("pytorch", "lenet5"), dense, Artifact.of(file), {"accuracy": 0.9}, 1, 7, 0.1, "d", {}, {}, INFO, file
    )


def test_what_is_sent_lies_below_the_receivers_root_with_everything_it_names(tmp_path: Path) -> None:
    here, there = tmp_path / "driver", tmp_path / "node"
    baseline = baseline_in(here)
    config, folder = checked(here), here / "trials" / "s-001" / "0007"
    folder.mkdir()  # of an attempt before
    parcel = Sender(here).pack((config, baseline, folder))
    assert str(here).encode() not in parcel.value
    (got_config, got, place), places = Receiver(there).unpack(parcel)
    assert got_config == config.model_copy(update={"root": there})
    assert place == there / folder.relative_to(here)
    assert places == {place}
    assert got.artifact.read() == b"weights"
    assert got.artifact.path.is_relative_to(there)
    assert cache.get(got.dense_folder)
    assert np.load(got.dense_folder / "logits.npy").sum() == 45
    back, _ = Receiver(here).unpack(Sender(there).pack(got))
    assert asdict(back) == asdict(baseline)


def test_content_is_shipped_and_fetched_once(tmp_path: Path) -> None:
    here, there = tmp_path / "driver", tmp_path / "node"
    baseline = baseline_in(here)
    stored: list[dict[str, bytes]] = []
    fetched: list[int] = []

    def ship(content: dict[str, bytes]) -> int:
        stored.append(content)
        return len(stored) - 1

    def fetch(ref: int) -> dict[str, bytes]:
        fetched.append(ref)
        return stored[ref]

    sender = Sender(here, ship)
    for _ in range(3):
        Receiver(there, fetch).unpack(sender.pack((baseline, baseline.artifact)))  # each another worker of the host
    assert sorted(fetched) == [0, 1]
    baseline.artifact.path.write_bytes(b"new weights")
    Receiver(there, fetch).unpack(sender.pack(baseline))
    assert sorted(fetched) == [0, 1, 2]
    assert (there / baseline.artifact.path.relative_to(here)).read_bytes() == b"new weights"


def test_what_was_damaged_is_sent_again_and_what_arrives_damaged_is_refused(tmp_path: Path) -> None:
    here, there = tmp_path / "driver", tmp_path / "node"
    dense = baseline_in(here).dense_folder
    parcel = Sender(here).pack(dense)
    arrived, _ = Receiver(there).unpack(parcel)
    (arrived / "logits.npy").write_bytes(b"rotten")
    Receiver(there).unpack(parcel)
    assert np.load(arrived / "logits.npy").sum() == 45
    parcel.blobs[0].content["logits.npy"] = b"rotten on the way"
    with pytest.raises(cache.CacheError, match="did not arrive as it was sent"):
        Receiver(tmp_path / "other").unpack(parcel)
    assert not (tmp_path / "other" / "cache" / "dense" / "0123").exists()


def test_every_host_is_sent_the_splits_and_the_studys_own_dense_models(root: Path) -> None:
    wanted = checked(root)
    spec = wanted.study.dense_spec("pytorch", "lenet300").to_dict()
    other = wanted.study.dense_spec("pytorch", "lenet5").to_dict()

    def make(folder: Path) -> None:
        np.save(folder / "logits.npy", np.zeros(3))

    for name, key in (("mine", spec), ("other", other), ("longer", spec | {"epochs": 99})):
        cache.fill(root / "cache" / "dense" / name, make, key)
    info = replace(INFO, places={split: f"data/mnist/{split}" for split in ("train", "validation")})
    names = [path.relative_to(root / "cache").as_posix() for path in inputs.inputs(wanted, info)]
    assert names == ["data/mnist/train", "data/mnist/validation", "dense/mine"]


# -- hardware ---------------------------------------------------------------------------------------------------------


def test_figures_of_other_hardware_are_refused_by_name() -> None:
    there = {"cpu": "Fast", "cores": 8, "runtime": "onnxruntime", "runtime_version": "1.32.0", "host": "quiet-1"}
    same_hardware(there | {"host": "quiet-2", "load_average": 3.0}, there)
    with pytest.raises(LatencyError) as caught:
        same_hardware(there | {"cpu": "Slow", "cores": 2, "host": "laptop"}, there)
    said = reason(caught.value)
    assert "measured on laptop, which is not like quiet-1" in said
    assert "cpu 'Slow', the baseline's 'Fast'; cores 2, the baseline's 8" in said


def test_a_sweeps_own_errors_stop_it() -> None:
    with pytest.raises(SweepError, match="install the same Pare"):
        reason(SweepError("install the same Pare on every node"))


# -- a Ray of our own -------------------------------------------------------------------------------------------------


def smoke(root: Path, *words: str) -> list[str]:
    study = ["study=smoke", "study.budget.trials=2", "study.confirm.seeds=1", "study.confirm.candidates=1"]
    local = ["executor=ray", "executor.address=local", f"root={root}"]
    return [sys.executable, "-m", "search.run", *study, *local, *words]


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=120)[1]  # two of Ray's own take a minute to notice


@pytest.fixture
def own_scratch(tmp_path: Path) -> dict[str, str]:
    return dict(os.environ) | {"PARE_SCRATCH": str(tmp_path / "scratch")}


@pytest.mark.cluster
def test_a_whole_sweep_and_its_confirmation(root: Path, own_scratch: dict[str, str], tmp_path: Path) -> None:
    driver = subprocess.Popen(
        smoke(root), cwd=ROOT, env=own_scratch, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    assert "Confirmed with" in said
    assert finished(root) == 2
    trials = root / "trials" / "smoke-001"
    assert all((trials / name / "model.onnx").is_file() for name in ("0000", "0001", "baseline-pytorch-lenet300"))
    assert [path.name for path in (root / "cache" / "dense").glob("[!.]*")]  # trained elsewhere, kept here
    assert not list((tmp_path / "scratch").glob("*/trials/*/0*"))  # nodes do not pile up what has travelled on


@pytest.mark.cluster
def test_nothing_is_left_of_it_when_the_driver_is_killed(root: Path, own_scratch: dict[str, str]) -> None:
    driver = subprocess.Popen(
        smoke(root), cwd=ROOT, env=own_scratch, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if "baseline" in line:
            break
    family = psutil.Process(driver.pid).children(recursive=True)
    assert [process for process in family if "raylet" in process.name()]
    driver.kill()
    driver.communicate()
    assert ended(family)
