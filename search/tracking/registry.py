"""Models out of the record and into MLflow's registry. Imports mlflow, as tracking does: nothing else need."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from search.tracking.uri import TrackingError, quiet, reaching
from trainers.base import NETWORK

SUFFIXES = (".onnx", ".tflite", ".pt2")
# What a served model needs, by the file's suffix; mlflow-skinny (which serves as mlflow does), numpy, pandas besides.
RUNTIME = {".onnx": "onnxruntime", ".tflite": "ai-edge-litert"}

ENDS = ("inputs", "outputs")


@dataclass(frozen=True)
class Fetched:
    """A trial's files out of the record. `network`: the folder beside the file; None where the trainer wrote none."""

    file: Path
    recipe: dict[str, Any]
    network: Path | None = None


def fetch(uri: str, run_id: str, into: Path) -> Fetched:
    """The files of a trial's run, downloaded into the folder; the confirmed one where there is one."""
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with reaching(uri):
        client = MlflowClient(uri)
        paths = [item.path for folder in ("confirmed", None) for item in client.list_artifacts(run_id, folder)]
        files = [path for path in paths if path.endswith(SUFFIXES)]
        if not files:
            raise TrackingError(f"tracking: run {run_id} in {uri} holds no model file")

        def download(path: str) -> Path:
            return Path(client.download_artifacts(run_id, path, str(into)))

        network = (PurePosixPath(files[0]).parent / NETWORK).as_posix()
        recipe = json.loads(download("recipe.json").read_text())
        return Fetched(download(files[0]), recipe, download(network) if network in paths else None)


def register(
    uri: str,
    study: str,
    run_id: str,
    file: Path,
    about: Mapping[str, Any],
    note: str,
    alias: str,
    along: Mapping[str, Path] | None = None,
) -> str:
    """Log the file as a pyfunc model of its run, register it under the study's name; returns the version.

    `about`: layout, and of a grey image mean, std and shape, else `ports`. The alias moves to this version. `along`:
    further artifacts by name, what search.serve needs besides.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient
    from mlflow.types.schema import ColSpec, Schema, TensorSpec

    if file.suffix not in RUNTIME:
        raise TrackingError(f"pick: a {file.suffix} file cannot be served; choose another trial, or register=no")
    if "ports" in about:
        named = {
            end: [(p["name"], np.dtype(p["dtype"]), _free(p["shape"])) for p in about["ports"][end]] for end in ENDS
        }
        signature = ModelSignature(
            *(Schema([TensorSpec(dtype, shape, name) for name, dtype, shape in named[end]]) for end in ENDS)
        )
        example: Any = None
    else:
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype(np.float32), (-1, *about["shape"]))]),
            Schema([ColSpec("long", "label"), ColSpec("double", "probability")]),
        )
        example = np.zeros((2, *about["shape"]), np.float32)
    needed = ["mlflow-skinny", "numpy", "pandas", RUNTIME[file.suffix]]
    with reaching(uri), quiet(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # it would rather have type hints than the signature it is given
        (Path(scratch) / "about.json").write_text(json.dumps(dict(about)))
        made = Path(scratch) / "model"
        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns of every package the driver has besides
        mlflow.pyfunc.save_model(
            str(made),
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={
                "model": str(file.absolute()),
                "about": f"{scratch}/about.json",
                **{name: str(path.absolute()) for name, path in (along or {}).items()},
            },
            signature=signature,
            input_example=example,
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in needed],
        )
        client = MlflowClient(uri)
        client.log_artifacts(run_id, str(made), "model")
        if study not in [model.name for model in client.search_registered_models(f"name = '{study}'")]:
            client.create_registered_model(study)
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        version = client.create_model_version(study, source, run_id, description=note)
        client.set_registered_model_alias(study, alias, version.version)
    return str(version.version)


def _free(shape: Sequence[int | str]) -> tuple[int, ...]:
    """The shape as MLflow writes it: -1 for a free axis."""
    return tuple(axis if isinstance(axis, int) else -1 for axis in shape)


def aliased(uri: str, study: str, alias: str) -> str:
    """The version that the study's alias names; raises TrackingError where nothing is registered under it."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    with reaching(uri), quiet():
        try:
            return str(MlflowClient(uri).get_model_version_by_alias(study, alias).version)
        except MlflowException as problem:
            if problem.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
    raise TrackingError(
        f"registry: there is no models:/{study}@{alias} in {uri}; run `python -m search.pick study={study}` first"
    )


def download(uri: str, study: str, version: str, into: Path) -> Path:
    """The artifacts of a registered version in a folder: the file, about.json, what travels along."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with reaching(uri), quiet():
        try:
            source = MlflowClient(uri).get_model_version_download_uri(study, version)
        except MlflowException as problem:
            if problem.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise TrackingError(f"registry: models:/{study} has no version {version!r}") from None
        return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(into), tracking_uri=uri)) / "artifacts"


def move_alias(uri: str, study: str, alias: str, version: str) -> None:
    """Let the alias name that version."""
    from mlflow.tracking import MlflowClient

    with reaching(uri), quiet():
        MlflowClient(uri).set_registered_model_alias(study, alias, version)
