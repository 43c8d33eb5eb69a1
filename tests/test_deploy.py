"""deploy/ cannot rot in silence: Ray reads its cluster file, and our own command lines read what the manifests run."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from search.run import EXPERIMENTS
from search.study import compose, config
from serving import metrics
from serving.settings import Settings

DEPLOY = Path(__file__).parent.parent / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KINDS = {
    "Secret": "v1",
    "ConfigMap": "v1",
    "PersistentVolumeClaim": "v1",
    "CronJob": "batch/v1",
    "RayJob": "ray.io/v1",
    "RayService": "ray.io/v1",
    "Service": "v1",
}


def documents() -> Iterator[dict[str, Any]]:
    for path in KUBERNETES:
        yield from yaml.safe_load_all(path.read_text())


def of_kind(kind: str) -> dict[str, Any]:
    return next(each for each in documents() if each["kind"] == kind)


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec in a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for each in value.values():
            yield from pods(each)
    elif isinstance(value, list):
        for each in value:
            yield from pods(each)


def checked(words: list[str]) -> config.Config:
    """The words after `python -m search.run`, read as the command line reads them."""
    if any(word.startswith("storage=") for word in words) and not (EXPERIMENTS / "storage").is_dir():
        pytest.skip("no storage to choose here")
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        raw = hydra_compose("config", overrides=compose.overrides(words))
    root = next(word for word in words if word.startswith("root="))
    assert root == "root=/data/pare"
    raw.root = "unused"
    return cli_checked(raw)


def cli_checked(raw: Any) -> config.Config:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    return config.check(plain)


def test_ray_reads_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    written = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    made = prepare_config(copy.deepcopy(written))
    validate_config(made)
    assert made["max_workers"] == len(written["provider"]["worker_ips"])
    with pytest.raises(Exception, match="idle_minutes"):
        validate_config(prepare_config(copy.deepcopy(written) | {"idle_minutes": 3}))


@pytest.mark.filterwarnings("ignore")  # of the parts of Ray that its command line loads
def test_the_commands_that_start_ray_are_its_own() -> None:
    from click.testing import CliRunner
    from ray.scripts.scripts import start

    known = CliRunner().invoke(start, ["--help"]).output
    written = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    for command in (written["head_start_ray_commands"][-1], written["worker_start_ray_commands"][-1]):
        words = shlex.split(command.replace("$(cat /etc/pare/resources 2>/dev/null || echo '{}')", "{}"))
        flags = [word.partition("=")[0] for word in words[words.index("start") :] if word.startswith("--")]
        assert {"--resources", "--disable-usage-stats"} <= set(flags)
        assert all(flag in known for flag in flags)


def test_every_manifest_says_what_it_is() -> None:
    found = list(documents())
    assert {each["kind"] for each in found} == set(KINDS)
    for each in found:
        assert each["apiVersion"] == KINDS[each["kind"]]
        assert each["metadata"].get("name") or each["metadata"].get("generateName")


def test_what_a_pod_names_is_there() -> None:
    names = {(each["kind"], each["metadata"].get("name")) for each in documents()}
    for pod in [pod for each in documents() for pod in pods(each)]:
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        assert pod["terminationGracePeriodSeconds"] >= 30
        for container in pod["containers"]:
            assert container["image"] == "registry.example/pare:0.1.0"
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == set(volumes)
            for source in container.get("envFrom", []):
                assert ("Secret", source["secretRef"]["name"]) in names
        for volume in volumes.values():
            claim, config_map = volume.get("persistentVolumeClaim"), volume.get("configMap")
            assert ("PersistentVolumeClaim", claim["claimName"]) in names if claim else config_map
            assert not config_map or ("ConfigMap", config_map["name"]) in names


def test_secrets_stand_in_the_secret_alone() -> None:
    keys = set(of_kind("Secret")["stringData"])
    assert keys == {"PARE_STORAGE_URL", "MLFLOW_TRACKING_URI", "PARE_SERVE_TOKEN"}
    for path in sorted(DEPLOY.rglob("*")):
        if path.is_file() and path.name != "secret.yaml":
            lines = [line for line in path.read_text().splitlines() if "://" in line and "@" in line]
            assert all(":PASSWORD@" in line for line in lines), path


def test_the_ray_job_runs_a_sweep_that_our_command_line_takes() -> None:
    job = of_kind("RayJob")["spec"]
    python, flag, module, *words = shlex.split(job["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "search.run")
    found = checked(words)
    assert (found.executor.name, found.executor.address) == ("ray", "auto")
    groups = job["rayClusterSpec"]["workerGroupSpecs"]
    offered = [json.loads(json.loads(g["rayStartParams"].get("resources", '"{}"'))) for g in groups]
    assert [each for each in offered if each] == [{found.study.target: 1}]
    import ray

    assert job["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_the_ray_service_names_our_application_with_arguments_that_it_takes() -> None:
    import ray
    from ray.serve.schema import ServeDeploySchema

    service = of_kind("RayService")["spec"]
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"])).applications
    assert application.import_path == "serving.deployment:app"
    settings = Settings.from_dict(application.args)
    assert settings.open_to_others
    cluster = service["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert group["replicas"] == settings.replicas
    assert float(container["resources"]["limits"]["cpu"]) == settings.num_cpus
    (port,) = container["ports"]
    assert port["containerPort"] == settings.port
    assert of_kind("Service")["spec"]["selector"] == group["template"]["metadata"]["labels"]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    text = (DEPLOY / "grafana" / "serving.json").read_text()
    board = json.loads(text)
    asked = set(re.findall(r"pare_\w+", text))
    exposed = set(re.findall(r"# TYPE (pare_\w+)", metrics.text("m", {})))
    assert {re.sub("_bucket$", "", name) for name in asked} == exposed
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 8


@pytest.mark.skipif(not (DEPLOY.parent / "search" / "schedule.py").is_file(), reason="no schedules here")
def test_the_cron_job_triggers_a_schedule_that_is_valid(tmp_path: Path) -> None:
    (container,) = next(pods(of_kind("CronJob")))["containers"]
    assert container["command"] == ["python", "-m", "search.schedule"]
    trigger, name, wait, *places = container["args"]
    assert (trigger, wait, places) == ("trigger", "--wait", ["root=/data/pare", "schedules=/schedules"])
    for file, text in of_kind("ConfigMap")["data"].items():
        (tmp_path / file).write_text(text)
    assert (tmp_path / f"{name}.yaml").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "search.schedule", "check", f"schedules={tmp_path}", f"root={tmp_path / 'mlruns'}"],
        cwd=DEPLOY.parent,
        env=dict(os.environ) | of_kind("Secret")["stringData"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_names_every_file_and_no_other() -> None:
    text = (DEPLOY / "README.md").read_text()
    linked = set(re.findall(r"\]\((?!http)([^)]+)\)", text)) - {"systemd/README.md"}
    assert linked == {
        p.relative_to(DEPLOY).as_posix()
        for p in [*DEPLOY.glob("*[!d]"), *DEPLOY.glob("grafana/*"), *KUBERNETES]
        if p.is_file()
    }


def test_the_image_installs_what_the_project_names() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((DEPLOY.parent / name).exists() for name in copied)
    rooms = {"search", "tasks", "trainers", "runtimes", "packing", "serving", "pare", "experiments"}
    assert rooms | {"pyproject.toml", "constraints.txt"} <= set(copied)
    torch = next(
        line for line in (DEPLOY.parent / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    )
    assert any(torch in line for line in lines)
