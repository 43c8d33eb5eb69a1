"""Two Ray nodes on loopback: a worker and then a node die in mid-sweep, and nothing is lost, doubled or changed."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.front import pareto
from search.storage.database import address
from search.study.metrics import Metrics
from search.tracking.tracking import Tracking
from search.tracking.uri import quiet
from tests import loopback
from tests.test_executor import Progress
from tests.test_recovery import finished

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent
TRIALS = 6
FRONT = ["accuracy", "latency_ratio", "size_bytes"]
NOISE = 0.15  # of a latency measured twice for a second each, while others use the machine
STUDY = [
    "study=smoke",
    "study.latency.max_seconds=1",
    "study.sampler.name=random",
    f"study.budget.trials={TRIALS}",
    "study.confirm.seeds=0",
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[loopback.Cluster]:
    with loopback.cluster() as made:
        made.add(cpus=1, resources='{"latency": 1}')
        made.add(cpus=1)
        yield made


def start(cluster: loopback.Cluster, root: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "search.run", *STUDY, "executor=ray", f"executor.address={cluster.address}"]
    return subprocess.Popen(
        [*command, f"root={root}", *words],
        cwd=ROOT,
        env=cluster.env | {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make_root(fetched: Path, blank_store: Path, root: Path) -> Path:
    (root / "cache").mkdir(parents=True)
    (root / "cache" / "data").symlink_to(fetched / "data")
    (root / "mlflow.db").write_bytes(blank_store.read_bytes())
    return root


def wait_for(driver: subprocess.Popen[str], root: Path, trials: int) -> None:
    while finished(root) < trials:
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.1)


def training(node: loopback.Node, patience: float = 60) -> psutil.Process:
    """A worker of the node that is at work now."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        for process in node.workers():
            with contextlib.suppress(psutil.NoSuchProcess):  # it was recycled meanwhile
                if process.is_running() and process.cpu_percent(interval=0.2) > 20:
                    return process
    raise AssertionError(f"no worker of {node.ip} is at work")


def told(root: Path) -> dict[int, FrozenTrial]:
    study = optuna.load_study(study_name="smoke-001", storage=address(root))
    assert {t.state for t in study.get_trials()} == {TrialState.COMPLETE}
    return {t.number: t for t in study.get_trials()}


def logged(root: Path) -> pd.DataFrame:
    with quiet():
        return Tracking(root, "smoke").trials("smoke-001").set_index("number", drop=False)


WHERE = """
import time
from pathlib import Path
from search.executors.ray.executor import RayExecutor
from search.study.config import Executor
from search.trial.steps import TrainThenMeasure
from tests.test_cluster import here, here_again
if __name__ == "__main__":
    executor = RayExecutor(Executor(name="ray", address={address!r}, workers=2), Path({root!r}))
    try:
        waiting = [executor.submit(i, "pytorch", TrainThenMeasure(here, here_again), 0.5) for i in range(6)]
        print([future.result(timeout=100) for future in waiting])
    finally:
        executor.close()
"""


def here(seconds: float, progress: Progress) -> str:
    import ray  # not with this module: it reads the environment when it is imported

    time.sleep(seconds)
    return str(ray.util.get_node_ip_address())


def here_again(seconds: float, before: str, progress: Progress) -> tuple[str, str]:
    return before, here(0.0, progress)


def test_work_is_done_on_all_nodes_and_measured_where_the_resource_is(nodes: loopback.Cluster, tmp_path: Path) -> None:
    code = WHERE.format(address=nodes.address, root=str(tmp_path))
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=nodes.env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    found = ast.literal_eval(said.stdout.strip())
    assert {work for work, _ in found} == {node.ip for node in nodes.nodes}
    assert {measured for _, measured in found} == {nodes.nodes[0].ip}


def test_a_killed_worker_and_a_killed_node_cost_nothing_but_time(
    nodes: loopback.Cluster, fetched: Path, blank_store: Path, tmp_path: Path
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    undisturbed, disturbed = (make_root(fetched, blank_store, tmp_path / name) for name in ("calm", "storm"))
    calm = start(nodes, undisturbed)
    assert calm.wait(timeout=240) == 0, calm.communicate()[0]

    storm = start(nodes, disturbed)
    wait_for(storm, disturbed, 1)
    victim = training(nodes.nodes[1])
    victim.kill()
    wait_for(storm, disturbed, 3)
    with contextlib.suppress(AssertionError):  # its new worker may still be importing when the last trials begin
        training(nodes.nodes[1], patience=10)
    assert storm.poll() is None
    nodes.nodes[1].kill()
    said, _ = storm.communicate(timeout=300)
    assert storm.returncode == 0, said
    assert "(raylet)" not in said
    assert "Traceback" not in said

    before, after = told(undisturbed), told(disturbed)
    assert sorted(after) == list(range(TRIALS))  # the exact budget, none twice
    for root, trials in ((undisturbed, before), (disturbed, after)):
        rows = logged(root)
        assert sorted(rows["number"]) == sorted(trials)
        assert all(rows.loc[number, "accuracy"] == trial.values[0] for number, trial in trials.items())
        for number in rows.index[rows["duplicate_of"] < 0]:  # every exported file came to the driver
            assert (root / "trials" / "smoke-001" / f"{number:04d}" / "model.onnx").is_file()
    assert {n: t.params for n, t in before.items()} == {n: t.params for n, t in after.items()}
    assert_equal_up_to_noise(logged(undisturbed), logged(disturbed))


def assert_equal_up_to_noise(before: pd.DataFrame, after: pd.DataFrame) -> None:
    """Accuracy and size to the last digit; latency within what the intervals and NOISE allow; so the front as well."""
    for name in ("accuracy", "size_bytes"):
        assert list(before[name]) == list(after[name])
    for one, other in ((before, after), (after, before)):
        assert (one["latency_ratio_high"] * (1 + NOISE) >= other["latency_ratio_low"]).all()
        members = pareto.front(one[FRONT].to_numpy(), Metrics().directions(FRONT))
        for number in one.index[members]:
            mine = other.loc[number]
            surely = other[
                (other["accuracy"] >= mine["accuracy"])
                & (other["size_bytes"] <= mine["size_bytes"])
                & (other["latency_ratio_high"] * (1 + NOISE) < mine["latency_ratio_low"])
            ]
            assert surely.empty, f"trial {number} is on one front and clearly behind the other"


def test_no_process_of_ours_is_left_on_the_cluster(nodes: loopback.Cluster) -> None:
    deadline = time.monotonic() + 30
    while any(node.workers() for node in nodes.nodes) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [process.pid for node in nodes.nodes for process in node.workers()]
    assert psutil.pid_exists(nodes.nodes[0].process.pid)  # the cluster was there before, and stays
    assert os.path.isdir(nodes.nodes[0].scratch)


def test_without_a_node_to_measure_on_it_says_how_to_start_one(nodes: loopback.Cluster, root: Path) -> None:
    driver = start(nodes, root, "study.target=quietroom")
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "carries the resource 'quietroom'" in said
    assert "--resources='{\"quietroom\": 1}'" in said
    assert "Traceback" not in said
