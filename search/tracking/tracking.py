"""The record of sweeps and trials in MLflow, and the only import of mlflow.

One experiment per study; in it one run per sweep and one flat run per trial (children of a run start collapsed in
the UI and leave its charts empty). Without MLFLOW_TRACKING_URI the store is `ROOT/mlflow.db` with the artifacts
under `ROOT/artifacts`. Everything can be logged again after a crash: what is there is found and completed.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from search.study.metrics import KEY, Metrics
from search.tracking import confirmed
from search.tracking.moved import repair
from search.tracking.uri import TrackingError, quiet, reaching, store_uri
from search.trial.record import STATUSES, Outcome, TrialRecord, colour, read_row
from tasks.base import TaskInfo
from trainers.base import NETWORK
from trainers.recipe import flatten

# Read by mlflow: no usage reports, no address printed per trial, an unreachable server told in seconds, not minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow.entities import Metric, Param, Run, RunInfo, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

_ENDS = dict(zip(STATUSES, ("FINISHED", "KILLED", "FAILED"), strict=True))
PICTURE = "front"  # key of the picture among a sweep's images
_SCHEME = "quantization.scheme"
_Texts = Mapping[str, str]
_NONE: _Texts = {}
# Without it MLflow takes the runs for evaluations of a chat model and shows pages for those.
_TRAINING: _Texts = {"mlflow.experimentKind": "custom_model_development"}
_BATCH = 100  # params and tags that MLflow takes at once; of metrics it takes 1000


def studies(root: Path) -> dict[str, str]:
    """Study -> id of its experiment, for every study recorded in the store."""
    uri = store_uri(root)
    repair(root)
    with reaching(uri):
        found = MlflowClient(uri).search_experiments(filter_string="tags.`pare.study` != ''", order_by=["name"])
    return {experiment.name: experiment.experiment_id for experiment in found}


@dataclass
class _Logged:
    """A trial's run as it is known here; `end_ms` is None until the run is complete."""

    info: RunInfo
    scheme: str
    end_ms: int | None = None
    on_front: bool = False


class Tracking:
    """The record of one study. Opening it creates or migrates the database: do so before any worker starts."""

    def __init__(self, root: Path, study: str) -> None:
        self.study, self.uri = study, store_uri(root)
        self._logged: dict[str, dict[int, _Logged]] = {}
        repair(root)
        with reaching(self.uri), quiet():
            if self.uri.startswith("sqlite"):
                root.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(self.uri)
            self.experiment = self._open_experiment(root)

    def _open_experiment(self, root: Path) -> str:
        found = self._client.get_experiment_by_name(self.study)
        if found is None:
            own = "MLFLOW_TRACKING_URI" not in os.environ
            place = (root.resolve() / "artifacts" / self.study).as_uri() if own else None
            return self._client.create_experiment(self.study, place, {"pare.study": self.study, **_TRAINING})
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"{self.uri}: the experiment {self.study!r} was deleted in MLflow; bring it back with "
                f"`mlflow experiments restore -x {found.experiment_id}` or remove it for good with `mlflow gc`"
            )
        return found.experiment_id

    def sweeps(self) -> list[str]:
        """The names of the study's sweeps, oldest first."""
        with reaching(self.uri):
            runs = self._search("tags.`pare.kind` = 'sweep'")
        return [run.data.tags["pare.sweep"] for run in sorted(runs, key=lambda run: run.info.start_time)]

    def start_sweep(
        self,
        sweep: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        objectives: Sequence[str] = (),
        reference: Sequence[float] = (),
        metrics: Metrics | None = None,
    ) -> str:
        """Id of the sweep's run: a new one, or on resume the one that is there, with its gaps filled.

        `config`: the study as it runs, nested. `objectives`: metric names; `reference`: the hypervolume's reference
        point, one value per objective; `metrics`: what the names mean; all three are what the report reads again.
        """
        marks = {"pare.kind": "sweep", "pare.sweep": sweep, "pare.study": self.study}
        if metrics:
            marks[KEY] = metrics.to_json()
        if objectives:
            marks["pare.objectives"] = json.dumps(list(objectives))
        if reference:
            marks["pare.reference_point"] = json.dumps(list(reference))
        with reaching(self.uri):
            run = self._sweep_run(sweep) or self._client.create_run(self.experiment, tags=marks, run_name=sweep)
            known = run.data.params
            params = {key: str(value) for key, value in flatten(config).items() if key not in known}
            self._log(run.info.run_id, params=params, tags={**tags, **marks})
            self._client.log_dict(run.info.run_id, dict(config), "config.json")
            self._client.update_run(run.info.run_id, status="RUNNING")
        return run.info.run_id

    def log_task(self, sweep: str, task: Mapping[str, Any], home: Path) -> None:
        """Keep with the sweep what its task is, `TaskInfo.to_dict`, and the files that serving needs (a tokenizer's).

        `home`: where the places of those files begin.
        """
        with reaching(self.uri):
            run_id = self._needed(sweep).info.run_id
            self._client.log_dict(run_id, dict(task), "task.json")
            for place in ((task.get("serving") or {}).get("files") or {}).values():
                self._client.log_artifact(run_id, str(home / place), "serving")

    def task(self, sweep: str) -> TaskInfo | None:
        """What the sweep's task is; None where it was not recorded."""
        with reaching(self.uri), tempfile.TemporaryDirectory() as scratch:
            run_id = self._needed(sweep).info.run_id
            if "task.json" not in [item.path for item in self._client.list_artifacts(run_id)]:
                return None
            found = self._client.download_artifacts(run_id, "task.json", scratch)
            return TaskInfo.from_dict(json.loads(Path(found).read_text()))

    def serving_files(self, sweep: str) -> dict[str, bytes]:
        """The files that serving the task reads, by name; none where nothing was recorded."""
        with reaching(self.uri), tempfile.TemporaryDirectory() as scratch:
            run_id = self._needed(sweep).info.run_id
            if "serving" not in [item.path for item in self._client.list_artifacts(run_id)]:
                return {}
            folder = Path(self._client.download_artifacts(run_id, "serving", scratch))
            return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}

    def tag_sweep(self, sweep: str, tags: Mapping[str, str]) -> None:
        """Add to the sweep's tags what is known only after it started."""
        with reaching(self.uri):
            self._log(self._needed(sweep).info.run_id, tags=tags)

    def log_trial(self, sweep: str, record: TrialRecord) -> str:
        """Id of the trial's run, complete. Called again for the same number it completes the run that is there.

        Times are the record's own, so a metric logged twice is the same metric and is kept once.
        """
        with reaching(self.uri):
            known = self._known(sweep)
            if record.number not in known:
                # Tags cost a query each when they are set later; the run is RUNNING until all is logged.
                scheme = str(record.params.get(_SCHEME))
                tags = {"pare.kind": "trial", "pare.sweep": sweep, "pare.trial": str(record.number)}
                tags |= record.tags() | _front_tags(scheme, False)
                run = self._client.create_run(self.experiment, record.start_ms, tags, record.title)
                known[record.number] = _Logged(run.info, scheme)
            logged = known[record.number]
            if logged.end_ms is None:
                self._complete(logged, record)
                logged.end_ms = record.end_ms
        return logged.info.run_id

    def _complete(self, logged: _Logged, record: TrialRecord) -> None:
        params = {key: str(value) for key, value in record.params.items()}
        figures = [Metric(name, value, record.end_ms, step) for name, value, step in record.figures()]
        figures.append(Metric("on_front", 0.0, record.end_ms, 0))
        self._log(logged.info.run_id, params, figures)
        # The client would first ask for the run, to learn where its artifacts lie.
        artifacts = get_artifact_repository(logged.info.artifact_uri, tracking_uri=self.uri)
        with tempfile.TemporaryDirectory() as made:
            file = Path(made) / "recipe.json"
            file.write_text(json.dumps(record.recipe, indent=2))
            artifacts.log_artifact(str(file))
        if record.artifact is not None:
            artifacts.log_artifact(record.artifact)
            if (network := Path(record.artifact).with_name(NETWORK)).is_dir():
                artifacts.log_artifacts(str(network), NETWORK)
        status = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[record.state]
        self._client.set_terminated(logged.info.run_id, status, record.end_ms)

    def mark_front(self, sweep: str, front: Iterable[int], told: int) -> None:
        """Make tag `pare.front` and metric `on_front` say which trial numbers are on the front after `told` trials."""
        members = set(front)
        with reaching(self.uri):
            for number, logged in self._known(sweep).items():
                now = number in members
                if logged.end_ms is not None and logged.on_front != now:
                    mark = Metric("on_front", float(now), logged.end_ms, max(told, 1))
                    self._log(logged.info.run_id, metrics=[mark], tags=_front_tags(logged.scheme, now))
                    logged.on_front = now

    def log_confirmed(self, sweep: str, points: Sequence[Mapping[str, Any]]) -> None:
        """What confirmation found, as `Confirmed.to_dict` gives it, in place of the search's figures.

        What the search had found moves to `search/NAME`. Trials with the same recipe share what is found of it. A trial
        that an earlier confirmation judged and this one did not gets the search's figures back. The sweep's run keeps
        the whole as `confirmed.json`.
        """
        found = {int(point["number"]): point for point in points}
        with reaching(self.uri):
            for run in self._trial_runs(sweep):
                number = int(run.data.tags["pare.trial"])
                point = found.get(number) or found.get(int(run.data.tags.get("pare.duplicate_of", -1)))
                if point is not None or run.data.tags.get("pare.confirmed"):
                    self._replace(run, confirmed.figures(run.data.metrics, point), confirmed.tags(point, number))
                if point is not None and point["number"] == number:
                    self._client.log_artifact(run.info.run_id, point["chosen"], "confirmed")
                    if (network := Path(point["chosen"]).with_name(NETWORK)).is_dir():
                        self._client.log_artifacts(run.info.run_id, str(network), f"confirmed/{NETWORK}")
            if points:
                self._client.log_dict(self._needed(sweep).info.run_id, {"points": list(points)}, "confirmed.json")

    def _replace(self, run: Run, figures: Mapping[str, float], tags: _Texts) -> None:
        # Of two values at one step and time MLflow shows the larger; a new time makes the new one count.
        now = int(time.time() * 1000)
        changed = [Metric(n, v, now, 1) for n, v in figures.items() if run.data.metrics.get(n) != v]
        self._log(run.info.run_id, metrics=changed, tags=tags)

    def trials(self, sweep: str) -> pd.DataFrame:
        """One row per recorded trial, in the order of their numbers: run_id, start_ms, end_ms, then the columns of
        `record.read_row`; params and other dotted columns as numbers where all their values are.
        """
        with reaching(self.uri):
            runs = self._trial_runs(sweep)
        rows = [
            {"run_id": run.info.run_id, "start_ms": run.info.start_time, "end_ms": run.info.end_time}
            | read_row(run.info.run_name, run.data.tags, run.data.metrics, run.data.params)
            | ({"state": "running"} if run.info.status == "RUNNING" else {})
            for run in runs
        ]
        table = pd.DataFrame(rows).sort_values("number", ignore_index=True) if rows else pd.DataFrame({"number": []})
        for name in set(table.columns) & {key for row in rows for key in row if "." in key}:
            numbers = pd.to_numeric(table[name], errors="coerce")
            if bool((numbers.notna() | table[name].isna()).all()):
                table[name] = numbers
        return table

    def about(self, sweep: str) -> dict[str, Any]:
        """The sweep itself: run_id, experiment (its id), status, start_ms, end_ms, tags, metrics, objectives, reference
        (None without), settings: the study's, flat."""
        with reaching(self.uri):
            run = self._needed(sweep)
        tags = run.data.tags
        return {
            "run_id": run.info.run_id,
            "experiment": self.experiment,
            "status": run.info.status,
            "start_ms": run.info.start_time,
            "end_ms": run.info.end_time,
            "tags": tags,
            "objectives": json.loads(tags.get("pare.objectives", "null")),
            "reference": json.loads(tags.get("pare.reference_point", "null")),
            "metrics": Metrics.from_json(tags.get(KEY)),
            "settings": dict(run.data.params),
        }

    def finish_sweep(self, sweep: str, outcome: Outcome) -> None:
        """Record what the sweep came to and end its run; a later call (a resumed sweep) overwrites it."""
        with reaching(self.uri):
            run = self._needed(sweep)
            run_id = run.info.run_id
            curve = outcome.hypervolume
            points = [
                Metric("hypervolume", float(value), int(end_ms), int(number))
                for number, end_ms, value in zip(curve["number"], curve["end_ms"], curve["hypervolume"], strict=True)
            ]
            last = int(curve["end_ms"].max()) if len(curve) else 0
            figures = [Metric(name, float(value), last, len(curve)) for name, value in outcome.metrics.items()]
            self._log(run_id, metrics=figures + points)  # the compare page draws the first of them
            self._client.log_text(run_id, outcome.front.to_csv(index=False), "front.csv")
            for path in outcome.files:
                self._client.log_artifact(run_id, str(path))
            if outcome.picture is not None:
                self._show_picture(run, outcome.picture)
            if outcome.note:
                self._log(run_id, tags={"mlflow.note.content": outcome.note})
                self._client.set_experiment_tag(self.experiment, "mlflow.note.content", outcome.note)
            self._client.set_terminated(run_id, _ENDS[outcome.status])

    def _show_picture(self, run: Run, picture: Path) -> None:
        """The one image of the run, under the key PICTURE; that of an earlier end of the sweep is replaced."""
        from PIL import Image

        if "images" in [item.path for item in self._client.list_artifacts(run.info.run_id)]:
            with contextlib.suppress(NotImplementedError):  # not every store deletes: then there are two
                get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri).delete_artifacts("images")
        with Image.open(picture) as image:
            self._client.log_image(run.info.run_id, image, key=PICTURE)

    def tag_study(self, key: str, value: str) -> None:
        """Set a tag of the study's experiment."""
        with reaching(self.uri):
            self._client.set_experiment_tag(self.experiment, key, value)

    def _log(self, run_id: str, params: _Texts = _NONE, metrics: Sequence[Metric] = (), tags: _Texts = _NONE) -> None:
        pairs = [Param(key, value[:6000]) for key, value in params.items()]
        marks = [RunTag(key, value[:8000]) for key, value in tags.items()]
        for start in range(0, max(len(pairs), len(marks), len(metrics)), _BATCH):
            part = slice(start, start + _BATCH)
            self._client.log_batch(run_id, metrics[part], pairs[part], marks[part])

    def _search(self, condition: str) -> list[Run]:
        found, token = [], None
        while True:
            page = self._client.search_runs([self.experiment], condition, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _sweep_run(self, sweep: str) -> Run | None:
        found = self._search(f"tags.`pare.kind` = 'sweep' and tags.`pare.sweep` = '{sweep}'")
        return found[0] if found else None

    def _needed(self, sweep: str) -> Run:
        run = self._sweep_run(sweep)
        if run is None:
            known = ", ".join(self.sweeps()) or "none yet"
            raise TrackingError(f"sweep: {self.study} has no sweep {sweep!r}; recorded are: {known}")
        return run

    def _trial_runs(self, sweep: str) -> list[Run]:
        return self._search(f"tags.`pare.kind` = 'trial' and tags.`pare.sweep` = '{sweep}'")

    def _known(self, sweep: str) -> dict[int, _Logged]:
        """What is logged of the sweep by its trials' numbers: read once, then kept, since there is one writer."""
        if sweep not in self._logged:
            self._logged[sweep] = {}
            for run in self._trial_runs(sweep):
                tags = run.data.tags
                end_ms = None if run.info.status == "RUNNING" else run.info.end_time
                scheme = run.data.params.get(_SCHEME, "none")
                known = _Logged(run.info, scheme, end_ms, tags.get("pare.front") == "true")
                self._logged[sweep][int(tags["pare.trial"])] = known
        return self._logged[sweep]


def _front_tags(scheme: str, on_front: bool) -> dict[str, str]:
    """The mark itself, and the colour in MLflow's charts: the scheme's, faint behind the front."""
    return {"pare.front": str(on_front).lower(), "mlflow.runColor": colour(scheme, faint=not on_front)}
